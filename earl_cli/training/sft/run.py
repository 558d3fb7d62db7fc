"""Supervised fine-tuning: examples from token stores, loss after the instruction, resumed where it stopped.

transformers' Trainer runs the loop, alone, in several processes, or sharded by DeepSpeed; `trainer` has what EARL adds.
At each validation a gallery shows what the model samples for some validation examples.
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
from earl_cli.models.bundle import Base
from earl_cli.models.vision import decode, images_of
from earl_cli.tokens.layout import Grid, Mode, SequenceLayout
from earl_cli.training.common.checkpoints import (
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
    """Of the rows of a mixture: how many have more than ``limit`` tokens, and the ``longest`` of all."""

    limit: int
    over: int
    longest: int


@dataclass(frozen=True, eq=False)
class SftData:
    """The data of a run; ``skipped`` training rows and ``validation_skipped`` validation rows are left out.

    ``lengths`` are those of the rows before any was left out.
    """

    train: ExampleData
    mixture: Mixture
    validation: ExampleData | None
    skipped: int
    validation_skipped: int
    lengths: Lengths


@dataclass(frozen=True)
class SftResult:
    """Where training ended: the step, the validation loss in nats a token, and the step it resumed from (0: none).

    ``weights`` are the model's or its adapters', brought together in the first process and empty in the others.
    ``best`` is the step whose model validation found best, with its loss.
    """

    steps: int
    validation_loss: float | None
    resumed_from: int
    weights: Mapping[str, Tensor] = field(repr=False)
    best: tuple[int, float] | None = None


def load_data(config: SftConfig, layout: SequenceLayout, positions: int) -> SftData:
    """The data sets of a run, mixed and checked. ``positions`` is how many the model has.

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
        held = load_rows(config.validation, layout, config.cot_keys)
        chosen = sample_rows(held.sizes, config.validation_rows, config.seed).rows
        validation = ExampleData(held, chosen[held.lengths[chosen] <= most])
        validation_skipped = len(chosen) - len(validation)
        if validation_skipped and (config.too_long != "skip" or not len(validation)):
            raise _too_long(held, most, positions, ", ".join(map(str, config.validation)))
    return SftData(ExampleData(rows, order), mixture, validation, int((~short).sum()), validation_skipped, found)


def _too_long(rows: DatasetRows, most: int, positions: int, where: str) -> InputError:
    """What is wrong with rows of more than ``most`` tokens, with the first one's id."""
    long = (rows.lengths > most).nonzero()[0]
    limit = f"the model's {most} positions" if most == positions else f"{most} tokens"
    also = "" if rows.lengths.max() > positions else ", or train on them as they are: --set too_long=keep"
    return InputError(
        f"{len(long)} of {len(rows)} sequences are longer than {limit}: the first is {rows.id(int(long[0]))!r}, "
        f"the longest has {rows.lengths.max()} tokens",
        where=where,
        hint=f"tokenize with a smaller --image-area, leave them out: --set too_long=skip{also}",
    )


def fine_tune(
    config: SftConfig,
    model: Any,
    base: Base,
    data: SftData,
    on_step: OnStep,
    on_validation: OnValidation | None = None,
) -> SftResult:
    """Train ``model`` (or its adapters) in place as ``config`` says; ``on_step`` hears (step, steps, figures) of a log.

    Goes on from the newest whole checkpoint in the output folder. Raises EarlError, after keeping the last good
    checkpoint, if the loss stops being a number; the message names the rows. Raises `Stopped` once the checkpoint is
    written that a signal asked for.
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
        remove_old(folder, config.keep, GOAL)  # a run may have been killed before it came to that
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


def optimizer_steps(config: SftConfig, pairs: int, processes: int) -> int:
    """How many optimizer steps a run of so many pairs an epoch takes."""
    if config.max_steps:
        return config.max_steps
    batches = math.ceil(math.ceil(pairs / config.batch_size) / processes)
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
    """Write a page with the first ``count`` rows of ``data``: source, what the model draws with seed 0, and target.

    The training isn't touched: the engine has its own random numbers, and the model is given back as it was.
    """
    rows = [int(row) for row in data.order[:count]]
    mode: Mode = "reasoning" if data.rows.cot_keys else "edit"
    requests = []
    for row in rows:
        grid = Grid(*data.rows.target(row).shape)
        prompt = layout.prompt(data.rows.source(row), data.rows.instruction(row), mode, grid)
        requests.append(SamplingRequest(tuple(prompt.tolist()), mode, grid, (0,)))
    with merged_model(model) as language:
        drawn = TransformersEngine(language, layout).generate(requests, sampling)
    entries = []
    for row, request, (completion,) in zip(rows, requests, drawn, strict=True):
        answer = layout.parse_completion(completion.ids, mode, request.grid)
        figures = [ImageFigure(_picture(vision, data.rows.source(row)), "source")]
        if answer.codes is not None:
            figures.append(ImageFigure(_picture(vision, answer.codes), "drawn"))
        figures.append(ImageFigure(_picture(vision, data.rows.target(row)), "target"))
        texts = [("instruction", data.rows.instruction(row))]
        texts += [("thinking", answer.thoughts)] if answer.thoughts else []
        texts += [("problem", answer.problem)] if answer.problem else []
        entries.append(Entry(data.rows.id(row), figures, texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    note = f"{sampling}, seed 0; validation pairs that were drawn at random, none picked"
    write_page(path, page(title, [note], entries))


def _picture(vision: Any, codes: Any) -> Any:
    return images_of(decode(vision, torch.from_numpy(codes.astype("int64"))[None]))[0]
