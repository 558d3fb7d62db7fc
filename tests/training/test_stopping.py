"""Signals while weights are trained: the first is noted and answered, the second does what it does elsewhere."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from earl_cli.training.common import stopping
from earl_cli.training.common.stopping import Stopped, Stopping

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As in `earl_cli.app.main`: what stops the program at once."""
    before = [signal.signal(number, lambda received, _: (_ for _ in ()).throw(Ended(received))) for number in NUMBERS]
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


class Ended(BaseException):
    """What the program's own handlers raise."""


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_is_noted_and_answered(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    asked = Stopping()
    with asked.listening("after this step"):
        assert asked.agreed() is None
        send(number)
        assert asked.agreed() == number
        end = time.monotonic() + 5
        said = ""
        while "stopping after this step, with a checkpoint to go on from" not in said and time.monotonic() < end:
            said += capsys.readouterr().err
    assert "once more stops at once" in said
    assert Stopped(number, 3).code == 128 + number


def test_the_second_stops_at_once_unless_it_is_the_same_press(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a terminal sends to all processes of a group, a launcher may pass on once more."""
    asked = Stopping()
    with asked.listening("soon"):
        send(signal.SIGINT)
        send(signal.SIGINT)
        monkeypatch.setattr(stopping, "SAME_PRESS", 0.0)
        with pytest.raises(Ended):
            send(signal.SIGINT)


def test_afterwards_signals_do_as_before() -> None:
    asked = Stopping()
    with asked.listening("soon"):
        pass
    with pytest.raises(Ended):
        send(signal.SIGTERM)
    assert asked.agreed() is None


def test_what_is_ignored_stays_ignored() -> None:
    """As with nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = Stopping()
    with asked.listening("soon"):
        send(signal.SIGINT)
        assert asked.agreed() is None


def test_what_nobody_waits_for_is_broken_off() -> None:
    asked = Stopping()
    begun = time.monotonic()
    with asked.listening("soon"):
        assert asked.unless_asked(lambda: 7) == 7
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        signal.signal(signal.SIGALRM, lambda *_: send(signal.SIGTERM))
        assert asked.unless_asked(lambda: time.sleep(60)) is None
        assert asked.agreed() == signal.SIGTERM
        assert asked.unless_asked(lambda: 7) is None  # it came before
    assert time.monotonic() - begun < 30
