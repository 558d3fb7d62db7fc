"""The log of a run, a line of JSON for each logged step, and the trackers that get the same figures."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from earl_cli.errors import MissingExtraError
from earl_cli.training.checkpoints import written

LOG = "log.jsonl"
Track = Callable[[int, Mapping[str, float]], None]


def write_line(log: Path, step: int, figures: Mapping[str, float]) -> None:
    """Append the figures of a step. Raises OutputError if the disk doesn't take them."""
    with written("the log", log), log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")


def is_logged(log: Path, step: int, figure: str) -> bool:
    """Whether the log has this figure of this step."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return any(found["step"] == step and figure in found for found in map(json.loads, lines))


def peak_memory() -> int:
    """The most bytes of memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_trackers(trackers: Sequence[str]) -> None:
    """Raise MissingExtraError for a tracker that isn't installed."""
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise MissingExtraError(f"the tracker {tracker} isn't installed", hint='pip install "earl-cli[trackers]"')


def start_trackers(trackers: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Track]:
    """Each tracker as a function of step and figures; the run has the folder's name in it."""
    return [_STARTS[name](folder, config) for name in trackers]


def _tensorboard(folder: Path, _config: Mapping[str, Any]) -> Track:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def track(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return track


def _client(name: str) -> Callable[[Path, Mapping[str, Any]], Track]:
    def start(folder: Path, config: Mapping[str, Any]) -> Track:
        from importlib import import_module

        client: Any = import_module(name)
        client.init(project="earl", name=folder.resolve().name, config=dict(config))
        return lambda step, figures: client.log(dict(figures), step=step)

    return start


_STARTS = {"tensorboard": _tensorboard, "trackio": _client("trackio"), "wandb": _client("wandb")}
