"""The mathematics of GRPO (Shao et al., arXiv 2402.03300) on images: advantages, the KL estimate, the loss of a token.

Pure functions of tensors; which tokens count and how the sum is divided is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from earl_cli.config.rl import RlConfig

TokenKind = Literal["all", "text", "visual"]
STD_FLOOR = 1e-4


def advantages(rewards: Tensor, *, over_std: bool = True) -> Tensor:
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
