"""Supervised fine-tuning: examples from token stores, loss after the instruction, resumed where it stopped.

transformers' Trainer runs the loop, alone, in several processes, or sharded by DeepSpeed. What is EARL's own is here:
the loss, which never holds the logits of a whole batch, and checkpoints of which none is ever half.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earl_cli.config.sft import SftConfig
from earl_cli.data.batches import ExampleData, Rows, collate, load_rows
from earl_cli.data.mixture import Mixture, first_rows, mix
from earl_cli.errors import EarlError, InputError, UsageError
from earl_cli.files import cut_torn_line
from earl_cli.tokens.layout import Layout
from earl_cli.training.checkpoints import (
    CHECKPOINTS,
    check_begun,
    drop_old,
    drop_torn,
    mark_complete,
    newest,
    written,
)
from earl_cli.training.distributed import deepspeed_config, quiet_libraries, rank, world_size
from earl_cli.training.log import LOG, peak_memory, write_line
from earl_cli.training.losses import labelled, separate_heads, whole_head
from earl_cli.training.precision import uses_bfloat16, uses_cpu

if TYPE_CHECKING:
    from earl_cli.training.trainee import TrainedEmu3

LONGEST = 3000
OnStep = Callable[[int, int, Mapping[str, float]], None]
OnValidation = Callable[[int, ExampleData], None]


@dataclass(frozen=True, eq=False)
class SftData:
    """What a run trains and validates on; ``skipped`` counts the rows that were too long and left out."""

    train: ExampleData
    mixture: Mixture
    validation: ExampleData | None
    skipped: int


@dataclass(frozen=True)
class SftResult:
    """Where training ended: the step, the validation loss in nats a token, and the step it resumed from (0: none).

    ``weights`` are the model's or its adapters', brought together in the first process and empty in the others.
    """

    steps: int
    validation_loss: float | None
    resumed_from: int
    weights: Mapping[str, Tensor] = field(repr=False)


def load_data(config: SftConfig, layout: Layout, positions: int) -> SftData:
    """The data sets of a run, mixed and checked. ``positions`` is how many the model has.

    Raises InputError for data that can't be trained on, and UsageError for lengths beyond the model's.
    """
    limit = config.max_length or min(LONGEST, positions)
    if limit > positions:
        what = f"max_length is {limit}, but the model has only {positions} positions"
        raise UsageError(what, where="max_length", hint=f"--max-length {positions}")
    rows = load_rows(config.data, layout, config.cot_keys)
    mixture = mix(rows.sizes, config.coefficients, config.seed)
    order = mixture.rows
    short = rows.lengths[order] <= limit
    if not short.all():
        check_lengths(rows, limit, config.too_long if short.any() else "error")
        order = order[short]
    validation = None
    if config.validation:
        held = load_rows(config.validation, layout, config.cot_keys)
        chosen = first_rows(held.sizes, config.validation_rows).rows
        validation = ExampleData(held, chosen[held.lengths[chosen] <= limit])
        if not len(validation):
            raise InputError("every validation sequence is too long", where="validation", hint="raise max_length")
    return SftData(ExampleData(rows, order), mixture, validation, int((~short).sum()))


def check_lengths(rows: Rows, limit: int, policy: str) -> None:
    """Raise InputError, with the first id, if sequences are too long and the policy isn't to skip them."""
    long = (rows.lengths > limit).nonzero()[0]
    if policy == "error" or len(long) == len(rows):
        raise InputError(
            f"{len(long)} of {len(rows)} sequences are longer than {limit} tokens: the first is "
            f"{rows.id(int(long[0]))!r}, the longest has {rows.lengths.max()}",
            hint="raise --max-length, tokenize with a smaller --image-area, or leave them out: --set too_long=skip",
        )


