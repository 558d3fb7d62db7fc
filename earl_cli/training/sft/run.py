"""A run of supervised fine-tuning: examples from token stores, the loop of transformers' Trainer, and resuming.

The Trainer runs in one process, in several, or sharded by DeepSpeed; `trainer` has what EARL adds to it. At each
validation a gallery shows edits that the model samples for some validation examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from earl_cli.config.sampling import SamplingParams
from earl_cli.config.sft import SftConfig
from earl_cli.data.batches import DatasetRows, ExampleData, Mixture, collate, load_rows, mix, sample_rows
from earl_cli.errors import InputError, UsageError
from earl_cli.files import truncate_incomplete_line
from earl_cli.generation.engine import SamplingRequest
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.images.html_gallery import Entry, ImageFigure, page, write_page
from earl_cli.models.bundle import DESCRIPTION, Base
from earl_cli.models.vision import decode, images_of
from earl_cli.tokens.layout import Grid, Mode, SequenceLayout
from earl_cli.training.common.checkpoints import (
    ANOTHER,
    CHECKPOINTS,
    best,
    checkpoint_number,
    latest,
    link_best,
    remove_incomplete,
    remove_old,
)
from earl_cli.training.common.curves import LOG
from earl_cli.training.common.distributed import rank, silence_libraries, uses_cpu
from earl_cli.training.common.stopping import StopSignal
from earl_cli.training.sft.loss import separate_vocabularies, whole_vocabulary
from earl_cli.training.sft.model import merged_model
from earl_cli.training.sft.trainer import GOAL, OnStep, OnValidation, Reporter, SftTrainer, training_arguments

DEFAULT_MAX_LENGTH = 3000


@dataclass(frozen=True)
class Lengths:
    """Lengths of the rows of a mixture: ``over`` of them exceed ``limit`` tokens; ``longest`` is the maximum."""

    limit: int
    over: int
    longest: int


@dataclass(frozen=True, eq=False)
class SftData:
    """The data of a run; ``skipped`` training rows and ``validation_skipped`` validation rows are left out.

    ``lengths`` are those of all rows, including the ones left out.
    """

    train: ExampleData
    mixture: Mixture
    validation: ExampleData | None
    skipped: int
    validation_skipped: int
    lengths: Lengths


@dataclass(frozen=True)
class SftResult:
    """The end of a training: the step, the validation loss in nats per token, and the step it resumed from (0: none).

    ``weights`` are those of the model or its adapters, gathered on rank 0 and empty on the others. ``best`` is the step
    with the lowest validation loss, and that loss.
    """

    steps: int
    validation_loss: float | None
    resumed_from: int
    weights: Mapping[str, Tensor] = field(repr=False)
    best: tuple[int, float] | None = None


def load_data(config: SftConfig, layout: SequenceLayout, positions: int) -> SftData:
    """The data sets of a run, mixed and checked; ``positions`` is the number of positions of the model.

    Raises InputError for data that can't be trained on, and UsageError for lengths beyond the model's.
    """
    limit = config.max_length or min(DEFAULT_MAX_LENGTH, positions)
    if limit > positions:
        what = f"max_length is {limit}, but the model has only {positions} positions"
        raise UsageError(what, where="max_length", hint=f"--max-length {positions}")
    rows = load_rows(config.data, layout, config.cot_keys)
    mixture = mix(rows.sizes, config.coefficients, config.seed)
    most = positions if config.too_long == "keep" else limit
    found = Lengths(limit, int((rows.lengths[mixture.rows] > limit).sum()), int(rows.lengths[mixture.rows].max()))
    short = rows.lengths[mixture.rows] <= most
    if not short.all() and (config.too_long != "skip" or not short.any()):
        raise _too_long(rows, most, positions, ", ".join(map(str, config.data)))
    order = mixture.rows[short]
    validation, validation_skipped = None, 0
    if config.validation:
        validation_examples = load_rows(config.validation, layout, config.cot_keys)
        chosen = sample_rows(validation_examples.sizes, config.validation_examples, config.seed).rows
        validation = ExampleData(validation_examples, chosen[validation_examples.lengths[chosen] <= most])
        validation_skipped = len(chosen) - len(validation)
        if validation_skipped and (config.too_long != "skip" or not len(validation)):
            raise _too_long(validation_examples, most, positions, ", ".join(map(str, config.validation)))
    return SftData(ExampleData(rows, order), mixture, validation, int((~short).sum()), validation_skipped, found)


def _too_long(rows: DatasetRows, most: int, positions: int, where: str) -> InputError:
    """The error for rows of more than ``most`` tokens, with the id of the first."""
    long = (rows.lengths > most).nonzero()[0]
    limit = f"the model's {most} positions" if most == positions else f"{most} tokens"
    also = "" if rows.lengths.max() > positions else ", or train on them as they are: --set too_long=keep"
    return InputError(
        f"{len(long)} of {len(rows)} sequences are longer than {limit}: the first is {rows.id(int(long[0]))!r}, "
        f"the longest has {rows.lengths.max()} tokens",
        where=where,
        hint=f"tokenize with a smaller --image-area, leave them out: --set too_long=skip{also}",
    )


def check_resumable(config: SftConfig, processes: int) -> None:
    """Raise UsageError if the run in the folder was started with other sharding, world size or adapters."""
    checkpoint = latest(config.output / CHECKPOINTS)
    if checkpoint is None:
        return
    adapters = any(checkpoint.glob("**/adapter_model.safetensors"))
    parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    partitioned = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    sharding = "none" if not parts else "zero3" if partitioned else "zero2"
    now = config.sharding.removesuffix("-offload")
    if (adapters, sharding, parts) != (config.lora_rank is not None, now, processes if now != "none" else 0):
        words = f"{'adapters' if adapters else 'all weights'} trained, sharding {sharding}"
        raise UsageError(
            f"this run was started with {words}" + (f", {parts} processes" if parts else ""),
            where=str(checkpoint),
            hint=f"use the same settings, or {ANOTHER}",
        )
    if parts and not adapters and not (checkpoint / DESCRIPTION).is_file():
        raise UsageError(
            "this sharded run was started by an older earl, with weight decay for norms; the state of its optimizer "
            "doesn't fit the present parameter groups",
            where=str(checkpoint),
            hint=f"resume with the version that started it, or start from its weights: {ANOTHER}",
        )


def fine_tune(
    config: SftConfig,
    model: Any,
    base: Base,
    data: SftData,
    on_step: OnStep,
    on_validation: OnValidation | None = None,
) -> SftResult:
    """Train ``model`` (or its adapters) in place; ``on_step`` is called with (step, steps, metrics) of each log entry.

    Resumes from the latest complete checkpoint in the output folder. Raises EarlError, naming the rows, if the loss or
    a gradient is not finite; the last good checkpoint is kept. After a stop signal it writes a checkpoint and raises
    `TrainingStopped`.
    """
    language = model.get_base_model() if hasattr(model, "get_base_model") else model
    vocabulary = base.layout.vocabulary
    language.set_loss_ranges((separate_vocabularies if config.separate_vocabularies else whole_vocabulary)(vocabulary))
    silence_libraries(uses_cpu(config))
    folder = config.output / CHECKPOINTS
    start = latest(folder)
    resumed = checkpoint_number(start) if start else 0
    if rank() == 0:
        remove_incomplete(folder)
        remove_old(folder, config.keep_checkpoints, GOAL)  # a run may have been killed before it did this
        link_best(config.output, GOAL)
        truncate_incomplete_line(config.output / LOG)
    stop_signal = StopSignal()
    reporter = Reporter(config, on_step, on_validation, data.validation, stop_signal, resumed)
    trainer = SftTrainer(
        config=config,
        base=base,
        reporter=reporter,
        model=model,
        args=training_arguments(config, folder, evaluates=data.validation is not None),
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=partial(collate, pad=vocabulary.pad),
        callbacks=[reporter],
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(type(callback))
    with stop_signal.handling("after this step"):
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        reporter.end()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    found = best(folder, GOAL)
    return SftResult(
        trainer.state.global_step,
        reporter.validation_loss(),
        resumed,
        weights if rank() == 0 else {},
        (checkpoint_number(found[0]), found[1]) if found else None,
    )


def optimizer_steps(config: SftConfig, examples: int, processes: int) -> int:
    """The number of optimizer steps of a run with ``examples`` training examples on ``processes`` ranks."""
    if config.max_steps:
        return config.max_steps
    batches = math.ceil(math.ceil(examples / config.batch_size) / processes)
    return math.ceil(config.epochs * max(1, math.ceil(batches / config.accumulation)))


def write_gallery(
    model: Any,
    vision: Any,
    layout: SequenceLayout,
    data: ExampleData,
    count: int,
    sampling: SamplingParams,
    path: Path,
    title: str,
) -> None:
    """Write a page of the first ``count`` rows of ``data``: source, an edit sampled with seed 0, and target.

    The training isn't affected: the engine has its own random numbers, and the model is restored.
    """
    rows = [int(row) for row in data.order[:count]]
    mode: Mode = "reasoning" if data.rows.cot_keys else "edit"
    requests = []
    for row in rows:
        grid = Grid(*data.rows.target(row).shape)
        prompt = layout.prompt(data.rows.source(row), data.rows.instruction(row), mode, grid)
        requests.append(SamplingRequest(tuple(prompt.tolist()), mode, grid, (0,)))
    with merged_model(model) as language:
        completions = TransformersEngine(language, layout).generate(requests, sampling)
    entries = []
    for row, request, (completion,) in zip(rows, requests, completions, strict=True):
        parsed = layout.parse_completion(completion.ids, mode, request.grid)
        figures = [ImageFigure(_decoded(vision, data.rows.source(row)), "source")]
        if parsed.codes is not None:
            figures.append(ImageFigure(_decoded(vision, parsed.codes), "edit"))
        figures.append(ImageFigure(_decoded(vision, data.rows.target(row)), "target"))
        texts = [("instruction", data.rows.instruction(row))]
        texts += [("thinking", parsed.thoughts)] if parsed.thoughts else []
        texts += [("problem", parsed.problem)] if parsed.problem else []
        entries.append(Entry(data.rows.id(row), figures, texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    note = f"{sampling}, seed 0; a random sample of the validation examples"
    write_page(path, page(title, [note], entries))


def _decoded(vision: Any, codes: Any) -> Any:
    return images_of(decode(vision, torch.from_numpy(codes.astype("int64"))[None]))[0]
