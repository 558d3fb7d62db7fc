"""Where a training runs and in which numbers its matrix products are."""

from __future__ import annotations

import torch

from earl_cli.config.sft import SftConfig


def uses_cpu(config: SftConfig) -> bool:
    """Whether the run is on processors alone."""
    return config.device == "cpu" or (
        config.device == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available())
    )


def uses_bfloat16(config: SftConfig) -> bool:
    """Whether matrix products run in bfloat16: where it was asked for, or where the device is fast at it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if uses_cpu(config):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.cuda.is_available() and bool(torch.cuda.is_bf16_supported(including_emulation=False))
