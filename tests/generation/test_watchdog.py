"""Calls into an engine: results, time-outs that name what was waited for, and the last lines of its log."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from earl_cli.errors import UsageError
from earl_cli.generation.vllm.watchdog import EngineError, EngineThread


def test_all_calls_are_made_in_one_thread_and_give_their_results() -> None:
    caller = EngineThread("the engine", None)
    names = {caller.call("a step", 5, lambda: threading.current_thread().name) for _ in range(3)}
    assert names == {"the engine"}
    ended: list[str] = []
    caller.close(5, lambda: ended.append(threading.current_thread().name))
    assert ended == ["the engine"]


def test_a_call_that_hangs_ends_in_an_error_that_names_it(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("".join(f"line {number}\n" for number in range(40)) + "x" * 999)
    caller, over = EngineThread("the engine", log), threading.Event()
    with pytest.raises(EngineError, match=r"a step by the engine took longer than 0\.2 s") as caught:
        caller.call("a step", 0.2, over.wait)
    message = str(caught.value)
    assert "line 39" in message and "line 20\n" not in message and "x" * 300 not in message
    with pytest.raises(EngineError, match="an update can't be done: the engine is dead"):
        caller.call("an update", 5, list)
    ended = threading.Event()
    caller.close(5, ended.set)
    assert ended.is_set()
    over.set()


def test_a_failure_is_reported_with_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("ERROR the card fell off the bus\n")
    caller = EngineThread("the engine", log)
    with pytest.raises(EngineError, match="a step by the engine failed: division by zero") as caught:
        caller.call("a step", 5, lambda: 1 / 0)
    assert "fell off the bus" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_process_that_has_ended_is_an_error_although_the_call_hangs() -> None:
    over, reasons = threading.Event(), iter([None, "its process ended with -9"])
    caller = EngineThread("the engine", None, lambda: next(reasons))
    with pytest.raises(EngineError, match="a step by the engine failed: its process ended with -9"):
        caller.call("a step", 60, over.wait)
    with pytest.raises(EngineError, match="the engine is dead"):
        caller.call("a step", 60, list)
    over.set()


def test_an_error_for_the_person_stays_what_it_is() -> None:
    def refuse() -> None:
        raise UsageError("no such argument")

    with pytest.raises(UsageError, match="no such argument"):
        EngineThread("the engine", None).call("the start", 5, refuse)


def test_a_program_ends_although_its_engine_hangs() -> None:
    program = (
        "import time\nfrom earl_cli.generation.vllm.watchdog import EngineThread\n"
        "EngineThread('the engine', None).call('a step', 0.2, lambda: time.sleep(600))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "took longer than 0.2 s" in done.stderr
