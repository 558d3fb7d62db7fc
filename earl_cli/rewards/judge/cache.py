"""Answers of judges, kept on disk by content: nothing that was answered once is asked, or paid, again.

Processes of one machine can share a file; it survives their being killed. A damaged file is put aside with a warning.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from earl_cli.console import console
from earl_cli.errors import OutputError
from earl_cli.rewards.judge.replies import Reply

PATIENCE = 60.0  # seconds to wait for another process that writes
AT_ONCE = 500
VERSION = 1
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_TABLE = "create table if not exists answers (key text primary key, raw text, numbers text, reasoning text, at real)"
ResultT = TypeVar("ResultT")


class AnswerCache:
    """An open cache file; with ``path`` None it lives in memory only. For the thread that made it, in a ``with``.

    Raises OutputError where the file can't be used: no right to write, a full disk, a file of another program.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """Those of the answers that are known."""

        def select() -> dict[str, Reply]:
            found = {}
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                marks = ", ".join("?" * len(some))
                query = f"select key, numbers, reasoning from answers where key in ({marks})"
                for key, numbers, reasoning in self._connection.execute(query, some):
                    found[key] = Reply(tuple(json.loads(numbers)), reasoning)
            return found

        return self._mended(select)

    def keep(self, key: str, raw: str, reply: Reply) -> Reply:
        """Keep a reply, as it came and as it was read. If another process was first, its answer stands and comes back.

        It is out of this process's hands when this returns.
        """
        row = (key, _storable(raw), json.dumps(reply.numbers), _storable(reply.reasoning), time.time())
        self._mended(lambda: self._connection.execute("insert or ignore into answers values (?, ?, ?, ?, ?)", row))
        return self.find([key])[key]

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            connection = sqlite3.connect(":memory:", isolation_level=None)
            connection.execute(_TABLE)
            return connection
        with _explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self._path):
                try:
                    return self._prepared(self._path)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    _put_aside(self._path)
                    return self._prepared(self._path)

    def _prepared(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        try:
            version = connection.execute("pragma user_version").fetchone()[0]
            tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
            if version != (VERSION if tables else 0):
                raise OutputError("this is not a cache of answers, or one of another version", where=str(path))
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")
            connection.execute(_TABLE)
            connection.execute(f"pragma user_version = {VERSION}")
        except BaseException:
            connection.close()
            raise
        self._inode = path.stat().st_ino
        return connection

    def _mended(self, work: Callable[[], ResultT]) -> ResultT:
        """``work``'s result; if the file turns out to be damaged, that of ``work`` on a new one."""
        with _explained(self._path):
            try:
                return work()
            except sqlite3.DatabaseError as error:
                if self._path is None or not _is_damage(error):
                    raise
            self._connection.close()
            with _alone(self._path):
                if self._path.exists() and self._path.stat().st_ino == self._inode:  # else another process was first
                    _put_aside(self._path)
            self._connection = self._open()
            return work()


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return (getattr(error, "sqlite_errorname", None) or "").startswith(_DAMAGED)


def _put_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    path.replace(aside)
    for more in ("-wal", "-shm"):
        path.with_name(path.name + more).unlink(missing_ok=True)
    console.warn(f"{path} was damaged: it is now {aside.name}, and the judge's answers in it will be asked for again")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process opens or replaces the file meanwhile; killed, it lets go by itself."""
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(path: Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(f"the judge's answers can't be kept here: {error}", where=str(path)) from error


def _storable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON may hold and UTF-8 can't."""
    return text.encode("utf-8", "replace").decode("utf-8")
