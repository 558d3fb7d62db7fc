"""Device, dtype and attention for a model, chosen by what the machine has; memory is checked before loading."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from earl_cli.errors import DeviceError, UsageError

LARGE_BYTES = 4_000_000_000
"""Bytes in float32 from which a model runs in 16 bits on a GPU; smaller models run in float32."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("sdpa", "flash_attention_2", "eager")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DevicePlan:
    """The chosen settings; ``needed`` and ``free`` are bytes on ``device``, ``free`` is None if unknown."""

    device: torch.device
    dtype: torch.dtype
    attention: str
    needed: int
    free: int | None

    def __str__(self) -> str:
        memory = [f"needs {_gigabytes(self.needed)}"] if self.needed else []
        memory += [f"{_gigabytes(self.free)} free"] if self.free is not None else []
        return " · ".join(
            [
                str(self.device),
                str(self.dtype).removeprefix("torch."),
                self.attention,
                *filter(None, [", ".join(memory)]),
            ]
        )


def device_plan(
    device: str = "auto", needed_bytes: int = 0, *, fixed_bytes: int = 0, dtype: str = "auto", attention: str = "auto"
) -> DevicePlan:
    """A plan for a model that takes ``needed_bytes`` in float32 (half of that in 16 bits), plus ``fixed_bytes``.

    ``device``: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps. ``dtype``: auto is bfloat16 (float16 where
    a GPU has no bfloat16) for large models on a GPU, and elsewhere float32 if that fits. ``attention``: auto is
    flash_attention_2 where it is installed and can run, else sdpa. Raises DeviceError for a device that isn't there or
    whose free memory is too small, UsageError for an unknown name.
    """
    chosen = choose_device(device)
    free = free_memory(chosen)
    candidates = [_dtype(dtype)] if dtype != "auto" else _dtypes(chosen, large=needed_bytes >= LARGE_BYTES)
    plans = [_plan(chosen, kind, attention, needed_bytes, fixed_bytes, free) for kind in candidates]
    fitting = [each for each in plans if free is None or each.needed <= free]
    if not fitting:
        smallest = min(plans, key=lambda each: each.needed)
        needs = f"the model needs {_gigabytes(smallest.needed)} in {_name(smallest.dtype)}"
        what = f"{needs}, {_gigabytes(free or 0)} are free"
        raise DeviceError(what, where=str(chosen), hint=_alternative(chosen, smallest.needed))
    return fitting[0]


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name, for CUDA with its index. Raises DeviceError if it isn't there, UsageError if unknown."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdecimal())):
        raise UsageError(f"{name!r} is not a device", where="device", hint="auto, cpu, cuda, cuda:0, cuda:1, … or mps")
    if kind == "cuda":
        return _cuda(int(number) if number else None)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("this machine or this torch has no Apple GPU", where="mps", hint="use --device cpu")
    return torch.device(kind)


def preferred_dtype(device: str, needed_bytes: int) -> str:
    """The best dtype for a model of ``needed_bytes`` in float32, by name, regardless of free memory."""
    return _name(_dtypes(choose_device(device), large=needed_bytes >= LARGE_BYTES)[0])


def free_memory(device: torch.device) -> int | None:
    """Free memory of a device in bytes, on a CPU also within the container's limit. None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    limits = [limit for limit in (_machine_memory(), _container_memory()) if limit is not None]
    return min(limits) if limits else None


def _plan(
    device: torch.device, dtype: torch.dtype, attention: str, needed: int, fixed: int, free: int | None
) -> DevicePlan:
    return DevicePlan(device, dtype, _attention(attention, device, dtype), needed * dtype.itemsize // 4 + fixed, free)


def _cuda(index: int | None) -> torch.device:
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        what = "no usable NVIDIA GPU was found" if built else "this torch was built without CUDA"
        hint = "check `nvidia-smi`" if built else "install the CUDA build of torch, or use --device cpu"
        raise DeviceError(what, where="cuda", hint=hint)
    count = torch.cuda.device_count()
    index = _own_gpu(count) if index is None else index
    if index >= count:
        raise DeviceError(f"there are only {count} CUDA devices, numbered from 0", where=f"cuda:{index}")
    return torch.device("cuda", index)


def _own_gpu(count: int) -> int:
    """The GPU of this rank under torchrun or srun (with srun a task may see its own GPU only), else the current one."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    if "SLURM_LOCALID" in os.environ:
        return int(os.environ["SLURM_LOCALID"]) % count
    return int(torch.cuda.current_device())


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UsageError(f"{name!r} is not a dtype", hint=f"auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _dtypes(device: torch.device, *, large: bool) -> list[torch.dtype]:
    """Dtypes to try, best first."""
    if device.type == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return [half] if large else [torch.float32, half]
    return [torch.bfloat16] if device.type == "mps" and large else [torch.float32, torch.bfloat16]


def _attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    flash = device.type == "cuda" and dtype != torch.float32 and find_spec("flash_attn") is not None
    if name == "auto":
        return "flash_attention_2" if flash and torch.cuda.get_device_capability(device) >= (8, 0) else "sdpa"
    if name not in ATTENTIONS:
        raise UsageError(f"{name!r} is not an attention implementation", hint=f"auto, {', '.join(ATTENTIONS)}")
    if name == "flash_attention_2" and not flash:
        raise DeviceError(
            "flash attention needs a CUDA device, 16-bit numbers and the package flash-attn",
            where=str(device),
            hint='pip install "earl-cli[flash-attn]", or --set attention=sdpa',
        )
    return name


def _alternative(device: torch.device, needed: int) -> str:
    if device.type != "cpu" and (_machine_memory() or 0) >= needed:
        return "use --device cpu, which has the memory but is slow"
    if device.type == "cuda":
        roomy = [i for i in range(torch.cuda.device_count()) if torch.cuda.mem_get_info(i)[0] >= needed]
        return f"use --device cuda:{roomy[0]}" if roomy else "free memory on the GPU, or use a smaller model"
    return "close other programs, or use a smaller model"


def _machine_memory() -> int | None:
    """Memory of the machine that is free or can be freed at once, in bytes."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def _container_memory() -> int | None:
    """Bytes left under the memory limit of the control group (v2, v1), not counting cached files."""
    for limit, used, statistics, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most, taken = int((_CGROUP / limit).read_text()), int((_CGROUP / used).read_text())
            rows = dict(line.split() for line in (_CGROUP / statistics).read_text().splitlines())
            return max(0, most - taken + int(rows.get(cached, 0)))
        except (OSError, ValueError):
            continue
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
