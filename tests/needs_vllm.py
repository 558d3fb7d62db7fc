"""For test modules that run vLLM: skipped where it isn't installed, and an error where it should be."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


def need_vllm() -> None:
    """To be called while a module is collected."""
    if find_spec("vllm") is None:
        if os.environ.get("EARL_NEEDS_VLLM") == "1":
            raise ModuleNotFoundError("EARL_NEEDS_VLLM is set, but vllm isn't installed here: make test-vllm")
        pytest.skip("vLLM isn't installed here; `make test-vllm` runs this", allow_module_level=True)
