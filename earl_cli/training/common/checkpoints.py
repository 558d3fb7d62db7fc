"""Checkpoints: complete once their mark is written, resumed only with the settings that the run was started with.

Each is a model folder, or contains one, beside the state to resume from. An old one may be reduced to its model, with
another mark. The best one by validation is always kept, and the link `BEST` leads to it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from earl_cli.errors import OutputError, UsageError, explain
from earl_cli.files import LOCK_FILE, atomic_write, folder_lock

CHECKPOINTS = "checkpoints"
MARK, MODEL_ONLY, TRAINING = "complete", "model-only", "training"
VALIDATION, BEST = "validation.json", "best"
STATE = ("optimizer*", "scheduler.pt", "rng_state*.pth", "global_step*", "deepspeed", "latest", "zero_to_fp32.py")
"""The files of a checkpoint that only resuming needs."""
Goal: TypeAlias = Literal["lowest", "highest"]
_NAME = re.compile(r"(?:checkpoint-|ckpt_)(\d+)")
ORIGIN = "begun.json"
ANOTHER = "choose another --output"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first."""
    return [path for _, path in _numbered(folder) if (path / MARK).is_file()]


def check_unlocked(folder: Path) -> None:
    """Raise OutputError as `folder_lock`, without creating a lock in a folder that has none."""
    if (folder / LOCK_FILE).is_file():
        with folder_lock(folder, TRAINING):
            pass


def latest(folder: Path) -> Path | None:
    """The checkpoint to resume from, if there is one."""
    complete = checkpoints(folder)
    return complete[-1] if complete else None


def mark_complete(checkpoint: Path) -> None:
    """Sync all files of this checkpoint to disk, then write its mark."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with path.open("rb") as content:
                os.fsync(content.fileno())
    (checkpoint / MARK).touch()


@contextmanager
def writing(what: str, where: Path) -> Iterator[None]:
    """Raise OutputError if ``what`` can't be written; torch and safetensors raise their own errors for that."""
    from safetensors import SafetensorError

    hint = "free some space and start again: the training resumes from its last checkpoint"
    try:
        yield
    except OutputError as error:  # its message is complete except for the hint
        raise OutputError(error.what, where=error.where, hint=error.hint or hint) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError):
            reason = explain(error).what
        elif isinstance(error, SafetensorError):
            reason = str(error).rpartition(": ")[2]
        elif "inline_container" in str(error):
            reason = "the disk is full, or the file is too large for it"
        else:
            raise
        raise OutputError(f"{what} can't be written: {reason}", where=str(where), hint=hint) from error


# -- the best ----------------------------------------------------------------------------------------------------------


def write_validation(checkpoint: Path, value: float) -> None:
    """Write the validation metric of a checkpoint."""
    with atomic_write(checkpoint / VALIDATION) as aside:
        aside.write_text(json.dumps({"value": value}), encoding="utf-8")


def best(folder: Path, goal: Goal) -> tuple[Path, float] | None:
    """The best checkpoint in ``folder`` by validation, complete or reduced to its model, and its validation metric."""
    found = []
    for number, path in _numbered(folder):
        if (path / VALIDATION).is_file() and ((path / MARK).is_file() or (path / MODEL_ONLY).is_file()):
            value = float(json.loads((path / VALIDATION).read_text(encoding="utf-8"))["value"])
            found.append((value if goal == "lowest" else -value, number, path, value))
    found = [each for each in found if math.isfinite(each[0])]
    return min(found)[2:] if found else None


def is_better(value: float, folder: Path, goal: Goal) -> bool:
    """Whether ``value`` is better than all validations so far."""
    known = best(folder, goal)
    return math.isfinite(value) and (known is None or (value < known[1] if goal == "lowest" else value > known[1]))


def link_best(output: Path, goal: Goal, model: str = "") -> tuple[Path, float] | None:
    """Link `BEST` in the run's folder to its best checkpoint, or to the sub-folder ``model`` of that.

    Returns the checkpoint and its validation metric. A file or folder with that name that isn't a link is kept.
    """
    found = best(output / CHECKPOINTS, goal)
    link = output / BEST
    if found is None or (link.exists() and not link.is_symlink()):
        return found
    target = Path(CHECKPOINTS, found[0].name, model)
    if not link.is_symlink() or link.readlink() != target:
        aside = link.with_name(f".{BEST}.link")
        try:
            aside.unlink(missing_ok=True)
            aside.symlink_to(target)
            aside.replace(link)
        except OSError:  # the file system has no links
            pass
    return found


