"""Checkpoints that can't be half-chosen: one counts once its mark is written, and only then are old ones dropped."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

MARK = "complete"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / MARK).is_file()]


def newest(folder: Path) -> Path | None:
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


def drop_old(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` whole checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        _remove(path)


def drop_torn(folder: Path) -> None:
    """Remove the checkpoints that an interruption left half-written."""
    whole = checkpoints(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and path not in whole:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    (checkpoint / MARK).unlink(missing_ok=True)  # first, so that it doesn't count while it goes
    shutil.rmtree(checkpoint)
