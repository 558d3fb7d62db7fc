"""The vLLM engine on a GPU: rest between two calls, new weights, and both engines at the size of 8 B.

Only `make gpu-check` runs this, where vLLM's build for CUDA is installed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from needs_vllm import need_vllm

from earl_cli.config.sampling import SamplingParams
from earl_cli.generation.engine import SamplingRequest
from earl_cli.generation.vllm.engine import VllmEngine
from earl_cli.models.bundle import load_model
from earl_cli.tokens.layout import Grid

need_vllm()
pytestmark = [pytest.mark.gpu, pytest.mark.vllm, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def test_an_engine_that_slept_samples_with_the_weights_it_is_given() -> None:
    model = load_model(None, device="cuda")
    codes = torch.arange(12 * 12).reshape(12, 12).numpy() % model.layout.vocabulary.codes
    prompt = model.layout.prompt(codes, "make it snowy", "edit", Grid(12, 12))
    requests = [SamplingRequest(tuple(prompt.tolist()), "edit", Grid(12, 12), (1, 2))]
    engine = VllmEngine(
        model.folder,
        model.layout,
        device=model.device,
        dtype=model.dtype,
        engine_args={"gpu_memory_utilization": 0.3},
        sleeping=True,
    )
    try:
        before = engine.generate(requests, SamplingParams(0))
        awake = torch.cuda.mem_get_info()[0]
        engine.sleep()
        assert torch.cuda.mem_get_info()[0] > awake + 1_000_000_000
        engine.update_weights(model.language.state_dict().items())
        after = engine.generate(requests, SamplingParams(0))
        assert [each.ids.tolist() for each in after[0]] == [each.ids.tolist() for each in before[0]]
        assert all(each.finished for each in after[0])
    finally:
        engine.close()


def test_both_engines_at_the_size_of_8_b() -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "engines.py"),
        "--large",
        "--rounds",
        "1",
        "--prompts",
        "1",
        "8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vllm" in done.stdout.lower()
    print(done.stdout)
