"""Checkpoints that can't be half-chosen: one counts once its mark is written, and only then are old ones dropped.

An old one may stay as a model alone, to be used and not to go on from; it has another mark.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from earl_cli.config.sft import SftConfig
from earl_cli.errors import OutputError, UsageError, explain

CHECKPOINTS = "checkpoints"
MARK, MODEL_ONLY, LOCK = "complete", "model-only", ".lock"
_NAME = re.compile(r"(?:checkpoint-|ckpt_)(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / MARK).is_file()]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Raise OutputError while another training works in ``folder``. One that is killed lets go of it by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            hint = f"wait for it, or end process {lock.read()}"
            raise OutputError("another training is at work here", where=str(folder), hint=hint) from None
        except OSError:  # a file system without locks
            pass
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    whole = checkpoints(folder)
    return whole[-1] if whole else None


def check_begun(checkpoint: Path, config: SftConfig, processes: int) -> None:
    """Raise UsageError if the run was begun in a way in which today's can't go on."""
    adapters = (checkpoint / "adapter_model.safetensors").is_file()
    parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    partitioned = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    sharding = "none" if not parts else "zero3" if partitioned else "zero2"
    now = config.sharding.removesuffix("-offload")
    if (adapters, sharding, parts) != (config.lora_rank is not None, now, processes if now != "none" else 0):
        words = f"{'adapters' if adapters else 'every weight'} trained, sharding {sharding}"
        raise UsageError(
            f"this run was begun with {words}" + (f", {parts} processes" if parts else ""),
            where=str(checkpoint),
            hint="go on in the same way, or choose another --output",
        )


def mark_complete(checkpoint: Path) -> None:
    """Say that everything of this checkpoint is on disk."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with path.open("rb") as content:
                os.fsync(content.fileno())
    (checkpoint / MARK).touch()


@contextmanager
def written(what: str, where: Path) -> Iterator[None]:
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


def drop_old(folder: Path, keep: int, spared: Callable[[int], bool] | None = None, model: str = "") -> None:
    """Remove all but the newest ``keep`` whole checkpoints; of ``spared`` numbers the sub-folder ``model`` stays."""
    for path in checkpoints(folder)[:-keep]:
        if spared is not None and spared(_number(path)):
            (path / MODEL_ONLY).touch()
            _strip(path, model)
        else:
            _remove(path)


def drop_torn(folder: Path, model: str = "") -> None:
    """Remove what an interruption left half-written or half-removed."""
    whole = checkpoints(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and path not in whole:
            if (path / MODEL_ONLY).is_file():
                _strip(path, model)
            else:
                _remove(path)


def _number(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def _strip(checkpoint: Path, model: str) -> None:
    """Remove all but the sub-folder ``model``."""
    (checkpoint / MARK).unlink(missing_ok=True)  # first, so that it doesn't count while it goes
    for path in checkpoint.iterdir():
        if path.is_dir() and path.name != model:
            shutil.rmtree(path)


def _remove(checkpoint: Path) -> None:
    (checkpoint / MARK).unlink(missing_ok=True)
    (checkpoint / MODEL_ONLY).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
