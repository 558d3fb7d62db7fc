"""Files that are there whole or not at all, the lock of a folder, and JSON that somebody else wrote.

A file is written aside, flushed to the disk and renamed. Hostile JSON (too deep, huge numbers) is a ValueError.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from earl_cli.errors import OutputError

ASIDE, LOCK = ".partial", ".lock"
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
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            aside.unlink()


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


@contextmanager
def alone_in(folder: Path, doing: str, part: str = "") -> Iterator[None]:
    """Raise OutputError while another process is at work in ``folder``, which is made if it isn't there.

    Several may each do a ``part`` of their own, but none beside them the whole. Whoever is killed lets go by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for name, shared in ((LOCK, True), (f"{LOCK}-{part}", False)) if part else ((LOCK, False),):
            path = folder / name.replace("/", "-of-")
            holder = _held(path, shared, doing, held)
            if holder is not None:
                process, _, other = holder.partition(" ")
                hint = f"wait for it, or end process {process}" if process else "wait for it"
                raise OutputError(f"another {other or doing} is at work here", where=str(folder), hint=hint)
        yield


def _held(path: Path, shared: bool, doing: str, held: ExitStack) -> str | None:
    """Hold the lock of the file at ``path`` as long as ``held``; or say which process has it, and what that does."""
    while True:
        lock = held.enter_context(path.open("a+", encoding="utf-8"))
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            return lock.read()
        except OSError:  # a file system without locks
            pass
        with suppress(FileNotFoundError):
            if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                break
        lock.close()  # whoever had it has just removed it
    with suppress(OSError):  # a full disk
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()} {doing}".encode())
    held.callback(_let_go, path, lock)
    return None


def _let_go(path: Path, lock: IO[str]) -> None:
    """Remove the file if nobody else holds its lock or has removed it."""
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
            path.unlink()


MOST_DEPTH = 100
_DECODER = json.JSONDecoder()
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def loads(text: str | bytes) -> Any:
    """As `json.loads`. Raises json.JSONDecodeError where this is no JSON, and its base ValueError for UTF-8 that is
    damaged, for what is nested more than `MOST_DEPTH` deep, and for a number of thousands of digits."""
    text = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
    value, end = first_value(text, len(text) - len(text.lstrip(" \t\r\n")))
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def first_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at ``start``, and where it ends; failures as of `loads`."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise ValueError("a number in it has thousands of digits") from None
    if is_too_deep(value, text, start, end):
        raise ValueError("it is nested too deeply")
    return value, end


def end_of_value(text: str, start: int) -> int:
    """Where the object or list ends that begins at ``start``, also where it can't be read; else the end of the text."""
    depth = 0
    for token in _TOKENS.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth <= 0 and token[0] in "]}":
            return token.end()
    return len(text)


def is_too_deep(value: Any, text: str, start: int, end: int) -> bool:
    """Whether a value of JSON, read from ``text[start:end]``, is nested more than `MOST_DEPTH` deep."""
    if text.count("[", start, end) + text.count("{", start, end) <= MOST_DEPTH:
        return False
    level = [value]
    for _ in range(MOST_DEPTH):
        values = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in values if isinstance(inner, dict | list)]
        if not level:
            return False
    return True
