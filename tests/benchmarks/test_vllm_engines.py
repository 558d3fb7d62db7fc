"""benchmarks/engines.py at its smallest size, with vLLM for real."""

from __future__ import annotations

import pytest
from benchmarking import smoke
from needs_vllm import need_vllm

need_vllm()
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_both_engines_run_and_agree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    smoke("engines", monkeypatch)
    assert "ratio" in capsys.readouterr().out
