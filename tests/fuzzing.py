"""Damaged and hostile inputs by the thousand, read as the program reads them: `make fuzz`, and a part of the tests.

A room (`tests/fuzz/`) has good inputs, hostile snippets, and a function that reads one input as the program does. That
may end well or in an EarlError; a crash, another exception, a time-out or too much memory is a failure, whose input is
kept. Inputs follow from the room, a seed and a number alone, and are read in a forked process with limits.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOMS = (
    "images",
    "tables",
    "saved",
    "tars",
    "pickles",
    "stores",
    "models",
    "configs",
    "replies",
    "requests",
    "results",
)
SECONDS, BYTES = 10.0, 1 << 30  # of processor time for one input, of memory beyond what the process began with
INTERESTING = (0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_NUMBER = re.compile(rb"\d+")
_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"9" * 20, b"9" * 6000, b"0.5", b"null", b'"1"', b"[]", b"true")


@dataclass(frozen=True)
class Room:
    """What is fuzzed: ``good`` inputs by name, hostile ``snippets`` to be spliced in, whole ``hostile`` inputs by name.

    ``read`` gets an input's name (as of its good form), its bytes, and an empty folder; what it returns is counted.
    ``allowed`` are the exceptions that are an answer. ``count`` inputs are read in the tests.
    """

    name: str
    good: Mapping[str, bytes]
    read: Callable[[str, bytes, Path], str]
    allowed: tuple[type[Exception], ...]
    snippets: Sequence[bytes] = ()
    hostile: Sequence[tuple[str, bytes]] = ()
    count: int = 300


@dataclass
class Report:
    """How the inputs of a room ended, and the failures in words, each with the file that keeps its input."""

    inputs: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def input_of(room: Room, seed: int, number: int) -> tuple[str, bytes]:
    """The input of this number: first the good ones, then the hostile ones, then changed ones without end."""
    whole = [*room.good.items(), *room.hostile]
    if number < len(whole):
        return whole[number]
    choice = random.Random(f"{room.name} {seed} {number}")
    name = choice.choice(list(room.good))
    content = bytearray(room.good[name])
    others = [other for each, other in room.good.items() if each != name]
    for _ in range(choice.choice((1, 1, 2, 3, 6))):
        choice.choice(CHANGES)(content, choice, room.snippets, others)
    return name, bytes(content)


# -- changes -----------------------------------------------------------------------------------------------------------

Change = Callable[[bytearray, random.Random, Sequence[bytes], Sequence[bytes]], None]


def _span(content: bytearray, choice: random.Random) -> slice:
    start = choice.randrange(len(content) + 1)
    return slice(start, start + min(int(choice.expovariate(0.05)) + 1, 4096))


def flip(content: bytearray, choice: random.Random, *_: object) -> None:
    """Some bits."""
    for _bit in range(choice.randint(1, 4) if content else 0):
        content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)


def cut(content: bytearray, choice: random.Random, *_: object) -> None:
    """All that follows a place."""
    del content[choice.randrange(len(content) + 1) :]


def remove(content: bytearray, choice: random.Random, *_: object) -> None:
    """A few bytes somewhere."""
    del content[_span(content, choice)]


def repeat(content: bytearray, choice: random.Random, *_: object) -> None:
    """A few bytes, once more or many times."""
    span = _span(content, choice)
    content[span.start : span.start] = content[span] * choice.choice((1, 2, 40))


def stretch(content: bytearray, choice: random.Random, *_: object) -> None:
    """One to three bytes, thousands of times: what takes the square of a length shows."""
    start = choice.randrange(len(content) + 1)
    content[start:start] = bytes(content[start : start + choice.randint(1, 3)]) * 20_000


def scramble(content: bytearray, choice: random.Random, *_: object) -> None:
    """A few bytes become others."""
    span = _span(content, choice)
    content[span] = choice.randbytes(len(content[span]))


def tamper(content: bytearray, choice: random.Random, *_: object) -> None:
    """What may be a length, a count or an offset in binary becomes another one."""
    width = choice.choice((1, 2, 4, 8))
    start = choice.randrange(len(content) + 1)
    value = choice.choice(INTERESTING) % (1 << 8 * width)
    content[start : start + width] = value.to_bytes(width, choice.choice(("little", "big")))


def renumber(content: bytearray, choice: random.Random, *_: object) -> None:
    """A number in metrics becomes another one, or something else."""
    numbers = list(_NUMBER.finditer(content))
    if numbers:
        found = choice.choice(numbers)
        content[found.start() : found.end()] = choice.choice(_NUMBERS)


def insert(content: bytearray, choice: random.Random, snippets: Sequence[bytes], _others: object) -> None:
    """A hostile snippet comes in, or takes the place of something."""
    if snippets:
        span = _span(content, choice)
        stop = span.start if choice.random() < 0.5 else span.stop
        content[span.start : stop] = choice.choice(snippets)


def splice(content: bytearray, choice: random.Random, _snippets: object, others: Sequence[bytes]) -> None:
    """It goes on as another good input does."""
    if others:
        other = choice.choice(others)
        content[choice.randrange(len(content) + 1) :] = other[choice.randrange(len(other) + 1) :]


CHANGES: tuple[Change, ...] = (
    flip,
    cut,
    remove,
    repeat,
    stretch,
    scramble,
    tamper,
    tamper,
    renumber,
    insert,
    insert,
    splice,
)


# -- reading -----------------------------------------------------------------------------------------------------------


def fuzz(room: Room, seed: int, numbers: Sequence[int], keep: Path) -> Report:
    """Read these inputs; what fails is kept in the folder ``keep``."""
    report = Report()
    began = time.monotonic()

    def note(ended: str, number: int, why: str) -> None:
        report.inputs += 1
        report.ended[ended] += 1
        if why:
            report.failures.append(_kept(room, seed, number, why, keep))

    left = list(numbers)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        while left:
            done, died = _in_a_child(room, seed, left, Path(place), note)
            if died:
                note("failed", left[done], died)
            left = left[done + bool(died) :]
    report.seconds = time.monotonic() - began
    return report


def _in_a_child(
    room: Room, seed: int, numbers: Sequence[int], place: Path, note: Callable[[str, int, str], None]
) -> tuple[int, str]:
    """How many were read, each in a folder at ``place``, and what killed the child if it was killed."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        with os.fdopen(write_end, "w", buffering=1) as pipe:
            _read_all(room, seed, numbers, place, lambda result: print(json.dumps(result), file=pipe))
    os.close(write_end)
    done = 0
    with os.fdopen(read_end) as pipe:
        for line in pipe:
            note(*json.loads(line))
            done += 1
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if done == len(numbers):
        return done, ""
    if code == -signal.SIGPROF:
        return done, f"more than {SECONDS:g} s of processor time"
    if code == -signal.SIGALRM:
        return done, f"more than {6 * SECONDS:g} s"
    return done, f"the process ended by {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _read_all(room: Room, seed: int, numbers: Sequence[int], place: Path, say: Callable[[object], None]) -> None:
    """In the child, which never returns: every input, and what came of it."""
    try:
        gc.freeze()
        faulthandler.disable()
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 2 * BYTES, now + 2 * BYTES))
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        for number in numbers:
            name, content = input_of(room, seed, number)
            before = _peak_from_now_on()
            folder = Path(tempfile.mkdtemp(dir=place))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)
            ended, why = _read(room, name, content, folder)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            grown = _peak() - before
            if grown > BYTES and not why:
                ended, why = "failed", f"{grown >> 20} MiB of memory"
            shutil.rmtree(folder, ignore_errors=True)
            say((ended, number, why))
        os._exit(0)
    finally:
        os._exit(3)


