"""``earl rl`` with a validated config: show the plan, or train; both run the same checks in the same order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, redirect_stdout
from functools import partial
from typing import Any

import torch
import typer

from earl_cli.commands._training import (
    check_before,
    ending,
    multiple,
    positions,
    problem_of,
    refuse_after,
    show_config,
    show_disk,
    show_memory,
    show_sets,
    stopped,
)
from earl_cli.config.loader import Resolved, read_paths
from earl_cli.config.rl import RlConfig
from earl_cli.console import console
from earl_cli.dashboard import LiveTask, MetricPanel, dashboard, gigabytes, scientific, whole
from earl_cli.data.batches import DatasetRows
from earl_cli.errors import EarlError, UsageError
from earl_cli.files import folder_lock, is_partial, truncate_incomplete_line
from earl_cli.generation.editor import uses_vllm
from earl_cli.generation.engine import Engine
from earl_cli.generation.vllm.environment import check_engine_arguments, require_vllm
from earl_cli.models.bundle import Base, load_vision_of, open_base
from earl_cli.rewards.registry import reward_from_config
from earl_cli.rewards.reward import Edit, Reward, Score
from earl_cli.training.common.checkpoints import (
    CHECKPOINTS,
    TRAINING,
    best,
    changed_data,
    check_origin,
    check_unlocked,
    checkpoint_number,
    is_better,
    run_origin,
    write_origin,
    writing,
)
from earl_cli.training.common.curves import LOG
from earl_cli.training.common.distributed import (
    all_gather,
    init_processes,
    on_rank_zero,
    rank,
    read_slurm_environment,
    report_once,
    set_single_process_environment,
    silence_libraries,
    uses_cpu,
    world_size,
)
from earl_cli.training.common.memory import check_disk_space, rl_disk, rl_memory
from earl_cli.training.common.stopping import StopSignal
from earl_cli.training.common.trackers import is_logged, log_metrics, peak_memory, start_trackers
from earl_cli.training.optimizer_backends import OptimizerBackend, make_backend
from earl_cli.training.rl.rollout_log import write_gallery, write_rollouts
from earl_cli.training.rl.rollouts import ScoredGroup, sequence_lengths
from earl_cli.training.rl.setup import (
    GOAL,
    MODEL,
    AdapterFreeReference,
    RlData,
    RlRun,
    check_resumable,
    load_data,
    load_policy,
    make_engine,
    plan_device,
    resume,
    sampler_memory,
    save_checkpoint,
    save_model,
)
from earl_cli.training.rl.trainer import train_policy

ROLLOUTS, GALLERIES, CACHE = "episodes", "galleries", "judge.sqlite"
COLLECTIVE_TIMEOUT = 7200.0
"""Timeout of collective operations in seconds: another process may be sampling or calling the judge for long."""


def show_plan(resolved: Resolved[RlConfig]) -> None:
    """Show what is known of a run without reading weights, then the error it would end with, if any."""
    config = resolved.config
    read_slurm_environment()
    console.quiet |= rank() > 0
    problem = problem_of(lambda: _check_before(config))
    base = _base(config)
    data = load_data(config, base.layout, positions(base))
    processes = config.processes or world_size()
    problem = problem or problem_of(lambda: _check(config, base, data))
    problem = problem or problem_of(lambda: check_unlocked(config.folder / CHECKPOINTS))
    values = show_config(resolved)
    sets = [
        {"data": name, "rows": size, "coefficient": round(coefficient, 4), "rows_in_the_mixture": count}
        for name, size, coefficient, count in zip(
            data.rows.names, data.rows.sizes, data.mixture.coefficients, data.mixture.counts, strict=True
        )
    ]
    show_sets(sets)
    prompts = config.prompts_per_iteration
    each = f"in each of {processes} processes" if processes > 1 else "in one process"
    console.say(
        f"{config.num_iterations} iterations of {prompts} prompts × {config.generations_per_sample} edits, "
        f"{prompts // processes} prompts {each}: "
        f"each of {len(data.prompts)} prompts {multiple(config.num_iterations * prompts / len(data.prompts))} ×"
    )
    memory = rl_memory(config, base, processes, _longest(config, data))
    parts = show_memory(memory, base, processes, sampler_memory(config, base))
    disk = show_disk(rl_disk(config, base))
    _warn(resolved, data)
    plan = {
        "config": values,
        "origins": resolved.origins,
        "mode": config.mode,
        "data": sets,
        "skipped": data.skipped,
        "prompts": len(data.prompts),
        "validation_rows": len(data.validation_prompts),
        "iterations": config.num_iterations,
        "memory": parts,
        "disk": disk,
    }
    refuse_after(plan, problem)


def _check_before(config: RlConfig) -> None:
    """Checks before model and data are opened."""
    check_before("rl", config, config.folder)
    _check_shares(config, world_size())
    _check_engine(config)


def _check(config: RlConfig, base: Base, data: RlData) -> None:
    """Raises for what can be known before any weight is read."""
    reward_from_config(config, config.folder / CACHE)
    check_origin(config.folder, _origin(config))
    check_resumable(config)
    plan_device(base, config, _longest(config, data))
    check_disk_space(config.folder, rl_disk(config, base))


def _origin(config: RlConfig) -> dict[str, Any]:
    return run_origin("rl", config.model, read_paths(config.train_paths_file) or config.data)


def _warn(resolved: Resolved[RlConfig], data: RlData) -> None:
    """Warn of settings and data that have another effect than expected."""
    config = resolved.config
    if data.skipped:
        console.warn(f"{data.skipped} prompts have too many tokens and are left out")
    if data.validation_skipped:
        console.warn(f"{data.validation_skipped} validation prompts have too many tokens and are left out")
    other = changed_data(config.folder, _origin(config))
    for text in (*config.remarks(resolved.origins), *([other] if other else [])):
        console.warn(text)


def train(resolved: Resolved[RlConfig]) -> None:
    """Train, and write the model."""
    config = resolved.config
    read_slurm_environment()
    if config.sharding != "none":
        set_single_process_environment()
    console.quiet |= rank() > 0  # only the first process prints
    with report_once():
        _check_before(config)
        base = _base(config)
        data = load_data(config, base.layout, positions(base))
        _check(config, base, data)
        _warn(resolved, data)
        reward = reward_from_config(config, config.folder / CACHE)
        with folder_lock(config.folder / CHECKPOINTS, TRAINING) if rank() == 0 else nullcontext():
            _train(config, base, data, reward)


def _train(config: RlConfig, base: Base, data: RlData, reward: Reward) -> None:
    silence_libraries(uses_cpu(config))
    init_processes(cpu=uses_cpu(config), timeout=COLLECTIVE_TIMEOUT + (config.judge_outage_timeout or 0))
    policy, reference, placement = load_policy(base, config, _longest(config, data))
    console.note(f"{placement} · disk: {rl_disk(config, base)}")
    vision = load_vision_of(config.model, device=config.device, revision=config.model_revision).model
    backend = make_backend(policy, config, placement.device)
    if rank() == 0:
        for left in filter(is_partial, config.folder.rglob("*")):  # by a process that was killed
            left.unlink()
        truncate_incomplete_line(config.folder / LOG)
        write_origin(config.folder, _origin(config))
    start = resume(config, backend)
    adapter_free = AdapterFreeReference(backend) if policy.adapted and config.kl_coeff else None
    stop_signal = StopSignal()
    with (
        stopped("iteration", config.folder),
        redirect_stdout(sys.stderr),
        _engine(config, base, data, backend, placement.device) as engine,
        dashboard(f"improving {config.folder.name}", METRICS, unit="iterations") as board,
    ):
        board.update(start, config.num_iterations, {}, "starting")
        recorder, callbacks = _ReasonRecorder(reward), _Callbacks(config, base, backend, data, vision, board, start)
        run = RlRun(
            config=config,
            layout=base.layout,
            rows=data.rows,
            prompts=data.prompts,
            validation_data=data.validation_data,
            validation_prompts=data.validation_prompts,
            vision=vision,
            backend=backend,
            reference=adapter_free or reference,
            reward=recorder,
            engine=engine,
            callbacks=callbacks,
            stop_signal=stop_signal,
        )
        # a run may have been killed between a checkpoint and its validation
        validated = any(all_gather(is_logged(config.folder / LOG, start, "validation/reward/frac_missing")))
        with stop_signal.handling("as soon as this iteration's weights are whole"):
            train_policy(run, start, validated=validated)
        with writing("the model", config.folder):
            save_model(config, base, backend, config.folder)
    failure = _nothing_learned(callbacks, recorder) if start < config.num_iterations else None
    if rank() > 0:
        if failure:
            raise typer.Exit(failure.exit_code)
        return
    resumed = f", resumed from iteration {start}" if start else ""
    first = best(config.folder / CHECKPOINTS, GOAL)
    best_of = (checkpoint_number(first[0]) + 1, first[1]) if first else None
    console.say(f"{config.num_iterations} iterations{resumed}; {ending(config.folder, 'iteration', best_of)}")
    document = {
        "model": str(config.folder),
        "iterations": config.num_iterations,
        "resumed_from": start,
        "best": {"iteration": best_of[0], "validation_reward": best_of[1]} if best_of else None,
    }
    if failure:
        console.fail(failure, beside=document)
        raise typer.Exit(failure.exit_code)
    console.document(document)


class _ReasonRecorder:
    """A reward that records the first reason for a missing value."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self.reason = reward, ""

    def __call__(self, edits: Sequence[Edit], /) -> list[Score]:
        scores = self.reward(edits)
        self.reason = self.reason or next((score.reason for score in scores if score.value is None), "")
        return scores


