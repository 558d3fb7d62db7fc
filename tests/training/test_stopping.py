"""Signals during a training: the first is recorded and answered, the second acts as usual."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from earl_cli.training.common import stopping
from earl_cli.training.common.stopping import StopSignal, TrainingStopped

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is printed, by a thread that may come late. Signals are handled as in `earl_cli.app.main`: they end it."""
    found: list[str] = []
    monkeypatch.setattr(stopping.console, "note", found.append)
    before = [signal.signal(number, lambda received, _: (_ for _ in ()).throw(Ended(received))) for number in NUMBERS]
    yield found
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


class Ended(BaseException):
    """What the program's own handlers raise."""


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_is_noted_and_answered(number: int, noted: list[str]) -> None:
    stop = StopSignal()
    with stop.handling("after this step"):
        assert stop.agreed_number() is None
        send(number)
        assert stop.agreed_number() == number
        end = time.monotonic() + 60
        while not noted and time.monotonic() < end:
            time.sleep(0.01)
    message = "stopping after this step, with a checkpoint to resume from; a second signal stops at once, without one"
    assert noted == [message]
    assert TrainingStopped(number, 3).code == 128 + number


def test_the_second_stops_at_once_unless_it_is_the_same_press(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a terminal sends to all processes of a group, a launcher may pass on once more."""
    stop = StopSignal()
    with stop.handling("soon"):
        send(signal.SIGINT)
        send(signal.SIGINT)
        monkeypatch.setattr(stopping, "REPEAT_SECONDS", 0.0)
        with pytest.raises(Ended):
            send(signal.SIGINT)


def test_afterwards_signals_do_as_before() -> None:
    stop = StopSignal()
    with stop.handling("soon"):
        pass
    with pytest.raises(Ended):
        send(signal.SIGTERM)
    assert stop.agreed_number() is None


def test_what_is_ignored_stays_ignored() -> None:
    """As with nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopSignal()
    with stop.handling("soon"):
        send(signal.SIGINT)
        assert stop.agreed_number() is None


def test_interruptible_work_is_interrupted() -> None:
    stop = StopSignal()
    with stop.handling("soon"):
        assert stop.run_unless_stopped(lambda: 7) == 7
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        signal.signal(signal.SIGALRM, lambda *_: send(signal.SIGTERM))
        assert stop.run_unless_stopped(lambda: time.sleep(60) or "slept") is None
        assert stop.agreed_number() == signal.SIGTERM
        assert stop.run_unless_stopped(lambda: 7) is None  # it came before