def _peak_from_now_on() -> int:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    """The most memory that this process had, in bytes."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(line) << 10


def _read(room: Room, name: str, content: bytes, folder: Path) -> tuple[str, str]:
    try:
        return room.read(name, content, folder), ""
    except room.allowed as error:
        return f"refused by {type(error).__name__}", ""
    except BaseException as error:  # whatever it is, it is what this looks for
        lines = traceback.format_exception(error)
        return "failed", "".join(lines[:1] + lines[-6:])


def _kept(room: Room, seed: int, number: int, why: str, keep: Path) -> str:
    name, content = input_of(room, seed, number)
    keep.mkdir(parents=True, exist_ok=True)
    file = keep / f"{room.name}-{seed}-{number}-{name.replace('/', '-')}"
    file.write_bytes(content)
    again = f"make fuzz FUZZ='{room.name} --seed {seed} --only {number}'"
    return f"{room.name}, input {number} of seed {seed} ({name}): {why}\n  kept as {file}; again: {again}"


def room_named(name: str) -> Room:
    """The room of a module in `tests/fuzz`."""
    room = importlib.import_module(f"fuzz.{name}").ROOM
    assert isinstance(room, Room)
    return room


def summary(name: str, report: Report) -> str:
    """One line."""
    ends = ", ".join(f"{count} {what}" for what, count in report.ended.most_common())
    return f"{name:10} {report.inputs:6} inputs in {report.seconds:5.1f} s: {ends}"
