"""Reinforcement learning by GRPO, as the paper has it (arXiv 2508.01119, section 3): the loop, top to bottom.

Draw prompts, sample a group of edits for each, judge them, compare every edit with its group, move the policy towards
the better ones and not far from the reference, once; then again. Whatever is random follows from the seed and the
iteration's number, so that a run which was killed goes on as if nothing had happened.
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

VALIDATION = 1 << 32  # in place of an iteration's number: validation has its own seeds, the same every time
BACKOFF = (5.0, 60.0)  # seconds between two looks at a judge that is down: the first, the longest


def train_policy(run: RlRun, start: int = 0, *, validated: bool = False) -> None:
    """Train from iteration ``start`` to the last; ``validated`` says that the validation due there has been done.

    Raises EarlError if the loss or a gradient is not finite. After a stop signal it writes a checkpoint of the last
    iteration whose update is done, and raises `TrainingStopped`.
    """
    config, callbacks = run.config, run.callbacks
    if len(run.validation_prompts) and start % config.validate_every == 0 and not validated:
        found = validate(run, start)
        if start:
            callbacks.checkpoint(start - 1, found)
    for iteration in range(start, config.num_iterations):
        clock = PhaseTimer()
        prompts = sample_prompts(
            run.prompts, config.prompts_per_iteration, config.generations_per_sample, config.random_seed, iteration
        )
        with clock.phase("sampling"):
            callbacks.phase(iteration, "sampling")
            rollouts = sample_policy(run, run.rows, rank_share(prompts), partial(callbacks.sampling, iteration))
            stop_if_requested(run, iteration)
        assert rollouts is not None
        with clock.phase("reward"):
            callbacks.phase(iteration, "reward")
            scores = score_edits(run, iteration, decode_edits(run.vision, run.rows, rollouts))
        groups = score_groups(config, run.layout, rollouts, scores)
        learned = update(run, iteration, groups, clock)
        step = iteration + 1
        logged = step % config.log_episodes_every_n_iterations == 0
        shown = [group for part in all_gather(groups if logged else []) for group in part]
        callbacks.iteration(step, {**learned, **rollout_metrics(groups), **clock.metrics()}, shown)
        last = step == config.num_iterations
        stop_if_requested(run, step)
        found = None
        if len(run.validation_prompts) and (step % config.validate_every == 0 or last):
            found = validate(run, step)
        best = found is not None and callbacks.is_best(found)
        if step % config.save_checkpoints_every_n_iterations == 0 or last or best:
            callbacks.checkpoint(iteration, found)


def stop_if_requested(run: RlRun, done: int) -> None:
    """Raises `TrainingStopped` after a checkpoint if any process was sent a signal; ``done`` iterations are."""
    number = run.stop_signal.agreed_number()
    if number is not None:
        if done:
            run.callbacks.checkpoint(done - 1, None)
        raise TrainingStopped(number, done)


# -- sampling and judging ----------------------------------------------------------------------------------------------


def rank_share(prompts: Sequence[RolloutPrompt]) -> Sequence[RolloutPrompt]:
    """This process's share: equal parts, one after another."""
    each = math.ceil(len(prompts) / world_size())
    return prompts[rank() * each : (rank() + 1) * each]


def sample_policy(
    run: RlRun, rows: DatasetRows, prompts: Sequence[RolloutPrompt], on_progress: OnProgress | None = None
) -> list[Rollout] | None:
    """Sample from the policy as it is; None if a signal asked this process to stop meanwhile."""
    config = run.config
    with run.learner.full_model() as language, run.engine(language) as engine:
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


def score_edits(run: RlRun, iteration: int, drawn: Sequence[Edit]) -> list[Score]:
    """Scores of edits. While the judge of any process is down all wait, after a checkpoint, and ask again.

    ``iteration`` are done. Raises `TrainingStopped` as `stop_if_requested`.
    """
    waited = 0.0
    scores: list[Score] | None = None if drawn else []
    while True:
        problem: EarlError | None = None
        if scores is None:
            try:
                scores = run.stop_signal.run_unless_stopped(lambda: run.reward(drawn))
            except JudgeDownError as failure:
                problem = failure
        problems = [each for each in all_gather(problem) if each is not None]
        stop_if_requested(run, iteration)
        if not problems and scores is not None:
            return scores
        if waited == 0:
            run.callbacks.waiting(iteration, problems[0])
        patience = run.config.judge_patience
        if patience is not None and waited >= patience:
            raise problems[0]
        pause = min(max(BACKOFF[0], waited), BACKOFF[1])
        run.stop_signal.run_unless_stopped(partial(run.sleep, pause))
        waited += pause


def score_groups(
    config: RlConfig, layout: SequenceLayout, rollouts: Sequence[Rollout], scores: Sequence[Score]
) -> list[ScoredGroup]:
    """Every group with its scores and advantages; ``scores`` are those of all completions, group after group."""
    groups = []
    left = iter(scores)
    for rollout in rollouts:
        own = tuple(next(left) for _ in rollout.completions)
        rewards = reward_values(own)
        found = group_advantages(rewards, over_std=config.advantage_over_std).numpy()
        per_token = token_advantages(layout, rollout, own, found, config.local_credit)
        groups.append(ScoredGroup(rollout, own, found, per_token, has_signal(rewards)))
    return groups


def reward_values(scores: Sequence[Score]) -> Tensor:
    """The values Float64[n], NaN where there is none."""
    values = [math.nan if score.value is None else score.value for score in scores]
    return torch.tensor(values, dtype=torch.float64)


def validate(run: RlRun, step: int) -> float | None:
    """The policy's reward on prompts that it isn't trained on, one sample each, with the same seeds every time.

    None if no edit got a reward. Raises `TrainingStopped` as `stop_if_requested`; a resumed run validates again.
    """
    assert run.validation_data is not None
    prompts = [
        RolloutPrompt(int(row), seeds(1, run.config.random_seed, VALIDATION, number))
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
