"""Every program of benchmarks/ at its smallest size: all its sides run, and agree on what they make."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarking import load, smoke
from torch import Tensor

from earl_cli import app

pytestmark = pytest.mark.slow
ROOT = Path(app.__file__).parents[1]
PROGRAMS = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"engines"})
"""All but the one that needs vLLM: it is among vLLM's tests."""
LAST = {"scaling": "| 128 | ", "starting": "5 commands and an edit of both sides", "logprobs": "(x ", "sft": "(x "}
"""What one prints in the end, in place of a ratio."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_benchmark_runs_and_its_sides_agree(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke(program, monkeypatch)
    assert LAST.get(program, "ratio") in capsys.readouterr().out.splitlines()[-1]


def test_memory_over_a_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    smoke("tokenizing", monkeypatch, "--memory", "100")
    assert "100 rows, 1 worker process(es), peak of this process" in capsys.readouterr().out


@pytest.mark.full
def test_one_rank_and_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    smoke("tokenizing", monkeypatch, "--ranks")
    assert "equal shards" in capsys.readouterr().out


def test_sides_that_disagree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vision = load("vision").vision
    decode = vision.decode

    def brighter(*args: object) -> Tensor:
        found: Tensor = decode(*args)
        return found + 0.01

    monkeypatch.setattr(vision, "decode", brighter)
    with pytest.raises(SystemExit, match=r"error: 16 pixels: codes equal: True, pixels differ by up to 0\.01"):
        smoke("vision", monkeypatch)
