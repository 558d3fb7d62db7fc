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
from earl_cli.training.optimizer_backends import OptimizerBackend
from earl_cli.training.rl.loss import Objective, TokenKind, k3, token_losses, trained_kind
from earl_cli.training.rl.policy import Batch, SampledGroup, pack
from earl_cli.training.rl.rollouts import ScoredGroup
from earl_cli.training.rl.setup import RlRun


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Metrics of rewards and completions of an iteration, over all ranks; ``groups`` are those of this rank."""
    own = [
        (
            [(score.value, dict(score.parts)) for score in group.scores],
            group.rollout.finished,
            [len(completion.ids) for completion in group.rollout.completions],
            group.signal,
        )
        for group in groups
    ]
    gathered = [group for part in all_gather(own) for group in part]
    scores = [score for group in gathered for score in group[0]]
    values = np.array([value for value, _ in scores if value is not None])
    group_values = [[value for value, _ in group[0] if value is not None] for group in gathered]
    metrics = {
        "completions/frac_valid": float(np.mean([valid for group in gathered for valid in group[1]])),
        "completions/mean_length": float(np.mean([length for group in gathered for length in group[2]])),
        "reward/frac_zero_std": float(np.mean([not group[3] for group in gathered])),
        "reward/frac_missing": 1 - len(values) / len(scores),
    }
    if len(values):
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
        metrics |= {"reward/mean": float(values.mean()), "reward/std": float(values.std())}
        metrics |= {"reward/p10": float(low), "reward/p50": float(middle), "reward/p90": float(high)}
        metrics |= {"reward/group_std": float(np.mean([np.std(own) for own in group_values if own]))}
    for name in sorted({name for _, parts in scores for name in parts}):
        metrics[f"rewards/{name}/mean"] = float(np.mean([parts[name] for _, parts in scores if name in parts]))
    return metrics


class PhaseTimer:
    """The seconds that each phase of an iteration takes."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside the context to this phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def metrics(self) -> dict[str, float]:
        """Seconds: ``time/iteration`` since the start of the iteration, and ``time/NAME`` for each phase."""
        phases = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return {"time/iteration": time.monotonic() - self.started, **phases}


@dataclass(frozen=True, eq=False)
class _TrainBatch:
    """A batch, and for each of its tokens, Float32[N], its advantage and its log-probabilities.

    ``sampled`` is that of the sampler, ``reference`` that of the reference model, ``old`` that of the policy before the
    first of several updates. A batch of ``weight`` 0 is run only because the other ranks run one.
    """

    batch: Batch
    advantage: Tensor
    sampled: Tensor
    weight: float
    reference: Tensor | None = None
    old: Tensor | None = None


def update(run: RlRun, iteration: int, groups: Sequence[ScoredGroup], timer: PhaseTimer) -> dict[str, float]:
    """Update the policy, with one or several optimizer steps on the same rollouts; returns metrics.

    The loss is the sum over the trained tokens of all ranks, divided by their number. Raises EarlError if a gradient is
    not finite.
    """
    config = run.config
    kind = trained_kind(config, iteration)
    masks = [token_masks(run, group, kind) for group in groups]
    total = sum(all_gather(sum(int(mask.sum()) for group in masks for mask in group)))
    if total == 0:
        return {}
    device = next(run.backend.policy.parameters()).device
    made = [_train_batch(run, part, device) for part in _batches(groups, masks, config.batch_size)]
    batches = [batch for batch in made if batch is not None]
    if run.reference is not None:
        with timer.phase("reference"), run.reference.on_device(), torch.no_grad():
            run.callbacks.phase(iteration, "reference")
            batches = [replace(each, reference=run.reference.logprobs(each.batch)) for each in batches]
    sums = _MetricSums()
    norm, rate = 0.0, learning_rate(config, iteration)
    with timer.phase("update"):
        if config.updates_per_iteration > 1:
            with torch.no_grad():
                batches = [replace(each, old=run.backend.forward(each.batch, entropies=False)[0]) for each in batches]
        run.callbacks.phase(iteration, "update")
        for number in range(config.updates_per_iteration):
            norm = _optimize(run.backend, config, batches, total, rate, sums if number == 0 else None)
            if not math.isfinite(norm):
                raise EarlError(
                    f"the gradient is not finite in iteration {iteration}",
                    where=str(config.folder),
                    hint="the last checkpoint is kept; try a lower learning_rate",
                )
    return {**sums.means(total), "grad_norm": norm, "learning_rate": rate}


def _optimize(
    backend: OptimizerBackend,
    config: RlConfig,
    batches: Sequence[_TrainBatch],
    total: int,
    rate: float,
    sums: _MetricSums | None,
) -> float:
    """One optimizer step; returns the norm of the gradient before clipping. Adds its metrics to ``sums``."""
    objective = Objective.of(config)
    for each in batches:
        logprobs, entropies = backend.forward(each.batch, entropies=config.entropy_coeff > 0)
        losses = token_losses(
            objective, logprobs, each.advantage, old=each.old, reference=each.reference, entropy=entropies
        )
        backend.backward(losses.sum() * (each.weight / total))
        if sums is not None:
            sums.add(config, each, logprobs.detach(), losses.detach())
    return backend.step(rate)


