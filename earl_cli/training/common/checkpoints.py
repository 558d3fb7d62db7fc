"""Checkpoints: complete once their mark is written, resumed only with the settings that the run was begun with.

Each is a model folder, or has one in it, beside the state to go on from. An old one may stay as a model alone, to be
used and not to go on from; it has another mark. The best by validation always stays, and `BEST` leads to it.
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

from earl_cli.config.sft import SftConfig
from earl_cli.errors import OutputError, UsageError, explain
from earl_cli.files import LOCK_FILE, atomic_write, folder_lock
from earl_cli.models.bundle import DESCRIPTION

CHECKPOINTS = "checkpoints"
MARK, MODEL_ONLY, TRAINING = "complete", "model-only", "training"
VALIDATION, BEST = "validation.json", "best"
STATE = ("optimizer*", "scheduler.pt", "rng_state*.pth", "global_step*", "deepspeed", "latest", "zero_to_fp32.py")
"""What of a checkpoint is there only to go on from it."""
Goal: TypeAlias = Literal["lowest", "highest"]
_NAME = re.compile(r"(?:checkpoint-|ckpt_)(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in ``folder``, oldest first."""
    return [path for _, path in _numbered(folder) if (path / MARK).is_file()]


def check_unlocked(folder: Path) -> None:
    """Raise OutputError as `folder_lock`, without leaving anything behind where nobody has trained yet."""
    if (folder / LOCK_FILE).is_file():
        with folder_lock(folder, TRAINING):
            pass


def latest(folder: Path) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    whole = checkpoints(folder)
    return whole[-1] if whole else None


def mark_complete(checkpoint: Path) -> None:
    """Say that everything of this checkpoint is on disk."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with path.open("rb") as content:
                os.fsync(content.fileno())
    (checkpoint / MARK).touch()


@contextmanager
def writing(what: str, where: Path) -> Iterator[None]:
    """Raise OutputError if the disk doesn't take ``what``; torch and safetensors have their own words for that."""
    from safetensors import SafetensorError

    hint = "make room and start again: the training goes on from its last checkpoint"
    try:
        yield
    except OutputError as error:  # which says already what and where
        raise OutputError(error.what, where=error.where, hint=error.hint or hint) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError):
            reason = explain(error).what
        elif isinstance(error, SafetensorError):
            reason = str(error).rpartition(": ")[2]
        elif "inline_container" in str(error):
            reason = "the disk is full, or takes no larger file"
        else:
            raise
        raise OutputError(f"{what} can't be written: {reason}", where=str(where), hint=hint) from error


# -- the best ----------------------------------------------------------------------------------------------------------


def write_validation(checkpoint: Path, value: float) -> None:
    """Write down how good the model of a checkpoint is on the validation rows."""
    with atomic_write(checkpoint / VALIDATION) as aside:
        aside.write_text(json.dumps({"value": value}), encoding="utf-8")


def best(folder: Path, goal: Goal) -> tuple[Path, float] | None:
    """The checkpoint in ``folder``, whole or a model alone, that validation found best, and how good it is."""
    found = []
    for number, path in _numbered(folder):
        if (path / VALIDATION).is_file() and ((path / MARK).is_file() or (path / MODEL_ONLY).is_file()):
            value = float(json.loads((path / VALIDATION).read_text(encoding="utf-8"))["value"])
            found.append((value if goal == "lowest" else -value, number, path, value))
    found = [each for each in found if math.isfinite(each[0])]
    return min(found)[2:] if found else None


def is_better(value: float, folder: Path, goal: Goal) -> bool:
    """Whether that is better than all that validation has found so far."""
    there = best(folder, goal)
    return math.isfinite(value) and (there is None or (value < there[1] if goal == "lowest" else value > there[1]))


