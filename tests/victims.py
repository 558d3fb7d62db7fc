"""Runs of ``earl`` that are made to be killed: as a program of its own, or forked from one that has imported it all.

Run as a script this file is that program: it reads orders from stdin, a line of JSON each, and answers on stdout. A
fork costs hundredths of a second where a start costs several; the processes that the run itself starts are real.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

MARK = "EARL_TEST_RUN"
ROWS_PER_SHARD = 16
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Run:
    """A run that was started: leads its own group of processes, its output goes to ``log``."""

    pid: int
    mark: str
    log: Path
    wait_for_end: Callable[[float], int | None]

    def wait(self, seconds: float = 120) -> int:
        """Its exit code, or minus the number of the signal that ended it."""
        code = self.wait_for_end(seconds)
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise TimeoutError(f"still running after {seconds} s:\n{self.output}")
        return code

    def send(self, number: signal.Signals = signal.SIGKILL) -> None:
        """To this process alone; it may have ended already."""
        os.kill(self.pid, number)

    def frozen(self) -> Run:
        """This run, once it has frozen in the phase that it was started with."""
        wait_until_frozen(self.pid, lambda: self.output)
        return self

    def wait_for_library(self, name: str) -> None:
        """Until it has loaded this shared library: it imports things by then, for seconds."""
        while name not in Path(f"/proc/{self.pid}/maps").read_text():
            time.sleep(0.002)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to the whole group."""
        os.killpg(self.pid, signal.SIGINT)

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def children(self) -> list[int]:
        """The processes that it started and that still live."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdecimal() and f"{MARK}={self.mark}\0".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return [pid for pid in found if pid != self.pid]


def wait_until_frozen(pid: int, output: Callable[[], str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    status = ""
    while status != psutil.STATUS_STOPPED:
        with contextlib.suppress(psutil.NoSuchProcess):
            status = psutil.Process(pid).status()
        assert status != psutil.STATUS_ZOMBIE and psutil.pid_exists(pid), f"it ended before:\n{output()}"
        assert time.monotonic() < end, output()
        time.sleep(0.002)


class Launcher(Protocol):
    def __call__(self, *args: object, environment: Mapping[str, str] = ..., freeze: str | None = ...) -> Run:
        """Start ``earl`` with these arguments; it freezes in the phase ``freeze`` of `phases`."""
        ...


def program(freeze: str | None) -> list[str]:
    """What runs ``earl``, to be followed by its arguments."""
    return ["-m", "earl_cli"] if freeze is None else [str(Path(__file__).with_name("phases.py")), freeze]


def own_program(
    logs: Path, *args: object, environment: Mapping[str, str] | None = None, freeze: str | None = None
) -> Run:
    """``python -m earl_cli`` as a user starts it."""
    mark, log = _new_run(logs)
    process = subprocess.Popen(
        [sys.executable, *program(freeze), *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in background
        env={**os.environ, **ENVIRONMENT, **(environment or {}), MARK: mark},
    )

    def wait_for_end(seconds: float) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return Run(process.pid, mark, log, wait_for_end)


class Forks:
    """Starts runs of ``earl`` with shards of `ROWS_PER_SHARD` rows, out of a process that has all its imports done."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self._answer() == "ready"

    def __call__(
        self,
        *args: object,
        environment: Mapping[str, str] | None = None,
        touches: int = 0,
        largest: int = 0,
        freeze: str | None = None,
    ) -> Run:
        """Start ``earl``; it freezes in the phase ``freeze`` of `phases`.

        ``touches``: at which operation on its output's files it is killed. ``largest``: bytes that one may have.
        """
        mark, log = _new_run(self.logs)
        given = {**(environment or {}), MARK: mark}
        order = {"args": list(map(str, args)), "environment": given, "log": str(log)}
        order |= {"touches": touches, "largest": largest, "freeze": freeze}
        pid = self._ask(order)
        return Run(pid, mark, log, lambda seconds: self._ask({"wait": pid, "seconds": seconds}))

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=30)


def _new_run(logs: Path) -> tuple[str, Path]:
    mark = secrets.token_hex(8)
    return mark, logs / f"{mark}.log"


# -- the program that forks ----------------------------------------------------------------------------------------


def serve() -> None:
    """Fork a run for every request, until the input ends."""
    import pandas  # noqa: F401 - so does pyarrow, at its first table
    from transformers.models.emu3 import modeling_emu3  # noqa: F401

    from earl_cli.commands import tokenize as _command  # noqa: F401
    from earl_cli.data import tokenizing
    from earl_cli.data.sources import registry  # noqa: F401
    from earl_cli.models import bundle  # noqa: F401

    tokenizing.TokenizeSettings = functools.partial(tokenizing.TokenizeSettings, rows_per_shard=ROWS_PER_SHARD)
    import phases  # noqa: F401

    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    assert len([name for name in threads if "jemalloc" not in name]) == 1, threads  # a fork leaves other threads behind
    gc.collect()
    gc.freeze()
    print(json.dumps("ready"), flush=True)
    started = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = _wait(order["wait"], order["seconds"])
            if answer is not None:
                started.discard(order["wait"])
        else:
            answer = os.fork()
            if not answer:
                run(order)
            started.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in started:  # of a test that failed
        os.kill(pid, signal.SIGKILL)


def _wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def run(order: Mapping[str, Any]) -> None:
    """Become the ``earl`` that was ordered."""
    from phases import freeze_in

    from earl_cli.app import main

    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    sys.argv = ["earl", *order["args"]]
    if order["largest"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"], order["largest"]))
    if order["freeze"]:
        freeze_in(order["freeze"], order["args"])
    if order["touches"]:
        sys.addaudithook(_end_at(order["touches"], order["args"][order["args"].index("-o") + 1]))
    main()


def _end_at(touches: int, folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    counted: Iterator[int] = iter(range(1, touches + 1))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in TOUCHES and str(args[0]).startswith(folder) and next(counted, touches) == touches:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    serve()
