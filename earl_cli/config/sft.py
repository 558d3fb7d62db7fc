"""The config of supervised fine-tuning; most defaults are the published values (arXiv 2508.01119 and its code).

The published training is transformers' Trainer: published names are those of its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from earl_cli.config.keys import SAME, Above, Amount, Count, Positive, Share, TrainingConfig, key


class SftConfig(TrainingConfig):
    """Every setting of ``earl sft``. One optimizer step sees ``batch_size * accumulation`` examples in each process.

    ``processes`` is the world size that the batch was chosen for; with another one the run is refused.
    """

    model: str | None = key(
        "BAAI/Emu3-Stage1",
        "The model to start from; null: the one that ships with the package.",
        published=SAME,
        name="",
    )
    data: tuple[Path, ...] = key(..., "Token stores and published folders to train on.", min_length=1)
    coefficients: tuple[Above, ...] | None = key(
        None,
        "Copies of each data set in an epoch, such as 1 or 0.35; null: every set is as large as the largest.",
        published=SAME,
        name="",
    )
    validation: tuple[Path, ...] = key((), "Token stores to validate on.")
    output: Path = key(..., "Folder of the run, and of the model at its end.")
    cot_keys: tuple[str, ...] = key((), "Keys of the chain of thought that is trained before the edit, in this order.")
    thinking: bool = key(False, "Refuse to start without cot_keys.")
    max_length: Positive | None = key(
        None,
        "Tokens of a sequence above which too_long applies; null: 3000, or the model's positions if it has fewer.",
        published=3000,
        name="",
    )
    too_long: Literal["keep", "skip", "stop"] = key(
        "keep",
        "What happens to longer sequences: keep trains on them up to the model's positions, stop ends the run.",
        published=SAME,
        name="",
    )

    epochs: Above = key(10, "Passes over the data.", published=SAME, name="num_train_epochs")
    max_steps: Positive | None = key(None, "Optimizer steps, in place of epochs.")
    batch_size: Positive = key(
        2, "Examples in memory at a time, in each process.", published=SAME, name="per_device_train_batch_size"
    )
    accumulation: Positive = key(
        8, "Batches of an optimizer step, in each process.", published=SAME, name="gradient_accumulation_steps"
    )
    processes: Positive | None = key(
        None, "World size that the batch was chosen for; another one is an error.", published=4, name=""
    )
    learning_rate: Above = key(1e-4, "Highest learning rate, after the warm-up.", published=SAME)
    min_learning_rate: Amount = key(
        1e-5, "Learning rate at the end of the cosine schedule.", published=SAME, name="min_lr"
    )
    warmup_steps: Count = key(30, "Steps of linear warm-up.", published=SAME)
    weight_decay: Amount = key(0.1, "Weight decay of AdamW; norms and biases have none.", published=SAME)
    max_grad_norm: Above = key(5.0, "Norm to which gradients are clipped.", published=SAME, aliases=["clip"])
    betas: tuple[Share, Share] = key((0.9, 0.95), "Betas of AdamW.", published=SAME, name="")
    epsilon: Above = key(1e-6, "Epsilon of AdamW.", published=SAME, name="adam_epsilon")
    dropout: Share = key(
        0.0, "Dropout of attention weights, residuals and embeddings.", published=0.1, name="attention_dropout"
    )
    loss_mean: Literal["tokens", "batch"] = key(
        "tokens",
        "The loss of a step: the mean over its tokens, or the mean of the means of its batches.",
        published="batch",
        name="",
    )
    seed: int = key(42, "Seed of the order of the data and of dropout.", published=SAME)

    separate_vocabularies: bool = key(
        False,
        "Normalise image tokens over the image vocabulary, and all others over the ids below it.",
        published=SAME,
        name="",
    )
    gradient_checkpointing: bool = key(
        True, "Recompute activations in the backward pass to save memory.", published=SAME
    )
    precision: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "Number type of matrix products; auto: by the device.", published="bfloat16", name=""
    )
    tf32: bool = key(True, "TF32 for float32 matrix products on GPUs.", published=SAME)
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = key(
        "auto",
        "Attention implementation; auto: by the device.",
        published="flash_attention_2",
        name="attn_implementation",
    )
    sharding: Literal["none", "zero2", "zero3", "zero3-offload"] = key(
        "none",
        "Sharding by DeepSpeed; none: plain data parallelism.",
        published="zero3",
        name="",
        note="zero3-offload for smaller GPUs",
    )
    lora_rank: Positive | None = key(None, "Rank of low-rank adapters (LoRA); null: all weights are trained.")
    lora_alpha: Positive = key(32, "Scale of the adapters, divided by their rank.")
    lora_dropout: Share = key(0.0, "Dropout before the adapters.")
    quantize: Literal["none", "4bit"] = key("none", "4bit: adapters on 4-bit weights (QLoRA).")
    device: str = key("auto", "auto, cpu, cuda, cuda:1 or mps.")

    validate_every: Positive = key(100, "Steps between validations.", published=SAME, name="eval_steps")
    validation_examples: Positive = key(
        1000,
        "Examples of a validation, in all, in equal shares of the validation sets.",
        published=SAME,
        name="",
        aliases=["validation_rows"],
    )
    gallery_examples: Count = key(
        8, "Validation examples whose edits are sampled into a page at each validation.", aliases=["gallery_rows"]
    )
    checkpoint_every: Positive = key(100, "Steps between checkpoints.", published=SAME, name="save_steps")
    keep_checkpoints: Positive = key(
        2,
        "Newest checkpoints to keep; the best by validation always keeps its model.",
        published=50,
        name="save_total_limit",
        aliases=["keep"],
    )
    log_every: Positive = key(10, "Steps between lines of the log.")
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = key((), "Trackers that get the log as well.")
    save_format: Literal["native", "original"] = key(
        "native", "Checkpoint format: native (transformers) or original (Emu3's own).", aliases=["save_layout"]
    )

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
        """The settings that keep the examples of a step with this world size; None if there are none."""
        examples = (self.processes or there) * self.batch_size * self.accumulation
        same, rest = divmod(examples, there * self.batch_size)
        return (
            None if rest else f"--set processes={there} --set accumulation={same} keeps the {examples} examples a step"
        )

    def remarks(self, steps: int, origins: Mapping[str, str]) -> list[str]:
        """Warnings about settings without effect, or with another one than expected, in a run of so many steps.

        ``origins`` says where each comes from; those of options and --set are taken as intended.
        """
        meant = {key for key, origin in origins.items() if origin.startswith("--")}
        found = []
        if self.checkpoint_every >= steps:
            found.append(f"checkpoint_every {self.checkpoint_every}: the only checkpoint is that of the end, {steps}")
        if self.validation and self.validate_every >= steps:
            found.append(f"validate_every {self.validate_every}: the only validation is that of the end, {steps}")
        if not self.validation and meant & {"validate_every", "validation_examples", "gallery_examples"}:
            found.append("without validation data nothing is validated, and no checkpoint is known to be the best")
        if self.warmup_steps >= steps:
            found.append(f"warmup_steps {self.warmup_steps}: the learning rate is still rising at the end, {steps}")
        if self.max_steps is not None and {"epochs", "max_steps"} <= meant:
            found.append(f"max_steps {self.max_steps} decides the length, and epochs {self.epochs:g} has no effect")
        if self.lora_rank is None and meant & {"lora_alpha", "lora_dropout"}:
            found.append("lora_alpha and lora_dropout have no effect without lora_rank")
        return found
