"""One policy update from scored groups, and the metrics of an iteration."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earl_cli.config.rl import RlConfig
from earl_cli.errors import EarlError
from earl_cli.training.common.distributed import all_gather
from earl_cli.training.rl.loss import Objective, TokenKind, k3, token_losses, trained_kind
from earl_cli.training.rl.policy import Batch, SampledGroup, pack
from earl_cli.training.rl.rollouts import ScoredGroup
from earl_cli.training.rl.setup import RlRun


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards, lengths and signal of an iteration, over all processes."""
    own = [
        (
            [(score.value, dict(score.parts)) for score in group.scores],
            group.rollout.finished,
            [len(completion.ids) for completion in group.rollout.completions],
            group.signal,
        )
        for group in groups
    ]
    every = [group for part in all_gather(own) for group in part]
    scores = [score for group in every for score in group[0]]
    values = np.array([value for value, _ in scores if value is not None])
    spreads = [np.std(there) for group in every if (there := [value for value, _ in group[0] if value is not None])]
    metrics = {
        "completions/frac_valid": float(np.mean([done for group in every for done in group[1]])),
        "completions/mean_length": float(np.mean([length for group in every for length in group[2]])),
        "reward/frac_zero_std": float(np.mean([not group[3] for group in every])),
        "reward/frac_missing": 1 - len(values) / len(scores),
    }
    if len(values):
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
        metrics |= {"reward/mean": float(values.mean()), "reward/std": float(values.std())}
        metrics |= {"reward/p10": float(low), "reward/p50": float(middle), "reward/p90": float(high)}
        metrics |= {"reward/group_std": float(np.mean(spreads))}
    for name in sorted({name for _, parts in scores for name in parts}):
        metrics[f"rewards/{name}/mean"] = float(np.mean([parts[name] for _, parts in scores if name in parts]))
    return metrics


