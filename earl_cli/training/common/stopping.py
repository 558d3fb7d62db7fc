"""Ctrl-C and SIGTERM during a training: the first stops it with a checkpoint, the second ends the program at once.

A signal can come at any time and to any rank. Its handler only records it; the training checks for it where all ranks
can agree: between two steps, or between two phases of an iteration.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from earl_cli.console import console
from earl_cli.training.common.distributed import all_gather

Value = TypeVar("Value")
REPEAT_SECONDS = 0.5
"""Seconds within which a second signal counts as the first: launchers forward what the terminal already sent."""


class TrainingStopped(SystemExit):
    """Raised when everything is saved, after ``done`` steps or iterations; the exit code is 130 or 143."""

    def __init__(self, number: int, done: int) -> None:
        super().__init__(128 + number)
        self.done = done


class _Interrupted(KeyboardInterrupt):
    """Interrupts work on this rank; libraries that handle Ctrl-C, such as asyncio, let it pass."""


class StopSignal:
    """Records a stop signal: ``number`` is the signal's, None if there was none."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._received_at = 0.0
        self._interruptible = False
        self._previous_handlers: dict[int, Any] = {}

    @contextmanager
    def handling(self, when: str) -> Iterator[None]:
        """Inside the context the first signal is recorded, and a message says that the training stops ``when``."""
        self._message = f"stopping {when}, with a checkpoint to resume from; a second signal stops at once, without one"
        for number in (signal.SIGINT, signal.SIGTERM):
            main = threading.current_thread() is threading.main_thread()
            if main and signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup
                self._previous_handlers[number] = signal.signal(number, self._record)
        try:
            yield
        finally:
            self._restore()

    def run_unless_stopped(self, work: Callable[[], Value]) -> Value | None:
        """The result of ``work``, which must have nothing to undo; None if a signal came before or interrupted it."""
        if self.number is not None:
            return None
        self._interruptible = True
        try:
            try:
                return work()
            finally:
                self._interruptible = False
        except _Interrupted:
            self._interruptible = False  # it may have come right before
            return None

    def agreed_number(self) -> int | None:
        """The signal that any rank received, or None; called on every rank, with the same result."""
        return next((number for number in all_gather(self.number) if number is not None), None)

    def _record(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is not None and now - self._received_at < REPEAT_SECONDS:
            return
        if self.number is not None:
            previous = self._previous_handlers.get(number)
            self._restore()
            if callable(previous):
                previous(number, frame)
            else:
                os.kill(os.getpid(), number)
            return
        self.number, self._received_at = number, now
        # in a thread, without Thread.start: the interrupted code may hold the locks of the console or of threading
        _thread.start_new_thread(console.note, (self._message,))
        if self._interruptible:
            raise _Interrupted

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}
