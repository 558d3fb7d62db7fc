"""Atomic writes, file and folder locks between processes, and JSON from untrusted sources.

A file is written under a temporary name, flushed to the disk and renamed. Hostile JSON (too deep, huge numbers) is a
ValueError.
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

PARTIAL, LOCK_FILE = ".partial", ".lock"
MAX_NAME_BYTES = 220


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    The permissions of a file that it replaces are copied before anything is written. An OSError while writing, such as
    that of a full disk, names ``path``.
    """
    temporary = path.with_name(f"{_partial_prefix(path)}{secrets.token_hex(6)}{PARTIAL}")
    try:
        permissions = path.stat().st_mode & 0o777 if path.is_file() else None
        if permissions is not None:
            temporary.touch()
            _set_permissions(temporary, permissions | 0o600)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        if permissions is not None:
            _set_permissions(temporary, permissions)
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:  # also at Ctrl-C
        with suppress(OSError):  # a folder without write access
            temporary.unlink()


def _set_permissions(temporary: Path, permissions: int) -> None:
    with suppress(PermissionError):  # a file system without permissions
        temporary.chmod(permissions)


def _partial_prefix(path: Path) -> str:
    """The start of the temporary names for ``path``, cut so that they stay within a file system's 255 bytes."""
    return f".{os.fsencode(path.name)[:MAX_NAME_BYTES].decode(errors='ignore')}."


def is_partial(path: Path) -> bool:
    """Whether this is a temporary file of `atomic_write`, left by a killed process or being written now."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def remove_partials(path: Path) -> None:
    """Remove the temporary files that killed processes left of ``path``."""
    for partial in path.parent.glob(f"{glob.escape(_partial_prefix(path))}*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def truncate_incomplete_line(path: Path) -> None:
    """Remove a last line without its newline, which a killed process left."""
    if path.is_file():
        content = path.read_bytes()
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Block until no other process of this machine holds the lock at ``path``, a file that is kept."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def folder_lock(folder: Path, doing: str, part: str = "") -> Iterator[None]:
    """Lock ``folder``, which is created if it is missing. Raises OutputError while another process holds its lock.

    With ``part`` only that part is locked: processes with different parts may work at once, none with the same part or
    without one. ``doing`` describes the work in the other process's error. A killed process's lock is released.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for name, shared in ((LOCK_FILE, True), (f"{LOCK_FILE}-{part}", False)) if part else ((LOCK_FILE, False),):
            path = folder / name.replace("/", "-of-")
            holder = _acquire(path, shared, doing, locks)
            if holder is not None:
                process, _, other = holder.partition(" ")
                hint = f"wait for it, or end process {process}" if process else "wait for it"
                raise OutputError(f"another {other or doing} is at work here", where=str(folder), hint=hint)
        yield


def _acquire(path: Path, shared: bool, doing: str, locks: ExitStack) -> str | None:
    """Lock the file at ``path`` until ``locks`` is closed; if another process holds it, return its id and work."""
    while True:
        lock = locks.enter_context(path.open("a+", encoding="utf-8"))
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
        lock.close()  # the process that had held it has just removed the file
    with suppress(OSError):  # a full disk
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()} {doing}".encode())
    locks.callback(_release, path, lock)
    return None


def _release(path: Path, lock: IO[str]) -> None:
    """Remove the lock file unless another process holds its lock or has removed it."""
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
            path.unlink()


MAX_DEPTH = 100
_DECODER = json.JSONDecoder()
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def loads(text: str | bytes) -> Any:
    """As `json.loads`, for untrusted text. Raises json.JSONDecodeError for what is no JSON, and its base ValueError for
    invalid UTF-8, for more than `MAX_DEPTH` levels of nesting, and for a number of thousands of digits."""
    text = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
    value, end = first_value(text, len(text) - len(text.lstrip(" \t\r\n")))
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def first_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at ``start``, and where it ends. Raises as `loads`."""
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
    """The end of the object or list that begins at ``start``, which needn't be valid; else the end of the text."""
    depth = 0
    for token in _TOKENS.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth <= 0 and token[0] in "]}":
            return token.end()
    return len(text)


def is_too_deep(value: Any, text: str, start: int, end: int) -> bool:
    """Whether a value of JSON, read from ``text[start:end]``, is nested more than `MAX_DEPTH` deep."""
    if text.count("[", start, end) + text.count("{", start, end) <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        values = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in values if isinstance(inner, dict | list)]
        if not level:
            return False
    return True