def link_best(output: Path, goal: Goal, model: str = "") -> tuple[Path, float] | None:
    """Let `BEST` in the run's folder lead to its best checkpoint, or to the sub-folder ``model`` of that.

    Returns that checkpoint and its value. A file or folder of that name that isn't ours stays as it is.
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
        except OSError:  # a file system without links
            pass
    return found


# -- what goes ---------------------------------------------------------------------------------------------------------


def remove_old(folder: Path, keep: int, goal: Goal, spared: Callable[[int], bool] | None = None) -> None:
    """Remove all but the newest ``keep`` whole checkpoints; of ``spared`` numbers and of the best the model stays."""
    first = best(folder, goal)
    chosen = first[0] if first else None
    for path in checkpoints(folder)[:-keep]:
        stays = spared is not None and spared(checkpoint_number(path))
        if stays or path == chosen:
            (path / MODEL_ONLY).write_text("" if stays else BEST, encoding="utf-8")
            _strip(path)
        else:
            _remove(path)
    for _, path in _numbered(folder):
        mark = path / MODEL_ONLY
        if path != chosen and not (path / MARK).is_file() and mark.is_file() and mark.read_text("utf-8") == BEST:
            _remove(path)


def remove_incomplete(folder: Path) -> None:
    """Remove what an interruption left half-written or half-removed."""
    for _, path in _numbered(folder):
        if not (path / MARK).is_file():
            if (path / MODEL_ONLY).is_file():
                _strip(path)
            else:
                _remove(path)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """What is there of checkpoints, whole or not, oldest first."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(match[1]), path) for path in inside if (match := _NAME.fullmatch(path.name)))


def checkpoint_number(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, or the iteration, from 0."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def _strip(checkpoint: Path) -> None:
    """Remove all that isn't the model."""
    (checkpoint / MARK).unlink(missing_ok=True)  # first, so that it doesn't count while it goes
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


ORIGIN = "begun.json"
ANOTHER = "choose another --output"


def run_origin(command: str, model: str | None, data: Sequence[Path]) -> dict[str, Any]:
    """What a run is begun with: the command, the model that it starts from, and the data."""
    start = "embedded" if model is None else str(Path(model).resolve()) if Path(model).is_dir() else model
    return {"command": command, "model": start, "data": [str(place.resolve()) for place in data]}


def write_origin(output: Path, now: dict[str, Any]) -> None:
    """Write that down where nothing is to be gone on from; what a run was begun with stays."""
    if latest(output / CHECKPOINTS) is None or not (output / ORIGIN).is_file():
        with writing("the run's beginning", output), atomic_write(output / ORIGIN) as aside:
            aside.write_text(json.dumps(now, indent=2), encoding="utf-8")


def check_origin(output: Path, now: dict[str, Any]) -> None:
    """Raise UsageError if the folder holds a run of another command, or one that started from another model."""
    begun = _begun(output)
    if begun is None:
        return
    if begun["command"] != now["command"]:
        raise UsageError(f"this folder holds a run of earl {begun['command']}", where=str(output), hint=ANOTHER)
    if begun.get("model", now["model"]) != now["model"]:
        raise UsageError(
            f"this folder holds a run that started from {begun['model']}, not from {now['model']}",
            where=str(output),
            hint=f"{ANOTHER}; if that is the same model, moved, remove {ORIGIN}",
        )


def changed_data(output: Path, now: dict[str, Any]) -> str | None:
    """What is to be said of a run that goes on with other data than it was begun with; None if there is nothing."""
    begun = _begun(output)
    if begun is None or begun.get("data", now["data"]) == now["data"]:
        return None
    return f"{output}: this run was begun with other data, and goes on with today's"


def _begun(output: Path) -> dict[str, Any] | None:
    """What is known of the run in this folder; None if there is none to be gone on from."""
    checkpoint = latest(output / CHECKPOINTS)
    if checkpoint is None:
        return None
    known: dict[str, Any] = {"command": "sft" if checkpoint.name.startswith("checkpoint-") else "rl"}
    if (output / ORIGIN).is_file():
        known |= json.loads((output / ORIGIN).read_text(encoding="utf-8"))
    return known


def check_resumable(config: SftConfig, processes: int) -> None:
    """Raise UsageError if supervised training was begun in a way in which today's can't go on."""
    checkpoint = latest(config.output / CHECKPOINTS)
    if checkpoint is None:
        return
    adapters = any(checkpoint.glob("**/adapter_model.safetensors"))
    parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    partitioned = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    sharding = "none" if not parts else "zero3" if partitioned else "zero2"
    now = config.sharding.removesuffix("-offload")
    if (adapters, sharding, parts) != (config.lora_rank is not None, now, processes if now != "none" else 0):
        words = f"{'adapters' if adapters else 'every weight'} trained, sharding {sharding}"
        raise UsageError(
            f"this run was begun with {words}" + (f", {parts} processes" if parts else ""),
            where=str(checkpoint),
            hint=f"go on in the same way, or {ANOTHER}",
        )
    if parts and not adapters and not (checkpoint / DESCRIPTION).is_file():
        raise UsageError(
            "this sharded run was begun by an earl that let the weights of norms decay too; its optimizer's state "
            "doesn't fit the groups of today",
            where=str(checkpoint),
            hint=f"go on with the version that began it, or start from its weights: {ANOTHER}",
        )
