"""The config of supervised fine-tuning; the defaults are the published values (arXiv 2508.01119 and its code)."""

from __future__ import annotations

from collections.abc import Mapping
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
    too_long: Literal["keep", "skip", "stop"] = "keep"  # keep: as long as the model has positions

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
    dropout: Share = 0.0  # of attention weights, residuals and embeddings; published: 0.1
    loss_mean: Literal["tokens", "batch"] = "tokens"  # of a step; published: batch, the mean of the batches' means
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
    gallery_rows: Count = 8  # of them drawn as images at every validation
    checkpoint_every: Positive = 100
    keep: Positive = 2  # whole checkpoints to go on from; of the best by validation the model always stays
    log_every: Positive = 10
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    save_layout: Literal["native", "original"] = "native"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.coefficients is not None and len(self.coefficients) != len(self.data):
            raise ValueError(f"{len(self.coefficients)} coefficients for {len(self.data)} data sets")
        if self.thinking and not self.cot_keys:
            raise ValueError("training to think needs the keys of the chain of thought: --cot-keys plan,objects")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}: the rate "
                "would rise to the end"
            )
        if self.quantize != "none" and self.lora_rank is None:
            raise ValueError("quantized weights can't be trained themselves: set lora_rank as well")
        if self.lora_rank is not None and self.sharding.startswith("zero3"):
            raise ValueError("adapters are small enough not to be sharded by ZeRO-3: use sharding none or zero2")
        return self

    def for_processes(self, there: int) -> str | None:
        """The settings that keep the pairs of a step where so many processes run; None if there are none."""
        pairs = (self.processes or there) * self.batch_size * self.accumulation
        same, rest = divmod(pairs, there * self.batch_size)
        return None if rest else f"--set processes={there} --set accumulation={same} keeps the {pairs} pairs a step"

    def remarks(self, steps: int, origins: Mapping[str, str]) -> list[str]:
        """What of these settings has no effect, or another one than one may think, in a run of so many steps.

        ``origins`` says where each comes from; those that flags and --set gave were meant.
        """
        meant = {key for key, origin in origins.items() if origin.startswith("--")}
        found = []
        if self.checkpoint_every >= steps:
            found.append(f"checkpoint_every {self.checkpoint_every}: the only checkpoint is that of the end, {steps}")
        if self.validation and self.validate_every >= steps:
            found.append(f"validate_every {self.validate_every}: the only validation is that of the end, {steps}")
        if not self.validation and meant & {"validate_every", "validation_rows", "gallery_rows"}:
            found.append("without validation data nothing is validated, and no checkpoint is known to be the best")
        if self.warmup_steps >= steps:
            found.append(f"warmup_steps {self.warmup_steps}: the learning rate is still rising at the end, {steps}")
        if self.max_steps is not None and {"epochs", "max_steps"} <= meant:
            found.append(f"max_steps {self.max_steps} decides the length, and epochs {self.epochs:g} has no effect")
        if self.lora_rank is None and meant & {"lora_alpha", "lora_dropout"}:
            found.append("lora_alpha and lora_dropout have no effect without lora_rank")
        return found
