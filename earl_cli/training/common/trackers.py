"""The log of a run, a line of JSON for each logged step, and experiment trackers for the same metrics."""

from __future__ import annotations

import json
import resource
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from earl_cli.errors import MissingExtraError
from earl_cli.files import atomic_write
from earl_cli.training.common.checkpoints import writing
from earl_cli.training.common.curves import metric_name

RUNS = "trackers.json"
LogMetrics = Callable[[int, Mapping[str, float]], None]


def log_metrics(log: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append the metrics of a step. Raises OutputError if they can't be written."""
    with writing("the log", log), log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")


def is_logged(log: Path, step: int, metric: str) -> bool:
    """Whether the log has this metric for this step, under its present or its old name."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return any(found["step"] == step and metric in map(metric_name, found) for found in map(json.loads, lines))


def peak_memory() -> int:
    """The peak memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_trackers(trackers: Sequence[str]) -> None:
    """Raise MissingExtraError for a tracker that isn't installed."""
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise MissingExtraError(f"the tracker {tracker} isn't installed", hint='pip install "earl-cli[trackers]"')


def start_trackers(trackers: Sequence[str], folder: Path, config: Mapping[str, Any], done: int) -> list[LogMetrics]:
    """Start the trackers; each is a function of step and metrics.

    A run that resumes after ``done`` steps continues the same runs of the trackers, whose ids are in `RUNS`.
    """
    return [_STARTS[name](folder, config, done) for name in trackers]


def _tensorboard(folder: Path, _config: Mapping[str, Any], done: int) -> LogMetrics:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)

    def track(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return track


def _wandb(folder: Path, config: Mapping[str, Any], _done: int) -> LogMetrics:
    import wandb

    wandb.init(
        project="earl",
        id=_run_of(folder, "wandb"),
        name=folder.resolve().name,
        dir=str(folder),
        config=dict(config),
        resume="allow",
        allow_val_change=True,
    )
    return lambda step, metrics: wandb.log(dict(metrics), step=step)


def _trackio(folder: Path, config: Mapping[str, Any], _done: int) -> LogMetrics:
    import trackio

    run = f"{folder.resolve().name}-{_run_of(folder, 'trackio')}"  # trackio identifies a run by its name
    trackio.init(project="earl", name=run, config=dict(config), resume="allow")
    return lambda step, metrics: trackio.log(dict(metrics), step=step)


def _run_of(folder: Path, tracker: str) -> str:
    """The id of this run in a tracker: generated at the first start, read from `RUNS` later."""
    file = folder / RUNS
    runs: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if tracker not in runs:
        runs[tracker] = secrets.token_hex(4)
        with writing("the ids of the trackers' runs", file), atomic_write(file) as aside:
            aside.write_text(json.dumps(runs), encoding="utf-8")
    return runs[tracker]


_STARTS = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