# -- removing ----------------------------------------------------------------------------------------------------------


def remove_old(folder: Path, keep: int, goal: Goal, keeps_model: Callable[[int], bool] | None = None) -> None:
    """Remove all but the newest ``keep`` complete checkpoints.

    The best one, and those for whose number ``keeps_model`` is true, are reduced to their model.
    """
    found = best(folder, goal)
    best_path = found[0] if found else None
    for path in checkpoints(folder)[:-keep]:
        kept = keeps_model is not None and keeps_model(checkpoint_number(path))
        if kept or path == best_path:
            (path / MODEL_ONLY).write_text("" if kept else BEST, encoding="utf-8")
            _strip(path)
        else:
            _remove(path)
    for _, path in _numbered(folder):
        mark = path / MODEL_ONLY
        if path != best_path and not (path / MARK).is_file() and mark.is_file() and mark.read_text("utf-8") == BEST:
            _remove(path)


def remove_incomplete(folder: Path) -> None:
    """Remove what an interruption left partly written or partly removed."""
    for _, path in _numbered(folder):
        if not (path / MARK).is_file():
            if (path / MODEL_ONLY).is_file():
                _strip(path)
            else:
                _remove(path)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoints with their numbers, complete or not, oldest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(match[1]), path) for path in paths if (match := _NAME.fullmatch(path.name)))


def checkpoint_number(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, or the number of its iteration, counted from 0."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def _strip(checkpoint: Path) -> None:
    """Remove everything except the model."""
    (checkpoint / MARK).unlink(missing_ok=True)  # first, so that an interrupted removal leaves no complete checkpoint
    for pattern in STATE:
        for path in checkpoint.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _remove(checkpoint: Path) -> None:
    (checkpoint / MARK).unlink(missing_ok=True)
    (checkpoint / MODEL_ONLY).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def run_origin(command: str, model: str | None, data: Sequence[Path]) -> dict[str, Any]:
    """The origin of a run: the command, the model that it starts from, and the data."""
    start = "embedded" if model is None else str(Path(model).resolve()) if Path(model).is_dir() else model
    return {"command": command, "model": start, "data": [str(path.resolve()) for path in data]}


def write_origin(output: Path, now: dict[str, Any]) -> None:
    """Write the origin of a new run; that of a run with checkpoints is kept."""
    if latest(output / CHECKPOINTS) is None or not (output / ORIGIN).is_file():
        with writing("the origin of the run", output), atomic_write(output / ORIGIN) as aside:
            aside.write_text(json.dumps(now, indent=2), encoding="utf-8")


def check_origin(output: Path, now: dict[str, Any]) -> None:
    """Raise UsageError if the folder holds a run of another command, or one that started from another model."""
    origin = _origin(output)
    if origin is None:
        return
    if origin["command"] != now["command"]:
        raise UsageError(f"this folder holds a run of earl {origin['command']}", where=str(output), hint=ANOTHER)
    if origin.get("model", now["model"]) != now["model"]:
        raise UsageError(
            f"this folder holds a run that started from {origin['model']}, not from {now['model']}",
            where=str(output),
            hint=f"{ANOTHER}; if that is the same model, moved, remove {ORIGIN}",
        )


def changed_data(output: Path, now: dict[str, Any]) -> str | None:
    """A warning if a run resumes with other data than it was started with; None if the data is the same."""
    origin = _origin(output)
    if origin is None or origin.get("data", now["data"]) == now["data"]:
        return None
    return f"{output}: this run was started with other data, and resumes with the present data"


def _origin(output: Path) -> dict[str, Any] | None:
    """What is known of the origin of the run in this folder; None if there is no checkpoint."""
    checkpoint = latest(output / CHECKPOINTS)
    if checkpoint is None:
        return None
    known: dict[str, Any] = {"command": "sft" if checkpoint.name.startswith("checkpoint-") else "rl"}
    if (output / ORIGIN).is_file():
        known |= json.loads((output / ORIGIN).read_text(encoding="utf-8"))
    return known
