"""Rank, world size and device of this process, the number format of a training, and DeepSpeed's settings."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, Literal, Protocol, TypeVar

import torch

from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.errors import EarlError, MissingExtraError, UsageError

SharedT = TypeVar("SharedT")
Sharding = Literal["none", "zero2", "zero3", "zero3-offload"]
REPORT_DELAY = 10.0
"""Seconds that a failed rank waits, so that rank 0 reports the same error."""


def read_slurm_environment() -> None:
    """Set torchrun's environment variables in a process that srun started; does nothing elsewhere."""
    environment = os.environ
    if "RANK" in environment or "SLURM_PROCID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return
    if int(environment["SLURM_STEP_NUM_TASKS"]) < 2:
        return
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "localhost"))
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0")
    environment.setdefault("MASTER_ADDR", _first_host(nodes))
    environment.setdefault("MASTER_PORT", str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000))


def set_single_process_environment() -> None:
    """Set torchrun's environment variables in a single process; DeepSpeed needs them."""
    if "RANK" in os.environ:
        return
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": f"{port}",
    }


@contextmanager
def report_once() -> Iterator[None]:
    """Report an error of all ranks once, on rank 0: the others wait, and torchrun ends them meanwhile.

    A rank that only lost the connection to another one waits longest, so that the rank with the cause reports it. After
    a success all ranks leave their process group together.
    """
    from torch.distributed import DistError

    try:
        yield
    except Exception as error:
        if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            time.sleep(2 * REPORT_DELAY)
            hint = "start again: the training resumes from its last checkpoint"
            raise EarlError("another process of this training has ended", hint=hint) from error
        if rank() > 0:
            time.sleep(REPORT_DELAY)
        raise
    _leave_processes()


def _leave_processes() -> None:
    """Close the connections between the ranks: a thread of theirs that is left at the end of a process may abort it."""
    import torch.distributed as dist

    if world_size() > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """The rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_world_size(command: str, config: SftConfig | RlConfig) -> None:
    """Raise UsageError if a config is for another number of processes; the hint has settings with the same effect."""
    actual, wanted = world_size(), config.processes
    if wanted is None or wanted == actual:
        return
    same = config.for_processes(actual)
    raise UsageError(
        f"this config is for {wanted} processes, {actual} run",
        where="processes",
        hint=f"torchrun --nproc_per_node {wanted} -m earl_cli {command} …" + (f", or {same}" if same else ""),
    )


def silence_libraries(cpu: bool) -> None:
    """Switch off progress bars and log messages of transformers, accelerate, torch and DeepSpeed."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # DeepSpeed triggers one at every call
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed searches, and prints to stdout


def need_deepspeed(sharding: Sharding) -> None:
    """Raise MissingExtraError if the sharding needs DeepSpeed and it isn't installed."""
    if sharding != "none" and find_spec("deepspeed") is None:
        raise MissingExtraError(
            f"sharding {sharding} needs DeepSpeed", hint='pip install "earl-cli[deepspeed]", or --set sharding=none'
        )


def deepspeed_config(sharding: Sharding, *, bfloat16: bool, cpu: bool) -> dict[str, Any] | None:
    """The published settings of DeepSpeed for ZeRO-2 and ZeRO-3, None without sharding.

    They have no optimizer, as published, so that the trainer's is used. Raises MissingExtraError if DeepSpeed isn't
    installed.
    """
    if sharding == "none":
        return None
    need_deepspeed(sharding)
    import deepspeed

    if cpu:  # otherwise it compiles an inference op, under a lock that is never released if this process is killed
        deepspeed.ops.__compatible_ops__ = {}
    zero: dict[str, Any] = {
        "stage": 2 if sharding == "zero2" else 3,
        "overlap_comm": not cpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if zero["stage"] == 3:
        zero |= {
            "sub_group_size": 1_000_000_000,
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if sharding == "zero3-offload":
        offload = {"device": "cpu", "pin_memory": not cpu}
        zero |= {"offload_optimizer": offload, "offload_param": offload}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": bfloat16},
        "zero_force_ds_cpu_optimizer": sharding == "zero3-offload" and not cpu,
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "wall_clock_breakdown": False,
        "steps_per_print": 10**12,
    }


def _first_host(nodes: str) -> str:
    """The first host of a list in Slurm's notation."""
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return nodes.split(",", maxsplit=1)[0]


def init_processes(*, cpu: bool, timeout: float) -> None:
    """Connect the processes of this training, if there are several; a collective operation may take ``timeout`` s."""
    import torch.distributed as dist

    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo" if cpu else "nccl", timeout=timedelta(seconds=timeout))


def all_gather(value: SharedT) -> list[SharedT]:
    """The values of all ranks, in order, on every rank. They are pickled."""
    import torch.distributed as dist

    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_rank_zero(work: Callable[[], SharedT]) -> SharedT:
    """Call ``work`` on rank 0, and return its result on every rank. Its EarlError is raised on all."""
    outcome: SharedT | EarlError | None = None
    if rank() == 0:
        try:
            outcome = work()
        except EarlError as failure:
            if world_size() == 1:
                raise
            outcome = failure
    found: Any = all_gather(outcome)[0]
    if isinstance(found, EarlError):
        raise found
    given: SharedT = found
    return given


class DeviceConfig(Protocol):
    """The settings of a training that choose its device and precision."""

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...


def uses_cpu(config: DeviceConfig) -> bool:
    """Whether the run uses the CPU only."""
    return config.device == "cpu" or (
        config.device == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available())
    )


def uses_bfloat16(config: DeviceConfig) -> bool:
    """Whether matrix products run in bfloat16: if configured, or by default if the device is fast at it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if uses_cpu(config):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.cuda.is_available() and bool(torch.cuda.is_bf16_supported(including_emulation=False))