def _nothing_learned(callbacks: _Callbacks, reward: _ReasonRecorder) -> EarlError | None:
    """The error of a run in which no edit got a reward, else None; warns if all rewards of each group were equal."""
    if not callbacks.had_reward:
        why = f": {' '.join(reward.reason.split())}" if reward.reason else ""
        hint = "the model is unchanged; earl judge score tries a reward on one edit"
        return EarlError(f"nothing was learned, since no edit got a reward{why}", where="reward", hint=hint)
    if not callbacks.had_signal:
        console.warn("all edits of a prompt always got the same reward, so nothing was learned")
    return None


def _check_engine(config: RlConfig) -> None:
    """Checks of the engine before anything is loaded."""
    if config.engine_place == "separate":
        from earl_cli.training.rl.rollout_engines import check_engine_gpus

        require_vllm()
        check_engine_gpus(config)
    elif config.engine == "vllm":
        require_vllm()
    elif config.engine == "transformers" and config.engine_args:
        raise UsageError("only the engine vllm takes arguments", where="engine_args", hint="--set engine=vllm")
    check_engine_arguments(config.engine_args)


@contextmanager
def _engine(
    config: RlConfig, base: Base, data: RlData, backend: OptimizerBackend, device: torch.device
) -> Iterator[Callable[[Any], AbstractContextManager[Engine]]]:
    """The engine of the rollouts, by the config and by what is installed."""
    if config.engine_place == "separate":
        from earl_cli.training.rl.rollout_engines import SeparateSampler

        with closing(SeparateSampler(config, base, data, backend, device)) as sampler:
            yield sampler
    elif uses_vllm(config.engine, config.device, lambda: base.parameters):
        from earl_cli.training.rl.rollout_engines import ColocatedSampler

        yield ColocatedSampler(config, base, data, backend, device)
    else:
        yield partial(make_engine, config, base.layout, data)


