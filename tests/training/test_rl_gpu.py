"""Reinforcement learning on a CUDA device: bfloat16, sharded and offloaded, with adapters; and fused attention."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainings import options, write_pairs

from earl_cli.training.rl.policy import fused_attention, matmul_attention

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
SMALL = {"episodes_per_iteration": 16, "generations_per_sample": 4, "learning_rate": 1e-3, "max_response_tokens": 64}
OTHER = {"max_length": 128, "num_iterations": 4, "precision": "bfloat16"}


def metrics(model: Path, folder: Path, **values: object) -> list[dict[str, float]]:
    """The log of a small run, after which the model is loaded."""
    store = write_pairs(folder / "store", 20)
    run = folder / "run"
    command = [sys.executable, "-m", "earl_cli", "rl", "--model", model, "--data", store, "-o", run]
    settings = ["--reward", "reference", *options(**SMALL, **OTHER, **values)]
    done = subprocess.run([*map(str, command), *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from earl_cli.models.bundle import load_model

    assert load_model(str(run), device="cuda").device.type == "cuda"
    return list(map(json.loads, (run / "log.jsonl").read_text().splitlines()))


@pytest.mark.parametrize("sharding", ["none", "zero2", "zero3", "zero3-offload"])
def test_every_sharding_trains_in_bfloat16(sharding: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    found = metrics(tiny_model_dir, tmp_path, sharding=sharding)
    assert len(found) == 4
    assert all(line["grad_norm"] > 0 for line in found)
    assert found[0]["sampler_mismatch"] < 0.1
    assert abs(found[0]["kl"]) < 0.01
    assert found[-1]["kl"] > found[0]["kl"]


def test_adapters_train(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = metrics(tiny_model_dir, tmp_path, lora_rank=8, gradient_checkpointing=True)
    assert all(line["grad_norm"] > 0 for line in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_forward_and_backward(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 65, 8, 64), (3, 65, 2, 64), (3, 65, 2, 64), (130, 2, 64), (130, 2, 64)]
    exact = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    fast = [each.detach().to("cuda", dtype).requires_grad_() for each in exact]
    results = []
    for attend, (query, key, value, *prompt) in ((matmul_attention, exact), (fused_attention, fast)):
        mixed = attend(query, key, value, (prompt[0], prompt[1]))
        mixed.float().square().sum().backward()
        results.append(mixed.float().cpu())
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)
    for ours, reference in zip(fast, exact, strict=True):
        torch.testing.assert_close(ours.grad.float().cpu(), reference.grad, rtol=0.1, atol=10 * tolerance)
