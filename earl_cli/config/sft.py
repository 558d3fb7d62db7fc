"""The config of supervised fine-tuning; the defaults are the published values (paper, appendix; FORMATS of EARL)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class SftConfig(BaseModel):
    """Every setting of ``earl sft``. One optimizer step sees ``batch_size * accumulation`` pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = "BAAI/Emu3-Stage1"  # None: the model that ships with the package
    data: tuple[Path, ...] = Field(min_length=1)
    validation: tuple[Path, ...] = ()
    output: Path
    thought_keys: tuple[str, ...] = ()

    epochs: Annotated[float, Field(gt=0)] = 10
    max_steps: Positive | None = None
    batch_size: Positive = 2
    accumulation: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 30
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Annotated[float, Field(gt=0)] = 5.0
    betas: tuple[Share, Share] = (0.9, 0.95)
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    max_length: Positive = 3000
    gradient_checkpointing: bool = True
    precision: str = Field("auto", pattern="^(auto|float32|bfloat16)$")

    validate_every: Positive = 100
    validation_rows: Positive = 1000
    checkpoint_every: Positive = 100
    keep: Positive = 50
    log_every: Positive = 10
    seed: int = 42
    device: str = "auto"
