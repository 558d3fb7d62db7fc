"""The mathematics of GRPO (Shao et al., arXiv 2402.03300) on images: advantages, the KL estimate, the token loss.

The advantage of an edit is one number for hundreds of tokens. If a reward has a score for each place of the image
(`Score.places`), the edits of a group are also compared place by place, and each code gets the advantage of its own
place. Only the reward of the whole image measures how a code affects the ones after it, so the two are mixed.
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
    """(r − mean) / (std + 1e-4) within a group, Float64[n], with the population standard deviation.

    A missing reward is NaN: mean and deviation exclude it, and its advantage is NaN. Without ``over_std`` the advantage
    is r − mean (Dr. GRPO, arXiv 2503.20783).
    """
    rewards = rewards.double()
    known = rewards[~rewards.isnan()]
    if len(known) == 0:
        return rewards
    centred = rewards - known.mean()
    return centred / (known.std(correction=0) + STD_FLOOR) if over_std else centred


def has_signal(rewards: Tensor) -> bool:
    """Whether a group has two different rewards; without them all of its advantages are 0."""
    known = rewards[~rewards.isnan()]
    return len(known) > 1 and bool((known != known[0]).any())


def token_advantages(
    layout: SequenceLayout, rollout: Rollout, scores: Sequence[Score], advantages: Plane, local_share: float
) -> tuple[Plane, ...]:
    """The advantage of each token of each completion, float64[tokens]: that of the completion, as in GRPO.

    The advantage of a code is to the share ``local_share`` that of its place in the image. A completion whose score has
    no places, such as one without a valid image, keeps its advantage for all tokens. Raises UsageError if the reward
    gives no score places.
    """
    found = [np.full(len(each.ids), advantage) for each, advantage in zip(rollout.completions, advantages, strict=True)]
    if not local_share:
        return tuple(found)
    with_places = [number for number, score in enumerate(scores) if score.places is not None]
    if not with_places and any(rollout.finished):
        what = "this reward has no scores for the parts of an image, which per_token_advantage needs"
        raise UsageError(
            what, where="per_token_advantage", hint="reward=reference has them; or leave per_token_advantage at 0"
        )
    compared = place_advantages([place for score in scores if (place := score.places) is not None])
    for number, places in zip(with_places, compared, strict=True):
        codes = rollout.parsed[number].codes
        if codes is None:
            continue
        visual = layout.vocabulary.is_visual(rollout.completions[number].ids)
        at_codes = resize_nearest(places, codes.shape[0], codes.shape[1]).ravel()
        found[number][visual] = (1 - local_share) * advantages[number] + local_share * at_codes
    return tuple(found)


def place_advantages(places: Sequence[Plane]) -> list[Plane]:
    """The advantage of each place of each edit, [h, w]: its score minus the group's mean there, over one deviation.

    The deviation is that of all places of all edits, so that the result has the scale of an advantage. A place where
    all edits have the same score has advantage 0.
    """
    if not places:
        return []
    stacked = np.stack(places)
    centred = stacked - stacked.mean(axis=0)
    return list(centred / (np.sqrt(np.square(centred).mean()) + STD_FLOOR))


def resize_nearest(plane: Plane, height: int, width: int) -> Plane:
    """Nearest-neighbour resizing to ``height`` by ``width``."""
    rows = np.arange(height) * plane.shape[0] // height
    columns = np.arange(width) * plane.shape[1] // width
    found: Plane = plane[rows[:, None], columns]
    return found


# -- loss --------------------------------------------------------------------------------------------------------------


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """exp(ref − logp) − 1 − (ref − logp) for each token: never negative, with the KL divergence as its expectation.

    Schulman, "Approximating KL divergence", 2020.
    """
    difference = reference - logprobs
    return difference.exp() - 1 - difference


@dataclass(frozen=True)
class Objective:
    """The settings of the loss, as in the config."""

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

    ``advantage`` Float[N] is the per-token advantage. With ``old``, the log-probabilities before the first of several
    updates, the first term is PPO's −min(ρ·A, clip(ρ, 1 − low, 1 + high)·A) with ρ = exp(logp − old); where the two are
    equal it has the same gradient.
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
    """The kind of tokens that an iteration trains on; iterations count from 0.

    With ``train_text_tokens_only`` the first ``text_only_steps`` iterations of each cycle train on text tokens, the
    others on visual tokens; with ``train_vision_tokens_only`` the first train on visual tokens, the others on all.
    """
    if config.train_text_tokens_only:
        return "text" if iteration % config.text_only_cycle_steps < config.text_only_steps else "visual"
    if config.train_vision_tokens_only:
        return "visual" if iteration % config.vision_only_cycle_steps < config.vision_only_steps else "all"
    return "all"
