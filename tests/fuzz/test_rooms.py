"""A minute's worth of `make fuzz`, with the same inputs every time; `make fuzz` takes more of them, of any seed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fuzzing import ROOMS, Room, fuzz, input_of, room_named, summary

from earl_cli.errors import EarlError, InputError

SEED = 0
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits of a process are Linux's")


@pytest.mark.slow
@pytest.mark.parametrize("share", [3, pytest.param(1, marks=pytest.mark.full)], ids=["a third", "all"])
@pytest.mark.parametrize("name", ROOMS)
def test_no_input_does_more_than_be_refused(name: str, share: int, tmp_path: Path) -> None:
    room = room_named(name)
    report = fuzz(room, SEED, range(room.count // share), tmp_path / "kept")
    print(summary(name, report))
    assert not report.failures, "\n".join(report.failures)
    assert report.inputs == room.count // share


@pytest.mark.parametrize("name", ROOMS)
def test_good_inputs_are_good(name: str, tmp_path: Path) -> None:
    room = room_named(name)
    report = fuzz(room, SEED, range(len(room.good)), tmp_path)
    assert not any(ended.startswith("refused") for ended in report.ended), summary(name, report)


def hang(_folder: Path) -> str:
    while True:
        pass


def fill(_folder: Path) -> str:
    return str(len(b"x" * (100 << 20)))


def crash(_folder: Path) -> str:
    import ctypes

    return ctypes.string_at(0).decode()


def refuse(_folder: Path) -> str:
    raise InputError("no")


def fail(_folder: Path) -> str:
    raise ZeroDivisionError


def test_what_fuzzing_looks_for_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzzing.SECONDS", 0.5)
    monkeypatch.setattr("fuzzing.BYTES", 64 << 20)
    ways = {way.__name__: way for way in (refuse, fail, crash, hang, fill, refuse)}

    def read(name: str, _content: bytes, folder: Path) -> str:
        return ways[name](folder)

    room = Room("own", {name: name.encode() for name in ways}, read, (EarlError,))
    report = fuzz(room, 7, range(len(ways)), tmp_path)
    assert (report.inputs, dict(report.ended)) == (5, {"refused by InputError": 1, "failed": 4})
    found = "\n".join(report.failures)
    for words in ("ZeroDivisionError", "SIGSEGV", "more than 0.5 s of processor time", " MiB of memory"):
        assert words in found
    assert "make fuzz FUZZ='own --seed 7 --only 2'" in found
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"fail", b"crash", b"hang", b"fill"}


def test_inputs_follow_from_the_seed_and_are_changed() -> None:
    room = room_named("replies")
    first = [input_of(room, 1, number) for number in range(2000)]
    assert first == [input_of(room, 1, number) for number in range(2000)]
    changed = first[len(room.good) + len(room.hostile) :]
    assert len(set(changed)) > 0.9 * len(changed)
    again = {input_of(room, 2, number) for number in range(2000)} - {*room.good.items(), *room.hostile}
    assert len(again & set(changed)) < 0.2 * len(again)
