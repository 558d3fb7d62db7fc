"""The config of supervised fine-tuning; the defaults are the published values (arXiv 2508.01119 and its code)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class SftConfig(BaseModel):
    """Every setting of ``earl sft``. One optimizer step sees ``batch_size * accumulation`` pairs in each process.

    ``processes`` is how many the batch was chosen for; another number is an error, not silently another batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = "BAAI/Emu3-Stage1"  # None: the model that ships with the package
    data: tuple[Path, ...] = Field(min_length=1)
    coefficients: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # None: every set as large as the largest
    validation: tuple[Path, ...] = ()
    output: Path
    cot_keys: tuple[str, ...] = ()
    thinking: bool = False  # whether this is a run that needs cot_keys
    max_length: Positive | None = None  # None: 3000, or the model's positions if it has fewer
    too_long: Literal["error", "skip"] = "error"

    epochs: Annotated[float, Field(gt=0)] = 10
    max_steps: Positive | None = None
    batch_size: Positive = 2
    accumulation: Positive = 8
    processes: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-5
    warmup_steps: Count = 30
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Annotated[float, Field(gt=0)] = 5.0
    betas: tuple[Share, Share] = (0.9, 0.95)
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    seed: int = 42

    separate_vocabularies: bool = False  # normalise a visual token over the visual ids, any other over the ids below
    gradient_checkpointing: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tf32: bool = True
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    sharding: Literal["none", "zero2", "zero3", "zero3-offload"] = "none"
    lora_rank: Positive | None = None  # None: every weight is trained
    lora_alpha: Positive = 32
    lora_dropout: Share = 0.0
    quantize: Literal["none", "4bit"] = "none"
    device: str = "auto"

    validate_every: Positive = 100
    validation_rows: Positive = 1000  # in all, shared equally by the validation sets
    gallery_rows: Count = 8  # of them drawn as pictures at every validation
    checkpoint_every: Positive = 100
    keep: Positive = 50
    log_every: Positive = 10
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    save_layout: Literal["native", "original"] = "native"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.coefficients is not None and len(self.coefficients) != len(self.data):
            raise ValueError(f"{len(self.coefficients)} coefficients for {len(self.data)} data sets")
        if self.thinking and not self.cot_keys:
            raise ValueError("training to think needs the keys of the chain of thought: --cot-keys plan,objects")
        if self.quantize != "none" and self.lora_rank is None:
            raise ValueError("quantized weights can't be trained themselves: set lora_rank as well")
        if self.lora_rank is not None and self.sharding.startswith("zero3"):
            raise ValueError("adapters are small enough not to be sharded by ZeRO-3: use sharding none or zero2")
        return self