class PhaseTimer:
    """The seconds that each phase of an iteration takes."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.spent: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done within for this phase."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begun

    def metrics(self) -> dict[str, float]:
        """Seconds: ``time/iteration`` in all, and ``time/NAME`` of each phase."""
        parts = {f"time/{name}": spent for name, spent in self.spent.items()}
        return {"time/iteration": time.monotonic() - self.begun, **parts}


@dataclass(frozen=True, eq=False)
class _TrainBatch:
    """A batch with what is known of each of its tokens, Float32[N]; ``weight`` 0 is a batch run for company only."""

    batch: Batch
    advantage: Tensor
    sampled: Tensor
    weight: float
    reference: Tensor | None = None
    old: Tensor | None = None


def update(run: RlRun, iteration: int, groups: Sequence[ScoredGroup], clock: PhaseTimer) -> dict[str, float]:
    """Move the policy: loss = Σ over tokens / their number, both over all processes, and one optimizer step for it.

    Returns what is to be seen of it. Raises EarlError for a gradient that is no number.
    """
    config, learner = run.config, run.learner
    objective = Objective.of(config)
    device = next(learner.policy.parameters()).device
    kind = trained_kind(config, iteration)
    masks = [token_masks(run, group, kind) for group in groups]
    counted = sum(int(mask.sum()) for group in masks for mask in group)
    total = sum(all_gather(counted))
    if total == 0:
        return {}
    work = [_train_batch(run, part, device) for part in _batches(groups, masks, config.per_device_batch_size)]
    ready = [each for each in work if each is not None]
    if run.reference is not None:
        with clock.phase("reference"), run.reference.on_device(), torch.no_grad():
            run.callbacks.phase(iteration, "reference")
            ready = [replace(each, reference=run.reference.logprobs(each.batch)) for each in ready]
    if config.updates_per_iteration > 1:
        with clock.phase("update"), torch.no_grad():
            ready = [replace(each, old=learner.forward(each.batch, entropies=False)[0]) for each in ready]
    sums = _MetricSums()
    norm, rate = 0.0, learning_rate(config, iteration)
    with clock.phase("update"):
        run.callbacks.phase(iteration, "update")
        for number in range(config.updates_per_iteration):
            for each in ready:
                logprobs, entropies = learner.forward(each.batch, entropies=config.entropy_coeff > 0)
                losses = token_losses(
                    objective, logprobs, each.advantage, old=each.old, reference=each.reference, entropy=entropies
                )
                learner.backward(losses.sum() * (each.weight / total))
                if number == 0:
                    sums.add(config, each, logprobs.detach(), losses.detach())
            norm = learner.step(rate)
            if not math.isfinite(norm):
                raise EarlError(
                    f"the gradients are no numbers any more in iteration {iteration}",
                    where=str(config.folder),
                    hint="the last checkpoint is kept; try a lower learning_rate",
                )
    return {**sums.means(total), "grad_norm": norm, "learning_rate": rate}


def token_masks(run: RlRun, group: ScoredGroup, kind: TokenKind) -> list[NDArray[np.bool_]]:
    """For each completion which of its tokens count, bool[n].

    Those the sampler had a choice about (all with ``train_forced_tokens``), of the kind that is trained; none of a
    completion whose reward is missing, and none of a group without signal if those are dropped.
    """
    config = run.config
    dropped = config.drop_groups_without_signal and not group.signal
    masks = []
    for completion, advantage in zip(group.rollout.completions, group.advantages, strict=True):
        mask = completion.sampled | config.train_forced_tokens
        if kind != "all":
            mask = mask & (run.layout.vocabulary.is_visual(completion.ids) == (kind == "visual"))
        masks.append(mask & (not dropped and not math.isnan(advantage)))
    return masks


@dataclass(frozen=True, eq=False)
class _GroupSlice:
    """Some completions of a group, and which of their tokens count."""

    group: ScoredGroup
    masks: Sequence[NDArray[np.bool_]]
    which: slice


def _batches(
    groups: Sequence[ScoredGroup], masks: Sequence[Sequence[NDArray[np.bool_]]], size: int
) -> list[list[_GroupSlice]]:
    """Batches of ``size`` completions: whole groups together, or a group in pieces."""
    pieces = [
        _GroupSlice(group, chosen[start : start + size], slice(start, start + size))
        for group, chosen in zip(groups, masks, strict=True)
        for start in range(0, len(group.scores), size)
    ]
    together = max(1, size // len(groups[0].scores)) if groups else 1
    return [pieces[start : start + together] for start in range(0, len(pieces), together)]


def _train_batch(run: RlRun, part: Sequence[_GroupSlice], device: torch.device) -> _TrainBatch | None:
    """A batch of these completions, None if nothing is to be learned from them."""
    learns = bool(run.config.kl_coeff or run.config.entropy_coeff)
    masks = [
        [mask & (piece.group.signal or learns) for mask in piece.masks]  # else its gradient is zero
        for piece in part
    ]
    weight, batch = 1.0, pack(_sampled(part, masks), device)
    if batch is None and run.learner.independent:
        return None
    if batch is None:  # the other processes run a batch too
        masks = [[np.ones_like(mask) for mask in chosen] for chosen in masks]
        weight, batch = 0.0, pack(_sampled(part, masks), device)
        assert batch is not None
    chosen = [mask for group in masks for mask in group]
    completions = [each for piece in part for each in piece.group.rollout.completions[piece.which]]
    token_advantages = [each for piece in part for each in piece.group.token_advantages[piece.which]]
    sampled = np.concatenate([each.logprobs[mask] for each, mask in zip(completions, chosen, strict=True)])
    advantage = np.nan_to_num(np.concatenate([each[mask] for each, mask in zip(token_advantages, chosen, strict=True)]))
    return _TrainBatch(
        batch, torch.from_numpy(advantage).float().to(device), torch.from_numpy(sampled).to(device), weight
    )


def _sampled(part: Sequence[_GroupSlice], masks: Sequence[Sequence[NDArray[np.bool_]]]) -> list[SampledGroup]:
    return [
        SampledGroup(
            np.asarray(piece.group.rollout.request.prompt, dtype=np.int64),
            tuple(each.ids for each in piece.group.rollout.completions[piece.which]),
            tuple(chosen),
        )
        for piece, chosen in zip(part, masks, strict=True)
    ]


def learning_rate(config: RlConfig, iteration: int) -> float:
    """Constant, after a linear rise over ``warmup_iterations``."""
    return config.learning_rate * min(1.0, (iteration + 1) / (config.warmup_iterations + 1))


class _MetricSums:
    """Sums over the tokens of an update, in this process, from which means over all processes are made."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, config: RlConfig, work: _TrainBatch, logprobs: Tensor, losses: Tensor) -> None:
        """Take in a batch."""
        found = {"loss": losses, "entropy": -logprobs, "tokens": torch.ones_like(logprobs)}
        if work.reference is not None:
            found["kl"] = k3(logprobs, work.reference)
        if config.separate_language_and_vision_vocabs and config.emu3_use_logit_processor:
            found["sampler_mismatch"] = (logprobs - work.sampled).abs()
        for name, values in found.items():
            self.values[name] = self.values.get(name, torch.zeros(())) + work.weight * values.sum().double().cpu()

    def means(self, total: int) -> dict[str, float]:
        """The loss over all ``total`` tokens, the others' means over those that were run.

        ``entropy`` is the mean of −log p, whose expectation it is.
        """
        parts = all_gather({name: float(value) for name, value in self.values.items()})
        sums = {name: sum(part.get(name, 0.0) for part in parts) for part in parts for name in part}
        run = sums.pop("tokens", 0.0)
        return {name: value / (total if name == "loss" else run) for name, value in sums.items() if run}
