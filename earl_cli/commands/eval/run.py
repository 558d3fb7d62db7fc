"""The work of ``earl eval``: check everything, draw what is missing, score what is complete, report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from earl_cli import version
from earl_cli.commands._options import without_collector
from earl_cli.commands.eval.options import (
    ScoringRequest,
    finish,
    run_document,
    score_folder,
    scoring_of,
    show_runs,
    write_tables,
)
from earl_cli.console import console
from earl_cli.data.shard_plan import ShardShare
from earl_cli.errors import OutputError, UsageError
from earl_cli.evaluation.benchmarks import find_benchmark
from earl_cli.evaluation.editor_registry import COPY, Options, choose, is_endpoint
from earl_cli.evaluation.editors import BenchmarkEditor
from earl_cli.evaluation.generating import WHOLE, Selection, folder_of, generate, keys, missing, start_run
from earl_cli.evaluation.results import EvalRun, load_run
from earl_cli.evaluation.samples import OpenedBenchmark, open_benchmark
from earl_cli.evaluation.scoring import PROTOCOLS, Scoring
from earl_cli.files import folder_lock
from earl_cli.openai_client.client import check_keys

DRAWN_WITH = ("torch", "transformers", "vllm", "diffusers", "pillow")
NOTES_SHOWN = 5


@dataclass(frozen=True)
class EvalRequest:
    """What the person asked for."""

    benchmarks: tuple[str, ...]
    models: tuple[str, ...]
    options: Options
    output: Path
    limit: int | None
    seeds: tuple[int, ...]
    share: ShardShare
    asked: ScoringRequest
    page: bool


@dataclass(frozen=True)
class EvalJob:
    """One editor on one benchmark, and the folder of its results."""

    opened: OpenedBenchmark
    editor: BenchmarkEditor
    wanted: Selection
    folder: Path


def evaluate(order: EvalRequest) -> None:
    """Everything that ``earl eval`` does. Whatever can be wrong with the order is found before the first edit."""
    if order.output.exists() and not order.output.is_dir():
        raise OutputError("this is a file, not a folder for results", where=str(order.output))
    check_keys(_key_variables(order))
    scoring = scoring_of(order.asked)
    jobs = _jobs(order)
    if scoring.judge is None:
        _say_what_is_missing(jobs)
    for job in jobs:
        start_run(job.folder, job.opened, job.editor, _versions())
    places = [(job.folder, job.opened, job.wanted) for job in jobs]
    while jobs:  # a model that has drawn everything leaves the memory before the next one comes
        _draw(jobs.pop(0))
    for opened in dict.fromkeys(opened for _, opened, _ in places):
        for note, numbers in sorted(opened.notes.items(), key=lambda each: -len(each[1]))[:NOTES_SHOWN]:
            console.note(f"{opened.benchmark.name}: {len(numbers)} samples: {note}")
    runs = []
    for folder, opened, wanted in places:
        whole = replace(wanted, share=WHOLE)
        left = len(missing(folder, opened, whole))
        if left:
            console.note(f"{folder}: {left} edits are left to other processes; the last one scores")
        else:
            runs.append(score_folder(load_run(folder, scored=False), scoring, keys(opened, whole)))
    if len(runs) == len(places):
        _report(order, runs, scoring)
    else:
        console.document({"results": [str(folder) for folder, *_ in places], "complete": False})


def _key_variables(order: EvalRequest) -> list[str]:
    """The environment variables whose keys this evaluation needs."""
    judge = [order.asked.key_variable] if order.asked.judge else []
    endpoints = any(is_endpoint(spec) for spec in order.models)
    return [*judge, *([order.options.endpoint_key_variable] if endpoints else [])]


def _say_what_is_missing(jobs: Sequence[EvalJob]) -> None:
    """What there will be no figures of without a judge."""
    console.note("no judge is named (--judge), so there is no VIEScore; figures come from true edits only")
    alone = dict.fromkeys(
        job.opened.benchmark.name for job in jobs if not any(part.columns.target for part in job.opened.parts)
    )
    if alone:
        what = f"{', '.join(alone)} has no true edits, so its pictures are drawn and nothing is scored"
        console.warn(f"{what}; earl eval score scores them later by a judge")


def _versions() -> dict[str, str]:
    """Of this program, and of what it draws with."""
    found = {"earl": version()}
    for package in DRAWN_WITH:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _jobs(order: EvalRequest) -> list[EvalJob]:
    """Every editor on every benchmark, an editor's together. Raises UsageError if two would share a folder."""
    opened = [open_benchmark(find_benchmark(name)) for name in order.benchmarks]
    jobs: list[EvalJob] = []
    for spec in order.models:
        with without_collector():  # its imports; models come later, and leave the memory again
            pick = choose(spec, replace(order.options, on_load=console.note))
        for each in opened:
            editor = pick(each.benchmark.size)
            about = editor.describe()
            seeds = order.seeds[:1] if about["kind"] == COPY else order.seeds  # the source is the same for all of them
            subset = each.benchmark.paper if PROTOCOLS[order.asked.protocol].subset else None
            wanted = Selection(order.limit, seeds, order.share, subset)
            folder = folder_of(order.output, each.benchmark.name, about)
            jobs.append(EvalJob(each, editor, wanted, folder))
    folders = [job.folder for job in jobs]
    twice = next((job for job in jobs if folders.count(job.folder) > 1), None)
    if twice is not None:
        what = f"{twice.editor.name} is named twice on {twice.opened.benchmark.name}"
        raise UsageError(what, where="--model", hint="leave one out")
    return jobs


def _draw(job: EvalJob) -> None:
    label = f"{job.editor.name} on {job.opened.benchmark.name}"
    part = f" ({job.wanted.share})" if job.wanted.share.count > 1 else ""
    with (
        folder_lock(job.folder, "earl eval", job.wanted.share.part),
        console.progress(f"{label}{part}", unit="edits") as progress,
    ):
        generate(job.folder, job.opened, job.editor, job.wanted, lambda done, of: progress.update(round(done, 1), of))


def _report(order: EvalRequest, runs: Sequence[EvalRun], scoring: Scoring) -> None:
    show_runs(runs)
    files = write_tables(order.output, runs, order.page)
    for path in files.values():
        console.say(path)
    document: dict[str, Any] = {"results": [run_document(run) for run in runs], "complete": True, **files}
    finish(runs, scoring, document)
