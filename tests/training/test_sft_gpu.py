"""Training on a CUDA device: bfloat16, sharded and offloaded, and adapters on 4-bit weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import options, write_pairs

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
SMALL = {"max_steps": 20, "batch_size": 2, "accumulation": 1, "warmup_steps": 2, "learning_rate": 3e-3}
OTHER = {"checkpoint_every": 20, "log_every": 1, "precision": "bfloat16", "gallery_examples": 0}


def losses(model: Path, folder: Path, **values: object) -> list[float]:
    """Of every step of a small run, after which the model is loaded and edits an image."""
    store = write_pairs(folder / "store", 20)
    run = folder / "run"
    command = [sys.executable, "-m", "earl_cli", "sft", "--model", model, "--data", store, "-o", run]
    settings = options(**SMALL, **OTHER, **values)
    done = subprocess.run([*map(str, command), *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from earl_cli.models.bundle import load_model

    assert load_model(str(run), device="cuda").device.type == "cuda"
    log = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in log if "loss" in line]


@pytest.mark.parametrize("sharding", ["none", "zero2", "zero3", "zero3-offload"])
def test_every_sharding_learns_in_bfloat16(sharding: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    found = losses(tiny_model_dir, tmp_path, sharding=sharding)
    assert found[-1] < 0.8 * found[0]


def test_adapters_learn_on_4_bit_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    found = losses(tiny_model_dir, tmp_path, lora_rank=8, quantize="4bit")
    assert found[-1] < found[0]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_flash_attention_gives_nearly_the_same_losses(tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("flash_attn")
    sdpa = losses(tiny_model_dir, tmp_path / "sdpa", attention="sdpa", lora_rank=8)
    flash = losses(tiny_model_dir, tmp_path / "flash", attention="flash_attention_2", lora_rank=8)
    assert flash == pytest.approx(sdpa, rel=0.05)
