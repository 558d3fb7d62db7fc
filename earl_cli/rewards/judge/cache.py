"""A cache of judges' replies on disk, by content: a prompt that was answered once is not sent, or paid, again.

Processes of one machine can share a file, and may be killed at any time. A damaged file is renamed with a warning.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from earl_cli.console import log
from earl_cli.errors import OutputError
from earl_cli.files import file_lock
from earl_cli.rewards.judge.replies import ParsedReply

LOCK_TIMEOUT = 60.0  # seconds to wait for another process that writes
KEYS_PER_QUERY = 500
VERSION = 1
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_TABLE = "create table if not exists answers (key text primary key, raw text, numbers text, reasoning text, at real)"
ResultT = TypeVar("ResultT")


class ReplyCache:
    """An open cache file, or with ``path`` None one in memory. A context manager, for the thread that made it.

    Raises OutputError where the file can't be used: no write access, a full disk, another program's file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def find(self, keys: Sequence[str]) -> dict[str, ParsedReply]:
        """The replies that are kept, by key."""

        def select() -> dict[str, ParsedReply]:
            found = {}
            for start in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[start : start + KEYS_PER_QUERY]
                marks = ", ".join("?" * len(some))
                query = f"select key, numbers, reasoning from answers where key in ({marks})"
                for key, scores, reasoning in self._connection.execute(query, some):
                    found[key] = ParsedReply(tuple(json.loads(scores)), reasoning)
            return found

        return self._with_repair(select)

    def keep(self, key: str, raw: str, reply: ParsedReply) -> ParsedReply:
        """Keep a reply, raw and parsed, and return it; if another process kept one first, that one.

        When this returns, the reply is kept even if this process is killed.
        """
        row = (key, _storable(raw), json.dumps(reply.scores), _storable(reply.reasoning), time.time())
        self._with_repair(lambda: self._connection.execute("insert or ignore into answers values (?, ?, ?, ?, ?)", row))
        return self.find([key])[key]

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            connection = sqlite3.connect(":memory:", isolation_level=None)
            connection.execute(_TABLE)
            return connection
        with _as_output_error(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _open_lock(self._path):
                try:
                    return self._connect(self._path)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    _rename_damaged(self._path)
                    return self._connect(self._path)

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None)
        try:
            version = connection.execute("pragma user_version").fetchone()[0]
            tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
            if version != (VERSION if tables else 0):
                raise OutputError("this is no cache of a judge's replies, or one of another version", where=str(path))
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")
            connection.execute(_TABLE)
            connection.execute(f"pragma user_version = {VERSION}")
        except BaseException:
            connection.close()
            raise
        self._inode = path.stat().st_ino
        return connection

    def _with_repair(self, work: Callable[[], ResultT]) -> ResultT:
        """The result of ``work``; if the file turns out to be damaged, that of ``work`` with a new one."""
        with _as_output_error(self._path):
            try:
                return work()
            except sqlite3.DatabaseError as error:
                if self._path is None or not _is_damage(error):
                    raise
            self._connection.close()
            with _open_lock(self._path):
                if self._path.exists() and self._path.stat().st_ino == self._inode:  # else another process was first
                    _rename_damaged(self._path)
            self._connection = self._open()
            return work()


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return (getattr(error, "sqlite_errorname", None) or "").startswith(_DAMAGED)


def _rename_damaged(path: Path) -> None:
    damaged = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    path.replace(damaged)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    log.warning(f"{path} was damaged: it is now {damaged.name}, and what was in it will be requested again")


def _open_lock(path: Path) -> AbstractContextManager[None]:
    """No other process opens or replaces the file at the same time."""
    return file_lock(path.with_name(f".{path.name}.lock"))


@contextmanager
def _as_output_error(path: Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(f"the judge's replies can't be kept here: {error}", where=str(path)) from error


def _storable(text: str) -> str:
    """Without lone surrogates, which JSON may hold and UTF-8 can't."""
    return text.encode("utf-8", "replace").decode("utf-8")