def fine_tune(
    config: SftConfig,
    model: TrainedEmu3 | nn.Module,
    layout: Layout,
    data: SftData,
    on_step: OnStep,
    on_validation: OnValidation | None = None,
) -> SftResult:
    """Train ``model`` (or its adapters) in place as ``config`` says; ``on_step`` hears (step, steps, figures) of a log.

    Goes on from the newest whole checkpoint in the output folder. Raises EarlError, after keeping the last good
    checkpoint, if the loss stops being a number; the message names the rows.
    """
    trained: Any = model
    base = trained.get_base_model() if hasattr(model, "get_base_model") else trained
    base.lose_over((separate_heads if config.separate_vocabularies else whole_head)(layout.vocabulary))
    quiet_libraries(uses_cpu(config))
    folder = config.output / CHECKPOINTS
    start = newest(folder)
    if start:
        check_begun(start, config, world_size())
    if rank() == 0:
        drop_torn(folder)
        drop_old(folder, config.keep)  # a run may have been killed before it came to that
        cut_torn_line(config.output / LOG)
    reporter = _Reporter(config, on_step, on_validation, data.validation)
    trainer = SftTrainer(
        bfloat16=uses_bfloat16(config),
        model=model,
        args=arguments(config, folder, evaluates=data.validation is not None),
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=partial(collate, pad=layout.vocabulary.pad),
        callbacks=[reporter],
    )
    reporter.trainer = trainer
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(type(callback))
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    loss = trainer.evaluate()["eval_loss"] if data.validation is not None else None
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    resumed = int(start.name.split("-")[1]) if start else 0
    return SftResult(trainer.state.global_step, loss, resumed, weights if rank() == 0 else {})


def steps_of(config: SftConfig, pairs: int, processes: int) -> int:
    """How many optimizer steps a run of so many pairs an epoch takes."""
    if config.max_steps:
        return config.max_steps
    batches = math.ceil(math.ceil(pairs / config.batch_size) / processes)
    return math.ceil(config.epochs * max(1, math.ceil(batches / config.accumulation)))


