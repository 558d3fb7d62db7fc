"""The training loop of GRPO as in the paper (arXiv 2508.01119, section 3), top to bottom.

An iteration samples prompts, samples a group of edits for each, scores them, computes the advantage of each edit in its
group, and updates the policy. All random numbers follow from the seed and the number of the iteration, so that a
resumed run gives the same weights as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from earl_cli.config.rl import RlConfig
from earl_cli.data.batches import DatasetRows
from earl_cli.errors import EarlError
from earl_cli.generation.engine import OnProgress
from earl_cli.rewards.reward import Edit, JudgeDownError, Score
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.training.common.distributed import all_gather, rank, world_size
from earl_cli.training.common.stopping import TrainingStopped
from earl_cli.training.rl.loss import group_advantages, has_signal, token_advantages
from earl_cli.training.rl.rollouts import (
    Rollout,
    RolloutPrompt,
    ScoredGroup,
    decode_edits,
    generate_rollouts,
    sample_prompts,
    seeds,
)
from earl_cli.training.rl.setup import RlRun
from earl_cli.training.rl.update import PhaseTimer, rollout_metrics, update

VALIDATION = 1 << 32  # in place of an iteration's number: the seeds of validation are the same every time
BACKOFF = (5.0, 60.0)  # seconds between two calls of a judge that is down: at first, at most


def train_policy(run: RlRun, start: int = 0, *, validated: bool = False) -> None:
    """Train from iteration ``start`` to the last; with ``validated`` the validation before ``start`` is skipped.

    Raises EarlError if the loss or a gradient is not finite. After a stop signal it writes a checkpoint of the last
    iteration whose update is done, and raises `TrainingStopped`.
    """
    config, callbacks = run.config, run.callbacks
    if len(run.validation_prompts) and start % config.validate_every == 0 and not validated:
        found = validate(run, start)
        if start:
            callbacks.checkpoint(start - 1, found)
    for iteration in range(start, config.num_iterations):
        timer = PhaseTimer()
        prompts = sample_prompts(
            run.prompts, config.prompts_per_iteration, config.generations_per_sample, config.seed, iteration
        )
        with timer.phase("sampling"):
            callbacks.phase(iteration, "sampling")
            rollouts = sample_policy(run, run.rows, rank_share(prompts), partial(callbacks.sampling, iteration))
            stop_if_requested(run, iteration)
        assert rollouts is not None
        with timer.phase("reward"):
            callbacks.phase(iteration, "reward")
            scores = score_edits(run, iteration, decode_edits(run.vision, run.rows, rollouts))
        groups = score_groups(config, run.layout, rollouts, scores)
        learned = update(run, iteration, groups, timer)
        step = iteration + 1
        logged = step % config.log_episodes_every_n_iterations == 0
        shown = [group for part in all_gather(groups if logged else []) for group in part]
        callbacks.iteration(step, {**learned, **rollout_metrics(groups), **timer.metrics()}, shown)
        last = step == config.num_iterations
        stop_if_requested(run, step)
        found = None
        if len(run.validation_prompts) and (step % config.validate_every == 0 or last):
            found = validate(run, step)
        best = found is not None and callbacks.is_best(found)
        if step % config.checkpoint_every == 0 or last or best:
            callbacks.checkpoint(iteration, found)


def stop_if_requested(run: RlRun, done: int) -> None:
    """Write a checkpoint of ``done`` iterations and raise `TrainingStopped` if any rank received a stop signal."""
    number = run.stop_signal.agreed_number()
    if number is not None:
        if done:
            run.callbacks.checkpoint(done - 1, None)
        raise TrainingStopped(number, done)


# -- sampling and scoring ----------------------------------------------------------------------------------------------


def rank_share(prompts: Sequence[RolloutPrompt]) -> Sequence[RolloutPrompt]:
    """The prompts of this rank: consecutive slices of equal length."""
    each = math.ceil(len(prompts) / world_size())
    return prompts[rank() * each : (rank() + 1) * each]


def sample_policy(
    run: RlRun, rows: DatasetRows, prompts: Sequence[RolloutPrompt], on_progress: OnProgress | None = None
) -> list[Rollout] | None:
    """Sample from the policy with its present weights; None if this rank received a stop signal meanwhile."""
    config = run.config
    with run.backend.full_model() as language, run.engine(language) as engine:
        return run.stop_signal.run_unless_stopped(
            lambda: generate_rollouts(
                engine,
                run.layout,
                rows,
                prompts,
                config.mode,
                config.sampling,
                grammar=config.emu3_use_logit_processor,
                overlong=config.overlong,
                on_progress=on_progress,
            )
        )


def score_edits(run: RlRun, iteration: int, edits: Sequence[Edit]) -> list[Score]:
    """The scores of edits. While the judge of any rank is down, all ranks write a checkpoint and retry with backoff.

    ``iteration`` iterations are done. Raises `TrainingStopped` as `stop_if_requested`, and JudgeDownError after
    ``judge_outage_timeout`` seconds.
    """
    waited = 0.0
    scores: list[Score] | None = None if edits else []
    while True:
        problem: EarlError | None = None
        if scores is None:
            try:
                scores = run.stop_signal.run_unless_stopped(lambda: run.reward(edits))
            except JudgeDownError as failure:
                problem = failure
        problems = [each for each in all_gather(problem) if each is not None]
        stop_if_requested(run, iteration)
        if not problems and scores is not None:
            return scores
        if waited == 0:
            run.callbacks.waiting(iteration, problems[0])
        timeout = run.config.judge_outage_timeout
        if timeout is not None and waited >= timeout:
            raise problems[0]
        pause = min(max(BACKOFF[0], waited), BACKOFF[1])
        run.stop_signal.run_unless_stopped(partial(run.sleep, pause))
        waited += pause


def score_groups(
    config: RlConfig, layout: SequenceLayout, rollouts: Sequence[Rollout], scores: Sequence[Score]
) -> list[ScoredGroup]:
    """The groups with their scores and advantages; ``scores`` are those of all completions, group after group."""
    groups = []
    remaining = iter(scores)
    for rollout in rollouts:
        own = tuple(next(remaining) for _ in rollout.completions)
        rewards = reward_values(own)
        advantages = group_advantages(rewards, over_std=config.advantage_over_std).numpy()
        per_token = token_advantages(layout, rollout, own, advantages, config.per_token_advantage)
        groups.append(ScoredGroup(rollout, own, advantages, per_token, has_signal(rewards)))
    return groups


def reward_values(scores: Sequence[Score]) -> Tensor:
    """The rewards Float64[n], NaN where one is missing."""
    values = [math.nan if score.value is None else score.value for score in scores]
    return torch.tensor(values, dtype=torch.float64)


def validate(run: RlRun, step: int) -> float | None:
    """The mean reward of the policy on validation prompts, one sample each, with the same seeds every time.

    None if no edit got a reward. Raises `TrainingStopped` as `stop_if_requested`; a resumed run validates again.
    """
    assert run.validation_data is not None
    prompts = [
        RolloutPrompt(int(row), seeds(1, run.config.seed, VALIDATION, number))
        for number, row in enumerate(run.validation_prompts)
    ]
    run.callbacks.phase(step, "validation")
    rollouts = sample_policy(run, run.validation_data, rank_share(prompts))
    stop_if_requested(run, step)
    assert rollouts is not None
    scores = score_edits(run, step, decode_edits(run.vision, run.validation_data, rollouts))
    groups = [group for part in all_gather(score_groups(run.config, run.layout, rollouts, scores)) for group in part]
    values = reward_values([score for group in groups for score in group.scores])
    values = values[~values.isnan()]
    metrics = {"validation/reward/frac_missing": 1 - len(values) / len(groups)}
    if len(values):
        metrics["validation/reward/mean"] = float(values.mean())
    run.callbacks.validation(step, metrics, groups)
    return metrics.get("validation/reward/mean")
