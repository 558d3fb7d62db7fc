"""Supervised fine-tuning: examples from token stores, loss after the instruction, resumed where it stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earl_cli.config.sft import SftConfig
from earl_cli.data.batches import ExampleData, collate, example_data
from earl_cli.data.store import open_store
from earl_cli.errors import EarlError, InputError
from earl_cli.tokens.layout import Layout
from earl_cli.training.checkpoints import drop_old, mark_complete, newest
from earl_cli.training.losses import labelled, summed_loss

if TYPE_CHECKING:
    from transformers import Emu3ForCausalLM

CHECKPOINTS = "checkpoints"
LOG = "log.jsonl"
OnStep = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class SftResult:
    """Where training ended: the step, the validation loss in nats a token, and the step it resumed from (0: none)."""

    steps: int
    validation_loss: float | None
    resumed_from: int


def fine_tune(config: SftConfig, language: Emu3ForCausalLM, layout: Layout, on_step: OnStep) -> SftResult:
    """Train ``language`` in place as ``config`` says; ``on_step`` hears (step, steps, figures) at every log line.

    Goes on from the newest whole checkpoint in the output folder. Raises InputError for data that can't be trained on,
    and EarlError, after keeping the last good checkpoint, if the loss stops being a number.
    """
    train = example_data([open_store(path) for path in config.data], layout, config.thought_keys)
    check_lengths(train, config.max_length)
    validation = _validation(config, layout)
    if language.device.type == "cpu":
        language.set_attn_implementation("eager")  # torch's fused attention is up to four times slower here, backwards
    folder = config.output / CHECKPOINTS
    start = newest(folder)
    trainer = SftTrainer(
        layout=layout,
        bfloat16=uses_bfloat16(config.precision, language.device),
        model=language,
        args=_arguments(config, folder, evaluates=validation is not None),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=partial(collate, pad=layout.vocabulary.pad),
        callbacks=[_Reporter(config, on_step)],
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(type(callback))
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    loss = trainer.evaluate()["eval_loss"] if validation is not None else None
    return SftResult(trainer.state.global_step, loss, int(start.name.split("-")[1]) if start else 0)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16: where it was asked for, or where the device is fast at it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def check_lengths(data: ExampleData, limit: int) -> None:
    """Raise InputError, with the first ids, if sequences are longer than ``limit`` tokens."""
    long = [data.id(index) for index in range(len(data)) if len(data[index].ids) > limit]
    if long:
        raise InputError(
            f"{len(long)} of {len(data)} sequences are longer than {limit} tokens, the first is {long[0]!r}",
            hint="raise max_length, or tokenize with a smaller --image-area",
        )


class SftTrainer(Trainer):
    """transformers' Trainer with EARL's loss, which never holds logits outside a token's part of the head."""

    def __init__(self, *args: Any, layout: Layout, bfloat16: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layout, self.bfloat16 = layout, bfloat16
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step, not of a batch

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean −log p of the labelled tokens of the optimizer step (of the batch, when validating)."""
        labels = inputs["labels"]
        unwrapped: Any = self.accelerator.unwrap_model(model)
        device = labels.device.type
        with torch.autocast(device, torch.bfloat16) if self.bfloat16 else nullcontext():
            hidden = unwrapped.model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
            total = summed_loss(hidden, unwrapped.lm_head.weight, labels, self.layout.vocabulary)
        loss = total / (num_items_in_batch if num_items_in_batch is not None else labelled(labels))
        return (loss, {"loss": loss}) if return_outputs else loss


def _validation(config: SftConfig, layout: Layout) -> ExampleData | None:
    if not config.validation:
        return None
    stores = [open_store(path) for path in config.validation]
    share = config.validation_rows // len(stores)
    parts = [example_data([store], layout, config.thought_keys) for store in stores]
    rows: list[int] = []
    offset = 0
    for part in parts:
        rows += range(offset, offset + min(share, len(part)))
        offset += len(part)
    return ExampleData(example_data(stores, layout).table, layout, config.thought_keys, rows)


def _arguments(config: SftConfig, folder: Path, *, evaluates: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": config.min_learning_rate},
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_epsilon=config.epsilon,
        gradient_checkpointing=config.gradient_checkpointing,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.validate_every,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        save_total_limit=None,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        report_to="none",
        disable_tqdm=True,
    )


class _Reporter(TrainerCallback):
    """Writes the log, tells the caller, marks checkpoints, and stops at a loss that is no number."""

    def __init__(self, config: SftConfig, on_step: OnStep) -> None:
        self.config, self.on_step = config, on_step

    def on_log(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        figures = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        with (self.config.output / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": state.global_step, **figures}) + "\n")
        self.on_step(state.global_step, state.max_steps, figures)
        if not math.isfinite(figures.get("loss", 0.0)):
            raise EarlError(
                f"the loss is {figures['loss']} at step {state.global_step}",
                where=str(self.config.output),
                hint="the last checkpoint is kept; try a lower learning_rate",
            )

    def on_save(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        folder = self.config.output / CHECKPOINTS
        mark_complete(folder / f"checkpoint-{state.global_step}")
        drop_old(folder, self.config.keep)