class SftTrainer(Trainer):
    """transformers' Trainer for a model whose forward gives the loss."""

    def __init__(self, *args: Any, bfloat16: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.autocast = bfloat16 and not self.is_deepspeed_enabled
        self.tokens = 0
        self.rows: list[str] = []  # of the current step, in this process
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step, not of a batch

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, which makes one step too many when it goes on from the last one."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer. Raises OutputError if the disk doesn't take it."""
        with written(f"the checkpoint of step {self.state.global_step}", Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer. Raises EarlError, naming the batch's rows, for a loss that is no number."""
        ids = inputs.pop("ids")
        device = inputs["labels"].device.type
        if model.training:
            self.tokens += inputs["input_ids"].numel()
            self.rows += ids
        with torch.autocast(device, torch.bfloat16) if self.autocast else nullcontext():
            found = super().compute_loss(model, inputs, *args, **kwargs)
        loss: Tensor = found[0] if isinstance(found, tuple) else found
        if not torch.isfinite(loss.detach()):
            raise EarlError(
                f"the loss is {loss.item()} after step {self.state.global_step}, in the batch of {_named(ids)}",
                where=str(Path(self.args.output_dir).parent),
                hint="the last checkpoint is kept; look at these rows, or try a lower learning_rate",
            )
        return found

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer, with the mean over the tokens and not that of the batches' means."""
        self.held = torch.zeros(2, dtype=torch.float32, device=self.args.device)
        output = super().evaluation_loop(*args, **kwargs)
        total, tokens = self.accelerator.reduce(self.held).tolist()
        output.metrics["eval_loss"] = total / tokens
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, None, None]:
        """The loss of a validation batch."""
        inputs = self._prepare_inputs(inputs)
        tokens = labelled(inputs["labels"])
        with torch.no_grad():
            loss = self.compute_loss(model, inputs).detach()
        self.held += torch.stack([loss * tokens, torch.full_like(loss, tokens)])
        return loss, None, None


def _named(ids: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return f"the rows {', '.join(map(repr, ids[:shown]))}{more}"


def arguments(config: SftConfig, folder: Path, *, evaluates: bool) -> TrainingArguments:
    """The same settings in the Trainer's words."""
    cpu, bfloat16 = uses_cpu(config), uses_bfloat16(config)
    sharding = deepspeed_config(config.sharding, bfloat16=bfloat16, cpu=cpu)
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
        bf16=bfloat16 and sharding is not None,
        tf32=config.tf32 if not cpu and torch.cuda.is_available() else None,
        deepspeed=sharding,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        ddp_find_unused_parameters=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.validate_every,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        save_total_limit=None,
        logging_steps=config.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=cpu,
        report_to=list(config.trackers) or "none",
        disable_tqdm=True,
        log_level="error",
    )


class _Reporter(TrainerCallback):
    """Writes the log, tells the caller, and marks checkpoints that are whole."""

    def __init__(
        self,
        config: SftConfig,
        on_step: OnStep,
        on_validation: OnValidation | None,
        validation: ExampleData | None,
    ) -> None:
        self.config, self.on_step = config, on_step
        self.on_validation, self.validation = on_validation, validation
        self.trainer: SftTrainer
        self.last: tuple[float, int] | None = None
        self.parent = os.getppid()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """A checkpoint brings the settings that the run was begun with; those of today count.

        Weights of norms decay too, in every way of sharding: so they do under DeepSpeed, in the published training.
        """
        state.compute_steps(args, state.max_steps)
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.base_lrs = [self.config.learning_rate] * len(schedule.base_lrs)
        for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["initial_lr"] = self.config.learning_rate
            group["lr"] = self.config.learning_rate * factor(schedule.last_epoch)
            group["betas"], group["eps"] = self.config.betas, self.config.epsilon
            group["weight_decay"] = self.config.weight_decay
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.rows = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != self.parent:
            hint = "start again: the training goes on from its last checkpoint"
            raise EarlError("torchrun, which started this process, has ended", hint=hint)

    def on_log(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        figures = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "loss" in figures:
            figures |= self._pace()
        if state.is_world_process_zero:
            write_line(self.config.output / LOG, state.global_step, figures)
            self.on_step(state.global_step, state.max_steps, figures)
        if not math.isfinite(figures.get("grad_norm", 0.0)):
            raise self._diverged(f"the gradient is {figures['grad_norm']} at step {state.global_step}")

    def _diverged(self, what: str) -> EarlError:
        where, hint = str(self.config.output), "the last checkpoint is kept; try a lower learning_rate"
        return EarlError(f"{what}, of {_named(self.trainer.rows)}", where=where, hint=hint)

    def _pace(self) -> dict[str, float]:
        """Tokens of all processes a second since the last call, and the most memory used in bytes."""
        now, tokens = time.perf_counter(), self.trainer.tokens
        cuda = torch.cuda.is_available() and not self.trainer.args.use_cpu
        found = {"memory": float(torch.cuda.max_memory_allocated() if cuda else peak_memory())}
        if self.last:
            found["tokens_per_second"] = (tokens - self.last[1]) * world_size() / (now - self.last[0])
        self.last = now, tokens
        return found

    def on_evaluate(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        if self.on_validation and self.validation is not None and state.is_world_process_zero:
            self.on_validation(state.global_step, self.validation)

    def on_save(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        weights = [getattr(weight, "ds_tensor", weight) for weight in model.parameters() if weight.requires_grad]
        if not all(bool(torch.isfinite(weight).all()) for weight in weights):  # of ZeRO-3's, the part that is here
            raise self._diverged(f"a weight is no number any more after step {state.global_step}")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            folder = self.config.output / CHECKPOINTS
            with written(f"the checkpoint of step {state.global_step}", folder):
                mark_complete(folder / f"checkpoint-{state.global_step}")
            drop_old(folder, self.config.keep)
