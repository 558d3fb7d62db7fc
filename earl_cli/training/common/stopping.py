"""Ctrl-C and SIGTERM while weights are trained: the first asks for a checkpoint, the second ends the program at once.

A signal comes at any moment and to any of the processes. So it is only noted, and the training looks at the places
where all processes can agree that it came: between two steps, or between two parts of an iteration.
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
"""Seconds within which a signal that comes twice was sent once: launchers pass on what the terminal sent already."""


class TrainingStopped(SystemExit):
    """Raised once everything is saved; ``done`` steps or iterations are. Its code is the signal's: 130 or 143."""

    def __init__(self, number: int, done: int) -> None:
        super().__init__(128 + number)
        self.done = done


class _Now(KeyboardInterrupt):
    """Breaks off what nobody else waits for; what knows of Ctrl-C, such as asyncio, lets it through."""


class StopSignal:
    """Whether somebody asked this training to stop; ``number`` is that signal's, None as long as nobody has."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._came = 0.0
        self._breaking_off = False
        self._before: dict[int, Any] = {}

    @contextmanager
    def handling(self, when: str) -> Iterator[None]:
        """Within, the first signal is noted and answered: the training stops ``when``. Elsewhere they do as ever."""
        self._answer = f"stopping {when}, with a checkpoint to go on from; once more stops at once, without"
        for number in (signal.SIGINT, signal.SIGTERM):
            here = threading.current_thread() is threading.main_thread()
            if here and signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup
                self._before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            self._restore()

    def run_unless_stopped(self, work: Callable[[], Value]) -> Value | None:
        """What ``work`` gives; None if a signal came before, or broke it off. It must have nothing to undo."""
        if self.number is not None:
            return None
        self._breaking_off = True
        try:
            try:
                return work()
            finally:
                self._breaking_off = False
        except _Now:
            self._breaking_off = False  # it may have come right before
            return None

    def agreed_number(self) -> int | None:
        """The signal that any of the processes has been sent; called in every one of them, which learn the same."""
        return next((number for number in all_gather(self.number) if number is not None), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is not None and now - self._came < REPEAT_SECONDS:
            return
        if self.number is not None:
            before = self._before.get(number)
            self._restore()
            if callable(before):
                before(number, frame)
            else:
                os.kill(os.getpid(), number)
            return
        self.number, self._came = number, now
        # by a thread, and not by Thread.start: this one may be within the console or that at this moment
        _thread.start_new_thread(console.note, (self._answer,))
        if self._breaking_off:
            raise _Now

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