class _Callbacks:
    """Shows the run, logs it, and writes its checkpoints, rollouts and galleries."""

    def __init__(
        self,
        config: RlConfig,
        base: Base,
        backend: OptimizerBackend,
        data: RlData,
        vision: Any,
        board: LiveTask,
        start: int,
    ) -> None:
        self.config, self.base, self.backend, self.data, self.vision = config, base, backend, data, vision
        self.board = board
        self.had_reward = self.had_signal = False  # in any iteration
        self.folder = config.folder
        values = config.model_dump(mode="json")
        self.trackers = start_trackers(config.trackers, self.folder, values, start) if rank() == 0 else []

    def phase(self, iteration: int, what: str) -> None:
        self.board.update(iteration, self.config.num_iterations, {}, what)

    def sampling(self, iteration: int, done: int, expected: int) -> None:
        self.phase(iteration, f"sampling {done / expected:.0%}")

    def iteration(self, step: int, metrics: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        self.had_reward |= metrics["reward/frac_missing"] < 1
        self.had_signal |= metrics["reward/frac_zero_std"] < 1
        self._log(step, {**metrics, **self._memory()})
        if rank() == 0 and groups:
            write_rollouts(self.folder / ROLLOUTS / f"step-{step:06d}.parquet", step, self.data.rows, groups)
            self._write_gallery(f"step-{step:06d}", f"iteration {step}", self.data.rows, groups)

    def validation(self, step: int, metrics: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        if rank() == 0 and self.data.validation_data is not None:
            title = f"validation after {step} iterations"
            self._write_gallery(f"validation-{step:06d}", title, self.data.validation_data, groups)
        self._log(step, metrics)  # last: a resumed run doesn't repeat a logged validation

    def is_best(self, validation: float) -> bool:
        return on_rank_zero(lambda: is_better(validation, self.folder / CHECKPOINTS, GOAL))

    def checkpoint(self, iteration: int, validation: float | None) -> None:
        checkpoint = save_checkpoint(self.config, self.base, self.backend, iteration, validation)
        repository = self.config.push_to_hub_repo_id
        if repository and rank() == 0 and (iteration + 1) % self.config.push_to_hub_every_n_iterations == 0:
            from earl_cli.models.hub import push_to_hub

            try:
                push_to_hub(checkpoint / MODEL, repository, checkpoint.name)
            except EarlError as error:  # the checkpoint is on disk, so the run continues
                console.warn(str(error))

    def waiting(self, iteration: int, problem: EarlError) -> None:
        if iteration:
            self.checkpoint(iteration - 1, None)
        console.warn(f"{problem}; everything is saved, and the run continues when the judge is back")
        self.phase(iteration, "waiting for the judge")

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        if rank() > 0:
            return
        log_metrics(self.folder / LOG, step, metrics)
        for track in self.trackers:
            track(step, metrics)
        self.board.update(step, self.config.num_iterations, metrics)

    def _write_gallery(self, name: str, title: str, rows: DatasetRows, groups: Sequence[ScoredGroup]) -> None:
        notes = [f"temperature {self.config.temperature:g}", "the best, median and worst by reward"]
        path = self.folder / GALLERIES / f"{name}.html"
        title = f"{self.folder.name}, {title}"
        write_gallery(path, title, self.vision, rows, groups, self.config.gallery_examples, notes)

    def _memory(self) -> dict[str, float]:
        cuda = torch.cuda.is_available() and not uses_cpu(self.config)
        return {"memory": float(torch.cuda.max_memory_allocated() if cuda else peak_memory())}


def seconds(value: float) -> str:
    """12.3 s."""
    return f"{value:.1f} s"


def share(value: float) -> str:
    """97 %."""
    return f"{value:.0%}"


METRICS = (
    MetricPanel("reward/mean", "reward", plotted=True),
    MetricPanel("validation/reward/mean", "validation reward", plotted=True),
    MetricPanel("kl", "KL", plotted=True),
    MetricPanel("entropy", plotted=True),
    MetricPanel("reward/p10", "reward 10 %"),
    MetricPanel("reward/p50", "50 %"),
    MetricPanel("reward/p90", "90 %"),
    MetricPanel("reward/group_std", "spread in a group"),
    MetricPanel("reward/frac_zero_std", "equal rewards", share),
    MetricPanel("completions/frac_valid", "valid", share),
    MetricPanel("reward/frac_missing", "missing rewards", share),
    MetricPanel("completions/mean_length", "tokens", whole),
    MetricPanel("rewards/semantic_consistency/mean", "SC"),
    MetricPanel("rewards/perceptual_quality/mean", "PQ"),
    MetricPanel("rewards/ground_score/mean", "ground score"),
    MetricPanel("grad_norm", "gradient norm"),
    MetricPanel("learning_rate", "learning rate", scientific),
    MetricPanel("sampler_mismatch", "sampler mismatch", scientific),
    MetricPanel("time/iteration", "iteration", seconds),
    MetricPanel("time/sampling", "sampling", seconds),
    MetricPanel("time/reward", "reward", seconds),
    MetricPanel("time/reference", "reference", seconds),
    MetricPanel("time/update", "update", seconds),
    MetricPanel("memory", form=gigabytes),
)


def _check_shares(config: RlConfig, processes: int) -> None:
    """Raise UsageError if the prompts of an iteration can't be divided equally among the processes."""
    if config.prompts_per_iteration % processes:
        prompts, generations = config.prompts_per_iteration, config.generations_per_sample
        raise UsageError(
            f"{prompts} prompts per iteration can't be divided equally among {processes} processes",
            where="episodes_per_iteration",
            hint=f"--set episodes_per_iteration={-(-prompts // processes) * processes * generations}",
        )


def _longest(config: RlConfig, data: RlData) -> int:
    return int(sequence_lengths(data.rows, config.mode)[data.prompts].max())


def _base(config: RlConfig) -> Base:
    return open_base(config.model, revision=config.model_revision, tokenizer=config.tokenizer_path)
