"""Calls into an engine that may hang or die: one thread makes them all, and every call has a timeout."""

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
"""Seconds between two checks that the engine's process is alive."""
T = TypeVar("T")


class EngineError(EarlError):
    """An engine that died or exceeded a timeout; the message ends with the last lines of its log."""


class EngineThread:
    """The thread that makes all calls into an engine of that ``name`` and ``log``.

    For an engine in another process, ``exit_reason`` gives how that process ended, None while it runs. The thread is a
    daemon, so a hanging engine doesn't keep the program from exiting.
    """

    def __init__(self, name: str, log: Path | None, exit_reason: Callable[[], str | None] = lambda: None) -> None:
        self.name, self.log, self.exit_reason = name, log, exit_reason
        self.dead = self.hung = False
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, what: str, seconds: float, function: Callable[[], T]) -> T:
        """The function's result. Raises EngineError naming ``what`` if it fails or takes longer than ``seconds``."""
        if self.dead:
            raise self.error(f"{what} can't be done: {self.name} is dead")
        future: Future[T] = Future()
        self._calls.put((future, function))
        try:
            self._wait(future, seconds)
            return future.result(0)
        except TimeoutError as failure:
            self.dead = True
            done = future.done()  # then the function itself raised TimeoutError
            self.hung = not done
            problem = f"failed: {failure}" if done else f"took longer than {seconds:g} s"
            raise self.error(f"{what} by {self.name} {problem}") from failure
        except EarlError:
            raise
        except Exception as failure:
            self.dead = True
            raise self.error(f"{what} by {self.name} failed: {first_line(failure)}") from failure

    def close(self, seconds: float, function: Callable[[], Any]) -> None:
        """Call ``function`` to end the engine, in its thread or, if that hangs, in another; failures are ignored."""
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
            except BaseException as failure:  # raised again in `call`
                future.set_exception(failure)
            del given, future, function

    def error(self, what: str) -> EngineError:
        """An error with the end of the log."""
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
