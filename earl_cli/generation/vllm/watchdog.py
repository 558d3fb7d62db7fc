"""Calls into an engine that may hang or die: one thread makes them all, and nobody waits for it for ever."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from earl_cli.errors import EarlError, first_line

LOG_LINES, LOG_WIDTH = 12, 200
POLL_SECONDS = 0.5
"""Seconds between two looks at whether the engine's process is still there."""
T = TypeVar("T")


class EngineError(EarlError):
    """An engine that died or gave no answer in time; the message ends with the last lines of its log."""


class EngineThread:
    """The thread that an engine lives in; ``name`` and ``log`` are the engine's.

    Of an engine in another process ``ended`` says how it has ended, None while it runs. Being no part of what Python
    waits for at its end, the thread can't keep a program from ending either.
    """

    def __init__(self, name: str, log: Path | None, exit_reason: Callable[[], str | None] = lambda: None) -> None:
        self.name, self.log, self.exit_reason = name, log, exit_reason
        self.dead = self.hung = False
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, what: str, seconds: float, function: Callable[[], T]) -> T:
        """The function's result. Raises EngineError naming ``what`` if it fails or takes longer than ``seconds``."""
        if self.dead:
            raise self.error(f"{what} was asked of {self.name}, which is dead")
        future: Future[T] = Future()
        self._calls.put((future, function))
        try:
            self._wait(future, seconds)
            return future.result(0)
        except TimeoutError as failure:
            self.dead = True
            done = future.done()  # then the function itself raised it
            self.hung = not done
            problem = f"failed: {failure}" if done else f"took longer than {seconds:g} s"
            raise self.error(f"{what} by {self.name} {problem}") from failure
        except EarlError:
            raise
        except Exception as failure:
            self.dead = True
            raise self.error(f"{what} by {self.name} failed: {first_line(failure)}") from failure

    def close(self, seconds: float, function: Callable[[], Any]) -> None:
        """Let ``function`` end the engine, in its thread or, if that hangs, in another; what fails or hangs is left."""
        ended = threading.Event()

        def end() -> None:
            try:
                function()
            finally:
                ended.set()

        future: Future[Any] = Future()
        self.dead = True
        if self.hung:
            threading.Thread(target=end, daemon=True).start()
        else:
            self._calls.put((future, end))
            self._calls.put(None)
        ended.wait(seconds)

    def _wait(self, future: Future[Any], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not wait([future], max(0, min(POLL_SECONDS, end - time.monotonic()))).done and time.monotonic() < end:
            if reason := self.exit_reason():
                self.hung = True
                raise ConnectionError(reason)

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            future, function = given
            try:
                future.set_result(function())
            except BaseException as failure:  # the caller's to judge
                future.set_exception(failure)
            del given, future, function

    def error(self, what: str) -> EngineError:
        """``what``, with the end of the log."""
        last = log_tail(self.log)
        return EngineError(what, hint="\n".join(["the end of its log:", *last]) if last else None)


def log_tail(log: Path | None) -> list[str]:
    """The end of a log, [] if there is none."""
    if log is None or not log.is_file():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 16_384))
        lines = stream.read().decode(errors="replace").splitlines()
    return [line[:LOG_WIDTH] for line in lines if line.strip()][-LOG_LINES:]
