"""A file is there whole or not at all: written aside, flushed to the disk, and renamed."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASIDE = ".partial"
NAME_BYTES = 220


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new path beside ``path`` to write to; it gets that name when all went well, and is removed when not.

    A file that it replaces hands its permissions on, before anything is in the new one. An OSError of the writing, such
    as that of a full disk, names ``path``.
    """
    aside = path.with_name(f"{_aside_start(path)}{secrets.token_hex(6)}{ASIDE}")
    try:
        permissions = path.stat().st_mode & 0o777 if path.is_file() else None
        if permissions is not None:
            aside.touch()
            _permit(aside, permissions | 0o600)
        yield aside
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        if permissions is not None:
            _permit(aside, permissions)
        aside.replace(path)
    except OSError as error:
        if error.filename in (None, str(aside)):
            error.filename = str(path)
        raise
    finally:  # also at Ctrl-C
        aside.unlink(missing_ok=True)


def _permit(aside: Path, permissions: int) -> None:
    with suppress(PermissionError):  # a file system that has none
        aside.chmod(permissions)


def _aside_start(path: Path) -> str:
    """The part of the name that says whose it is, so short that with the rest it is no longer than a name can be."""
    return f".{os.fsencode(path.name)[:NAME_BYTES].decode(errors='ignore')}."


def is_aside(path: Path) -> bool:
    """Whether `whole_file` made this file and a killed process left it behind (or is writing it at this moment)."""
    return path.name.startswith(".") and path.name.endswith(ASIDE)


def remove_asides(path: Path) -> None:
    """Remove what killed processes left behind of ``path``."""
    for left in path.parent.glob(f"{glob.escape(_aside_start(path))}*{ASIDE}"):
        left.unlink(missing_ok=True)


def cut_torn_line(path: Path) -> None:
    """Take away what a killed process left of its last line."""
    if path.is_file():
        content = path.read_bytes()
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Only one process of this machine at a time is in here; ``path`` is the file that they agree on, and stays."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
