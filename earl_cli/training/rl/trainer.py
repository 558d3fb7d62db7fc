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
from earl_cli.generation.engine import OnProgress, SamplingParams
from earl_cli.rewards.reward import Edit, JudgeDownError, Score
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.training.common.distributed import gathered, rank, world_size
from earl_cli.training.common.stopping import Stopped
from earl_cli.training.rl.loss import advantages, has_signal, token_advantages
from earl_cli.training.rl.rollouts import Rollout, RolloutPrompt, ScoredGroup, draw_prompts, edits, sample, seeds
from earl_cli.training.rl.setup import RlRun
from earl_cli.training.rl.update import Clock, figures_of, update

VALIDATION = 1 << 32  # in place of an iteration's number: validation has its own seeds, the same every time
WAITS = (5.0, 60.0)  # seconds between two looks at a judge that is down: the first, the longest


def reinforce(run: RlRun, start: int = 0, *, validated: bool = False) -> None:
    """Train from iteration ``start`` to the last; ``validated`` says that the validation due there has been done.

    Raises EarlError if loss or gradients stop being numbers, and `Stopped` once the checkpoint is written that a signal
    asked for: of the last iteration whose update is done.
    """
    config, watcher = run.config, run.watcher
    if len(run.validation) and start % config.validate_every == 0 and not validated:
        found = validate(run, start)
        if start:
            watcher.checkpoint(start - 1, found)
    for iteration in range(start, config.num_iterations):
        clock = Clock()
        prompts = draw_prompts(
            run.prompts, config.prompts_per_iteration, config.generations_per_sample, config.random_seed, iteration
        )
        with clock.phase("sampling"):
            watcher.phase(iteration, "sampling")
            rollouts = roll_out(run, run.rows, of_this_process(prompts), partial(watcher.sampling, iteration))
            stop_if_asked(run, iteration)
        assert rollouts is not None
        with clock.phase("reward"):
            watcher.phase(iteration, "reward")
            scores = score(run, iteration, edits(run.vision, run.rows, rollouts))
        groups = compare(config, run.layout, rollouts, scores)
        learned = update(run, iteration, groups, clock)
        step = iteration + 1
        logged = step % config.log_episodes_every_n_iterations == 0
        shown = [group for part in gathered(groups if logged else []) for group in part]
        watcher.iteration(step, {**learned, **figures_of(groups), **clock.figures()}, shown)
        last = step == config.num_iterations
        stop_if_asked(run, step)
        found = None
        if len(run.validation) and (step % config.validate_every == 0 or last):
            found = validate(run, step)
        best = found is not None and watcher.is_best(found)
        if step % config.save_checkpoints_every_n_iterations == 0 or last or best:
            watcher.checkpoint(iteration, found)


def stop_if_asked(run: RlRun, done: int) -> None:
    """Raises `Stopped` after a checkpoint if any process was sent a signal; ``done`` iterations are."""
    number = run.stopping.agreed()
    if number is not None:
        if done:
            run.watcher.checkpoint(done - 1, None)
        raise Stopped(number, done)


# -- sampling and judging ----------------------------------------------------------------------------------------------


def of_this_process(prompts: Sequence[RolloutPrompt]) -> Sequence[RolloutPrompt]:
    """This process's share: equal parts, one after another."""
    each = math.ceil(len(prompts) / world_size())
    return prompts[rank() * each : (rank() + 1) * each]


def roll_out(
    run: RlRun, rows: DatasetRows, prompts: Sequence[RolloutPrompt], on_progress: OnProgress | None = None
) -> list[Rollout] | None:
    """Sample from the policy as it is; None if a signal asked this process to stop meanwhile."""
    config = run.config
    sampling = SamplingParams(config.temperature, config.top_k, config.top_p)
    with run.learner.whole() as language, run.engine(language) as engine:
        return run.stopping.unless_asked(
            lambda: sample(
                engine,
                run.layout,
                rows,
                prompts,
                config.mode,
                sampling,
                grammar=config.emu3_use_logit_processor,
                overlong=config.overlong,
                on_progress=on_progress,
            )
        )


def score(run: RlRun, iteration: int, drawn: Sequence[Edit]) -> list[Score]:
    """Scores of edits. While the judge of any process is down all wait, after a checkpoint, and ask again.

    ``iteration`` are done. Raises `Stopped` as `stop_if_asked`.
    """
    waited = 0.0
    scores: list[Score] | None = None if drawn else []
    while True:
        problem: EarlError | None = None
        if scores is None:
            try:
                scores = run.stopping.unless_asked(lambda: run.reward(drawn))
            except JudgeDownError as failure:
                problem = failure
        problems = [each for each in gathered(problem) if each is not None]
        stop_if_asked(run, iteration)
        if not problems and scores is not None:
            return scores
        if waited == 0:
            run.watcher.waiting(iteration, problems[0])
        patience = run.config.judge_patience
        if patience is not None and waited >= patience:
            raise problems[0]
        pause = min(max(WAITS[0], waited), WAITS[1])
        run.stopping.unless_asked(partial(run.sleep, pause))
        waited += pause


def compare(
    config: RlConfig, layout: SequenceLayout, rollouts: Sequence[Rollout], scores: Sequence[Score]
) -> list[ScoredGroup]:
    """Every group with its scores and advantages; ``scores`` are those of all completions, group after group."""
    groups = []
    left = iter(scores)
    for rollout in rollouts:
        own = tuple(next(left) for _ in rollout.completions)
        rewards = rewards_of(own)
        found = advantages(rewards, over_std=config.advantage_over_std).numpy()
        credits = token_advantages(layout, rollout, own, found, config.local_credit)
        groups.append(ScoredGroup(rollout, own, found, credits, has_signal(rewards)))
    return groups


def rewards_of(scores: Sequence[Score]) -> Tensor:
    """The values Float64[n], NaN where there is none."""
    values = [math.nan if score.value is None else score.value for score in scores]
    return torch.tensor(values, dtype=torch.float64)


def validate(run: RlRun, step: int) -> float | None:
    """The policy's reward on prompts that it isn't trained on, one sample each, with the same seeds every time.

    None if not a single one could be had. Raises `Stopped` as `stop_if_asked`; the validation is made up for later.
    """
    assert run.held is not None
    prompts = [
        RolloutPrompt(int(row), seeds(1, run.config.random_seed, VALIDATION, number))
        for number, row in enumerate(run.validation)
    ]
    run.watcher.phase(step, "validation")
    rollouts = roll_out(run, run.held, of_this_process(prompts))
    stop_if_asked(run, step)
    assert rollouts is not None
    scores = score(run, step, edits(run.vision, run.held, rollouts))
    groups = [group for part in gathered(compare(run.config, run.layout, rollouts, scores)) for group in part]
    values = rewards_of([score for group in groups for score in group.scores])
    values = values[~values.isnan()]
    figures = {"validation_missing": 1 - len(values) / len(groups)}
    if len(values):
        figures["validation_reward"] = float(values.mean())
    run.watcher.validation(step, figures, groups)
    return figures.get("validation_reward")
