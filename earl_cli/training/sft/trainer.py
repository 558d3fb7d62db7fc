"""transformers' Trainer with EARL's loss, log and checkpoints.

A checkpoint is a model folder with the state of the training beside it. Besides the regular ones, one is written when
the validation loss is the lowest so far, and after a stop signal.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earl_cli.config.sft import SftConfig
from earl_cli.data.batches import ExampleData
from earl_cli.errors import EarlError
from earl_cli.models.bundle import Base
from earl_cli.training.common.checkpoints import (
    CHECKPOINTS,
    MARK,
    Goal,
    is_better,
    link_best,
    mark_complete,
    remove_old,
    write_validation,
    writing,
)
from earl_cli.training.common.curves import LOG
from earl_cli.training.common.distributed import deepspeed_config, on_rank_zero, uses_bfloat16, uses_cpu, world_size
from earl_cli.training.common.stopping import StopSignal, TrainingStopped
from earl_cli.training.common.trackers import LogMetrics, log_metrics, peak_memory, start_trackers
from earl_cli.training.sft.loss import count_labels
from earl_cli.training.sft.model import ADAPTER, save_model

GOAL: Goal = "lowest"
OnStep = Callable[[int, int, Mapping[str, float]], None]
OnValidation = Callable[[int, ExampleData, bool], None]
"""Called with the step, the validation data, and whether a resumed run repeats the call."""


class SftTrainer(Trainer):
    """transformers' Trainer for a model whose forward gives the loss; see `TrainedEmu3`."""

    def __init__(self, *, config: SftConfig, base: Base, reporter: Reporter, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        reporter.trainer = self
        self.config, self.base, self.reporter = config, base, reporter
        self.autocast = uses_bfloat16(config) and not self.is_deepspeed_enabled
        self.tokens = 0
        self.rows: list[str] = []  # of the current step, in this process
        self.has_decay: list[bool] = []  # of each group of weights
        # the loss is divided by the tokens of a step, not of a batch
        self.model_accepts_loss_kwargs = config.loss_mean == "tokens"

    # -- steps -------------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer, with no weight decay for norms. DeepSpeed accepts no empty parameter group."""
        super().create_optimizer(*args, **kwargs)
        optimizer: Any = self.optimizer
        if self.is_deepspeed_enabled:
            optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
        self.has_decay = self.has_decay or [index == 0 for index in range(len(optimizer.param_groups))]
        return optimizer

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, except that a run resumed at its last step does no further step.

        A validation that was due at the step where the run stopped is done first.
        """
        if self.reporter.begins_at_validation(self.state):
            if any(_is_of(entry, self.state.global_step) for entry in self.state.log_history):
                self.reporter.call_on_validation(self.state, again=True)
            else:
                self.evaluate()
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer. Raises EarlError, naming the rows of the batch, if the loss is not finite."""
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
                f"the loss is {loss.item()} after step {self.state.global_step}, in the batch of {_row_names(ids)}",
                where=str(Path(self.args.output_dir).parent),
                hint="the last checkpoint is kept; look at these rows, or try a lower learning_rate",
            )
        return found

    # -- validation --------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in the Trainer, without changing the random state of the training.

        A stop signal interrupts it; the resumed run repeats the validation.
        """
        try:
            with torch.random.fork_rng(devices=[]):  # its data loader takes a random number, on the CPU
                found: dict[str, float] = super().evaluate(*args, **kwargs)
                return found
        except _StoppedInValidation:
            self.reporter.stop_training(self.control)
            return {}

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer, with the mean over tokens instead of the mean over batches."""
        exact = torch.float32 if self.args.device.type == "mps" else torch.float64
        self.loss_and_tokens = torch.zeros(2, dtype=exact, device=self.args.device)
        output = super().evaluation_loop(*args, **kwargs)
        total, tokens = self.accelerator.reduce(self.loss_and_tokens).tolist()
        output.metrics["eval_loss"] = total / tokens
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, None, None]:
        """The loss of a validation batch."""
        if self.reporter.stop_signal.agreed_number() is not None:
            raise _StoppedInValidation
        inputs = self._prepare_inputs(inputs)
        tokens = count_labels(inputs["labels"])
        with torch.no_grad():
            loss = self.compute_loss(model, inputs).detach()
        sums = torch.stack([loss * tokens, torch.full_like(loss, tokens)])
        self.loss_and_tokens += sums.to(self.loss_and_tokens.dtype)
        return loss, None, None

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer. Raises OutputError if it can't be written."""
        with writing(f"the checkpoint of step {self.state.global_step}", Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write a model folder in place of the Trainer's files; called on rank 0, with all weights."""
        assert output_dir is not None
        save_model(self.base, self.model, Path(output_dir), "native", state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As in the Trainer. With adapters only these are loaded: the weights beside them have them merged."""
        adapter = Path(resume_from_checkpoint) / ADAPTER / "adapter_model.safetensors"
        if not adapter.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.model, load_file(adapter))


class _StoppedInValidation(Exception):  # noqa: N818
    """A stop signal came during a validation; raised at the same batch on all ranks."""


def _row_names(ids: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return f"the rows {', '.join(map(repr, ids[:shown]))}{more}"


def training_arguments(config: SftConfig, folder: Path, *, evaluates: bool) -> TrainingArguments:
    """The settings as the Trainer's arguments."""
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
        lr_scheduler_kwargs={"min_lr_rate": config.min_learning_rate / config.learning_rate},
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_epsilon=config.epsilon,
        bf16=bfloat16 and sharding is not None,
        tf32=config.tf32 if not cpu and torch.cuda.is_available() else None,
        deepspeed=sharding,
        optim="adamw_torch_fused" if sharding is None else "adamw_torch",
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
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


class Reporter(TrainerCallback):
    """Writes the log, calls the caller's callbacks, manages checkpoints, and stops after a stop signal."""

    def __init__(
        self,
        config: SftConfig,
        on_step: OnStep,
        on_validation: OnValidation | None,
        validation: ExampleData | None,
        stop_signal: StopSignal,
        resumed: int,
    ) -> None:
        self.config, self.on_step = config, on_step
        self.on_validation, self.validation = on_validation, validation
        self.stop_signal, self.resumed = stop_signal, resumed
        self.folder = config.output / CHECKPOINTS
        self.trainer: SftTrainer
        self.trackers: list[LogMetrics] = []
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
        """Apply the present settings in place of those that the checkpoint restored."""
        if state.is_world_process_zero:
            values = self.config.model_dump(mode="json")
            self.trackers = start_trackers(self.config.trackers, self.config.output, values, self.resumed)
        state.compute_steps(args, state.max_steps)
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.base_lrs = [self.config.learning_rate] * len(schedule.base_lrs)
        groups = zip(optimizer.param_groups, schedule.lr_lambdas, self.trainer.has_decay, strict=True)
        for group, factor, decays in groups:
            group["initial_lr"] = self.config.learning_rate
            group["lr"] = self.config.learning_rate * factor(schedule.last_epoch)
            group["betas"], group["eps"] = self.config.betas, self.config.epsilon
            group["weight_decay"] = self.config.weight_decay if decays else 0.0
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]

    # -- steps -------------------------------------------------------------------------------------------------------

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.rows = []

    def on_step_end(
        self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != self.parent:
            hint = "start again: the training resumes from its last checkpoint"
            raise EarlError("torchrun, which started this process, has ended", hint=hint)
        return control if self.stop_signal.agreed_number() is None else self.stop_training(control)

    def stop_training(self, control: TrainerControl) -> TrainerControl:
        """Stop the training after this step, with a checkpoint."""
        control.should_log = control.should_save = control.should_training_stop = True
        control.should_evaluate = False
        return control

    def end(self) -> None:
        """Raise `TrainingStopped` if a stop signal came."""
        number = self.stop_signal.agreed_number()
        if number is not None:
            raise TrainingStopped(number, self.trainer.state.global_step)

    def on_log(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        metrics = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "loss" in metrics:
            metrics |= self._pace()
        if state.is_world_process_zero:
            log_metrics(self.config.output / LOG, state.global_step, metrics)
            renamed = {_tracker_name(key): value for key, value in metrics.items()}
            for track in self.trackers:
                track(state.global_step, renamed)
            self.on_step(state.global_step, state.max_steps, metrics)
        if not math.isfinite(metrics.get("grad_norm", 0.0)):
            raise self._diverged(f"the gradient norm is {metrics['grad_norm']} at step {state.global_step}")

    def _diverged(self, what: str) -> EarlError:
        where, hint = str(self.config.output), "the last checkpoint is kept; try a lower learning_rate"
        return EarlError(f"{what}, of {_row_names(self.trainer.rows)}", where=where, hint=hint)

    def _pace(self) -> dict[str, float]:
        """Tokens per second of all ranks since the last call, and the peak memory in bytes."""
        now, tokens = time.perf_counter(), self.trainer.tokens
        cuda = torch.cuda.is_available() and not self.trainer.args.use_cpu
        found = {"memory": float(torch.cuda.max_memory_allocated() if cuda else peak_memory())}
        if self.last:
            found["tokens_per_second"] = (tokens - self.last[1]) * world_size() / (now - self.last[0])
        self.last = now, tokens
        return found

    # -- validation --------------------------------------------------------------------------------------------------

    def validation_loss(self) -> float | None:
        """The loss of the last validation, None if there was none."""
        losses = [entry["eval_loss"] for entry in self.trainer.state.log_history if "eval_loss" in entry]
        return losses[-1] if losses else None

    def begins_at_validation(self, state: TrainerState) -> bool:
        """Whether the run resumes at a step after which a validation is due."""
        if self.validation is None or state.global_step == 0 or state.global_step != self.resumed:
            return False
        return bool(state.global_step % self.config.validate_every == 0 or state.global_step >= state.max_steps)

    def call_on_validation(self, state: TrainerState, *, again: bool = False) -> None:
        """Call `OnValidation` on rank 0; a stop signal interrupts it."""
        callback, data = self.on_validation, self.validation
        if callback is not None and data is not None and state.is_world_process_zero:
            self.stop_signal.run_unless_stopped(lambda: callback(state.global_step, data, again))

    def on_evaluate(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> TrainerControl:
        loss = metrics["eval_loss"]
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        saved, better = on_rank_zero(lambda: ((checkpoint / MARK).is_file(), is_better(loss, self.folder, GOAL)))
        if saved and state.is_world_process_zero:  # it was written before this validation
            write_validation(checkpoint, loss)
            link_best(self.config.output, GOAL)
        if better and not saved:
            control.should_save = True
        self.call_on_validation(state)
        return control

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> TrainerControl:
        weights = [getattr(weight, "ds_tensor", weight) for weight in model.parameters() if weight.requires_grad]
        if not all(bool(torch.isfinite(weight).all()) for weight in weights):  # under ZeRO-3, this rank's shard
            raise self._diverged(f"a weight is not finite after step {state.global_step}")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its part
        if state.is_world_process_zero:
            checkpoint = self.folder / f"checkpoint-{state.global_step}"
            losses = [each["eval_loss"] for each in state.log_history if _is_of(each, state.global_step)]
            with writing(f"the checkpoint of step {state.global_step}", self.folder):
                if losses:
                    write_validation(checkpoint, losses[-1])
                mark_complete(checkpoint)
            link_best(self.config.output, GOAL)
            remove_old(self.folder, self.config.keep_checkpoints, GOAL)
        return control if self.stop_signal.agreed_number() is None else self.stop_training(control)


def _is_of(entry: Mapping[str, Any], step: int) -> bool:
    return entry["step"] == step and "eval_loss" in entry


def _tracker_name(key: str) -> str:
    """A metric's name in trackers, as in transformers: train/loss, eval/loss."""
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