def token_masks(run: RlRun, group: ScoredGroup, kind: TokenKind) -> list[NDArray[np.bool_]]:
    """The trained tokens of each completion, bool[n].

    These are the tokens that were sampled and not forced by the grammar (all with ``train_forced_tokens``), of the kind
    that is trained. A completion without a reward has none, nor has a group without signal if those are dropped.
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
    """Some completions of a group, and the masks of their trained tokens."""

    group: ScoredGroup
    masks: Sequence[NDArray[np.bool_]]
    members: slice


def _batches(
    groups: Sequence[ScoredGroup], masks: Sequence[Sequence[NDArray[np.bool_]]], size: int
) -> list[list[_GroupSlice]]:
    """Batches of ``size`` completions: several whole groups, or slices of one group."""
    slices = [
        _GroupSlice(group, chosen[start : start + size], slice(start, start + size))
        for group, chosen in zip(groups, masks, strict=True)
        for start in range(0, len(group.scores), size)
    ]
    count = max(1, size // len(groups[0].scores)) if groups else 1
    return [slices[start : start + count] for start in range(0, len(slices), count)]


def _train_batch(run: RlRun, part: Sequence[_GroupSlice], device: torch.device) -> _TrainBatch | None:
    """A batch of these completions; None if all of their gradients are zero."""
    regularized = bool(run.config.kl_coeff or run.config.entropy_coeff)
    masks = [
        [mask & (piece.group.signal or regularized) for mask in piece.masks]  # else its gradient is zero
        for piece in part
    ]
    weight, batch = 1.0, pack(_sampled(part, masks), device)
    if batch is None and run.backend.independent:
        return None
    if batch is None:  # the other ranks run a batch too
        masks = [[np.ones_like(mask) for mask in chosen] for chosen in masks]
        weight, batch = 0.0, pack(_sampled(part, masks), device)
        assert batch is not None
    chosen = [mask for group in masks for mask in group]
    completions = [each for piece in part for each in piece.group.rollout.completions[piece.members]]
    token_advantages = [each for piece in part for each in piece.group.token_advantages[piece.members]]
    sampled = np.concatenate([each.logprobs[mask] for each, mask in zip(completions, chosen, strict=True)])
    advantage = np.concatenate([each[mask] for each, mask in zip(token_advantages, chosen, strict=True)])
    return _TrainBatch(
        batch,
        advantage=torch.from_numpy(np.nan_to_num(advantage)).float().to(device),
        sampled=torch.from_numpy(sampled).to(device),
        weight=weight,
    )


def _sampled(part: Sequence[_GroupSlice], masks: Sequence[Sequence[NDArray[np.bool_]]]) -> list[SampledGroup]:
    return [
        SampledGroup(
            np.asarray(piece.group.rollout.request.prompt, dtype=np.int64),
            tuple(each.ids for each in piece.group.rollout.completions[piece.members]),
            tuple(chosen),
        )
        for piece, chosen in zip(part, masks, strict=True)
    ]


def learning_rate(config: RlConfig, iteration: int) -> float:
    """Constant after a linear warmup over ``warmup_iterations``."""
    return config.learning_rate * min(1.0, (iteration + 1) / (config.warmup_iterations + 1))


class _MetricSums:
    """Sums of metrics over the tokens of an update on this rank, for means over all ranks."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, config: RlConfig, batch: _TrainBatch, logprobs: Tensor, losses: Tensor) -> None:
        """Add the tokens of a batch."""
        found = {"loss": losses, "entropy": -logprobs, "tokens": torch.ones_like(logprobs)}
        if batch.reference is not None:
            found["kl"] = k3(logprobs, batch.reference)
        if config.separate_vocabularies and config.emu3_use_logit_processor:
            found["sampler_mismatch"] = (logprobs - batch.sampled).abs()
        for name, values in found.items():
            self.values[name] = self.values.get(name, torch.zeros(())) + batch.weight * values.sum().double().cpu()

    def means(self, total: int) -> dict[str, float]:
        """The loss divided by ``total`` tokens, and the means of the other metrics over the tokens that were run.

        ``entropy`` is the mean of −log p, an unbiased estimate. ``sampler_mismatch`` is the mean absolute difference of
        the log-probabilities of policy and sampler, in nats.
        """
        ranks = all_gather({name: float(value) for name, value in self.values.items()})
        sums = {name: sum(own.get(name, 0.0) for own in ranks) for own in ranks for name in own}
        tokens = sums.pop("tokens", 0.0)
        return {name: value / (total if name == "loss" else tokens) for name, value in sums.items() if tokens}
