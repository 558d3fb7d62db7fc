"""Where a training runs and in which numbers its matrix products are."""

from __future__ import annotations

from typing import Protocol

import torch


class Place(Protocol):
    """What a training's config says of where it runs."""

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...


def uses_cpu(config: Place) -> bool:
    """Whether the run is on processors alone."""
    return config.device == "cpu" or (
        config.device == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available())
    )


def uses_bfloat16(config: Place) -> bool:
    """Whether matrix products run in bfloat16: where it was asked for, or where the device is fast at it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if uses_cpu(config):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.cuda.is_available() and bool(torch.cuda.is_bf16_supported(including_emulation=False))
