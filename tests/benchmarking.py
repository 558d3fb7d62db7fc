"""Programs of benchmarks/ run in this process."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch


def load(program: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{program}")


def smoke(program: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """At its smallest size. The number of torch's threads, which a program sets, stays as it was."""
    monkeypatch.setattr(sys, "argv", [program, "--smoke", *more])
    threads = torch.get_num_threads()
    try:
        load(program).main()
    finally:
        torch.set_num_threads(threads)
