"""The plan for a device: what is chosen, what it says, and that too little memory is noticed before loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from earl_cli.errors import DeviceError, UsageError
from earl_cli.models import device
from earl_cli.models.device import DevicePlan, device_plan


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_memory", lambda _: 10_000_000_000)


def test_a_small_model_runs_in_full_precision_on_the_cpu(free: None) -> None:
    chosen = device_plan("cpu", 100_000_000, fixed_bytes=20_000_000)
    assert chosen == DevicePlan(torch.device("cpu"), torch.float32, "sdpa", 120_000_000, 10_000_000_000)
    assert str(chosen) == "cpu · float32 · sdpa · needs 0.1 GB, 10.0 GB free"
    assert str(device_plan("cpu")) == "cpu · float32 · sdpa · 10.0 GB free"


def test_what_fits_only_in_16_bits_runs_in_16_bits(free: None) -> None:
    chosen = device_plan("cpu", 16_000_000_000, fixed_bytes=1_000_000_000)
    assert (chosen.dtype, chosen.needed) == (torch.bfloat16, 9_000_000_000)


def test_too_large_a_model_is_refused_with_both_sizes(free: None) -> None:
    with pytest.raises(DeviceError, match=r"needs 17\.0 GB in bfloat16, 10\.0 GB are free") as error:
        device_plan("cpu", 34_000_000_000)
    assert error.value.hint
    with pytest.raises(DeviceError, match=r"needs 16\.0 GB in float32"):
        device_plan("cpu", 16_000_000_000, dtype="float32")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "", "cuda:-1"])
def test_unknown_devices_are_named(name: str) -> None:
    with pytest.raises(UsageError, match="is not a device"):
        device_plan(name)


def test_unknown_types_and_attentions_are_named() -> None:
    with pytest.raises(UsageError, match="'int3' is not a dtype"):
        device_plan("cpu", dtype="int3")
    with pytest.raises(UsageError, match="is not an attention implementation"):
        device_plan("cpu", attention="linear")
    with pytest.raises(DeviceError, match="flash attention needs a CUDA device"):
        device_plan("cpu", attention="flash_attention_2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(DeviceError, match=r"built without CUDA|no usable NVIDIA GPU"):
        device_plan("cuda")
    assert device_plan("auto").device.type in ("cpu", "mps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_large_models_in_16_bits() -> None:
    chosen = device_plan("auto", device.LARGE_BYTES)
    assert chosen.device == torch.device("cuda", torch.cuda.current_device())
    assert chosen.dtype in (torch.bfloat16, torch.float16)
    assert device_plan("cuda:0", 1000).dtype == torch.float32
    with pytest.raises(DeviceError, match="CUDA devices, numbered from 0"):
        device_plan("cuda:99")


def test_a_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert device._own_gpu(8) == 3
    assert device._own_gpu(1) == 0  # srun shows a task the one that it bound to it
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device._own_gpu(8) == 1


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    unlimited = device.free_memory(torch.device("cpu"))
    for name, content in {
        "memory.max": "3000000",
        "memory.current": "2500000",
        "memory.stat": "inactive_file 400000",
    }.items():
        (tmp_path / name).write_text(content + "\n")
    assert device.free_memory(torch.device("cpu")) == 900_000
    assert unlimited is not None
    assert unlimited > 900_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (device.free_memory(torch.device("cpu")) or 0) > 900_000
