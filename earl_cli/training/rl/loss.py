"""The mathematics of GRPO (Shao et al., arXiv 2402.03300) on images: advantages, the KL estimate, the loss of a token.

The advantage of an edit is one number for hundreds of tokens. A reward that has a score for each region of the image
(`Score.places`) says more: the edits of a group are compared region by region, and each code gets the advantage of its
own region. Only the reward of the whole image knows how a code affects those after it, so the two are mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earl_cli.config.rl import RlConfig
from earl_cli.errors import UsageError
from earl_cli.rewards.reward import Score
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.training.rl.rollouts import Rollout

TokenKind = Literal["all", "text", "visual"]
STD_FLOOR = 1e-4
Plane = NDArray[np.float64]


# -- advantages --------------------------------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, *, over_std: bool = True) -> Tensor:
    """(r − mean) / (std + 1e-4) within a group, Float64[n], with the population's standard deviation.

    A missing reward is NaN: it stays out of mean and deviation and its advantage is NaN. ``over_std`` False leaves the
    division out (Dr. GRPO, arXiv 2503.20783).
    """
    rewards = rewards.double()
    there = rewards[~rewards.isnan()]
    if len(there) == 0:
        return rewards
    centred = rewards - there.mean()
    return centred / (there.std(correction=0) + STD_FLOOR) if over_std else centred


def has_signal(rewards: Tensor) -> bool:
    """Whether a group prefers anything: two rewards that are there and differ."""
    there = rewards[~rewards.isnan()]
    return len(there) > 1 and bool((there != there[0]).any())


def token_advantages(
    layout: SequenceLayout, rollout: Rollout, scores: Sequence[Score], advantages: Plane, local: float
) -> tuple[Plane, ...]:
    """For each completion what each of its tokens is credited with, float64[tokens]: its advantage, as in GRPO.

    A code gets the share ``local`` from its place in place of it. An edit that the reward can't take apart, such as one
    that isn't finished, keeps its advantage everywhere. Raises UsageError if the reward takes none apart.
    """
    found = [np.full(len(each.ids), advantage) for each, advantage in zip(rollout.completions, advantages, strict=True)]
    if not local:
        return tuple(found)
    apart = [number for number, score in enumerate(scores) if score.places is not None]
    if not apart and any(rollout.finished):
        what = "this reward doesn't say which part of a picture is better, so local_credit can't be used with it"
        raise UsageError(what, where="local_credit", hint="reward=reference does; or leave local_credit at 0")
    compared = place_advantages([place for score in scores if (place := score.places) is not None])
    for number, places in zip(apart, compared, strict=True):
        codes = rollout.parsed[number].codes
        if codes is None:
            continue
        visual = layout.vocabulary.is_visual(rollout.completions[number].ids)
        at_codes = resize_nearest(places, codes.shape[0], codes.shape[1]).ravel()
        found[number][visual] = (1 - local) * advantages[number] + local * at_codes
    return tuple(found)


def place_advantages(places: Sequence[Plane]) -> list[Plane]:
    """Each edit's figures [h, w] less the group's mean at that place, over the deviation of all of them, everywhere.

    So a place that all edits have alike says nothing, and the whole has the scale of an advantage.
    """
    if not places:
        return []
    stacked = np.stack(places)
    centred = stacked - stacked.mean(axis=0)
    return list(centred / (np.sqrt(np.square(centred).mean()) + STD_FLOOR))


def resize_nearest(plane: Plane, height: int, width: int) -> Plane:
    """A plane on another grid, each place from the one it lies in."""
    rows = np.arange(height) * plane.shape[0] // height
    columns = np.arange(width) * plane.shape[1] // width
    found: Plane = plane[rows[:, None], columns]
    return found


# -- loss --------------------------------------------------------------------------------------------------------------


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """exp(ref − logp) − 1 − (ref − logp) for each token: never negative, its mean the KL divergence from the reference.

    Schulman, "Approximating KL divergence", 2020.
    """
    difference = reference - logprobs
    return difference.exp() - 1 - difference


@dataclass(frozen=True)
class Objective:
    """What a token's loss is made of; the fields are those of the config."""

    kl_coeff: float
    clip_low: float
    clip_high: float
    entropy_coeff: float

    @staticmethod
    def of(config: RlConfig) -> Objective:
        return Objective(config.kl_coeff, config.clip_low, config.clip_high, config.entropy_coeff)


def token_losses(
    objective: Objective,
    logprobs: Tensor,
    advantage: Tensor,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    entropy: Tensor | None = None,
) -> Tensor:
    """The loss of each token, Float[N]: −logp·A + kl·k3 − entropy_coeff·H.

    ``advantage`` Float[N] is what each token is credited with. With ``old``, the log-probabilities before the first of
    several updates, the first term is PPO's −min(ρ·A, clip(ρ, 1 − low, 1 + high)·A) with ρ = exp(logp − old); where
    they are equal it has the same gradient.
    """
    if old is None:
        loss = -logprobs * advantage
    else:
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
        loss = -torch.minimum(ratio * advantage, clipped * advantage)
    if reference is not None and objective.kl_coeff:
        loss = loss + objective.kl_coeff * k3(logprobs, reference)
    if entropy is not None and objective.entropy_coeff:
        loss = loss - objective.entropy_coeff * entropy
    return loss


def trained_kind(config: RlConfig, iteration: int) -> TokenKind:
    """Which tokens an iteration trains on, counted from 0.

    With ``train_text_tokens_only`` the first ``text_only_steps`` iterations of each cycle train on what is no visual
    code, the others on codes; with ``train_vision_tokens_only`` the first train on codes, the others on everything.
    """
    if config.train_text_tokens_only:
        return "text" if iteration % config.text_only_cycle_steps < config.text_only_steps else "visual"
    if config.train_vision_tokens_only:
        return "visual" if iteration % config.vision_only_cycle_steps < config.vision_only_steps else "all"
    return "all"
