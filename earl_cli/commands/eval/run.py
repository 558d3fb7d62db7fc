"""The work of ``earl eval``: check everything, generate what is missing, score what is complete, report."""

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
from earl_cli.evaluation.editor_registry import COPY, EditorOptions, find_editor, is_endpoint
from earl_cli.evaluation.editors import BenchmarkEditor
from earl_cli.evaluation.generating import WHOLE, Selection, folder_of, generate, keys, remaining, start_run
from earl_cli.evaluation.results import EvalRun, load_run
from earl_cli.evaluation.samples import OpenedBenchmark, open_benchmark
from earl_cli.evaluation.scoring import PROTOCOLS, Scoring
from earl_cli.files import folder_lock
from earl_cli.openai_client.client import check_keys

GENERATION_PACKAGES = ("torch", "transformers", "vllm", "diffusers", "pillow")
NOTES_SHOWN = 5


@dataclass(frozen=True)
class EvalRequest:
    """A command line of ``earl eval``."""

    benchmarks: tuple[str, ...]
    models: tuple[str, ...]
    options: EditorOptions
    output: Path
    limit: int | None
    seeds: tuple[int, ...]
    share: ShardShare
    scoring: ScoringRequest
    page: bool


@dataclass(frozen=True)
class EvalJob:
    """One editor on one benchmark, and the folder of its results."""

    opened: OpenedBenchmark
    editor: BenchmarkEditor
    wanted: Selection
    folder: Path


def evaluate(request: EvalRequest) -> None:
    """Run ``earl eval``. All errors of the request are found before the first edit is generated."""
    if request.output.exists() and not request.output.is_dir():
        raise OutputError("this is a file, not a folder for results", where=str(request.output))
    check_keys(_key_variables(request))
    scoring = scoring_of(request.scoring)
    jobs = _jobs(request)
    if scoring.judge is None:
        _note_missing_judge(jobs)
    for job in jobs:
        start_run(job.folder, job.opened, job.editor, _versions())
    places = [(job.folder, job.opened, job.wanted) for job in jobs]
    while jobs:  # a model is freed before the next one is loaded
        _generate(jobs.pop(0))
    for opened in dict.fromkeys(opened for _, opened, _ in places):
        for note, numbers in sorted(opened.notes.items(), key=lambda each: -len(each[1]))[:NOTES_SHOWN]:
            console.note(f"{opened.benchmark.name}: {len(numbers)} samples: {note}")
    runs = []
    for folder, opened, wanted in places:
        whole = replace(wanted, share=WHOLE)
        left = len(remaining(folder, opened, whole))
        if left:
            console.note(f"{folder}: {left} edits are left for other processes; the last one scores")
        else:
            runs.append(score_folder(load_run(folder, scored=False), scoring, keys(opened, whole)))
    if len(runs) == len(places):
        _report(request, runs, scoring)
    else:
        console.document({"results": [str(folder) for folder, *_ in places], "complete": False})


def _key_variables(request: EvalRequest) -> list[str]:
    """The environment variables whose API keys this evaluation needs."""
    judge = [request.scoring.key_variable] if request.scoring.judge else []
    endpoints = any(is_endpoint(spec) for spec in request.models)
    return [*judge, *([request.options.endpoint_key_variable] if endpoints else [])]


def _note_missing_judge(jobs: Sequence[EvalJob]) -> None:
    """Show which metrics need a judge where none is given."""
    console.note("without a judge (--judge) there is no VIEScore; metrics compare with target images only")
    alone = dict.fromkeys(
        job.opened.benchmark.name for job in jobs if not any(part.columns.target for part in job.opened.parts)
    )
    if alone:
        what = f"{', '.join(alone)} has no target images, so edits are generated and not scored"
        console.warn(f"{what}; earl eval score --judge scores them later")


def _versions() -> dict[str, str]:
    """Versions of this program and of the packages that generate edits."""
    found = {"earl": version()}
    for package in GENERATION_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _jobs(request: EvalRequest) -> list[EvalJob]:
    """Every editor on every benchmark, an editor's together. Raises UsageError if two would share a folder."""
    opened = [open_benchmark(find_benchmark(name)) for name in request.benchmarks]
    jobs: list[EvalJob] = []
    for spec in request.models:
        with without_collector():  # only imports: models are loaded later, and freed again
            pick = find_editor(spec, replace(request.options, on_load=console.note))
        for each in opened:
            editor = pick(each.benchmark.size)
            about = editor.describe()
            seeds = (
                request.seeds[:1] if about["kind"] == COPY else request.seeds
            )  # the source is the same for all of them
            subset = each.benchmark.paper if PROTOCOLS[request.scoring.protocol].subset else None
            wanted = Selection(request.limit, seeds, request.share, subset)
            folder = folder_of(request.output, each.benchmark.name, about)
            jobs.append(EvalJob(each, editor, wanted, folder))
    folders = [job.folder for job in jobs]
    twice = next((job for job in jobs if folders.count(job.folder) > 1), None)
    if twice is not None:
        what = f"{twice.editor.name} is named twice on {twice.opened.benchmark.name}"
        raise UsageError(what, where="--model", hint="leave one out")
    return jobs


def _generate(job: EvalJob) -> None:
    label = f"{job.editor.name} on {job.opened.benchmark.name}"
    part = f" ({job.wanted.share})" if job.wanted.share.count > 1 else ""
    with (
        folder_lock(job.folder, "earl eval", job.wanted.share.part),
        console.progress(f"{label}{part}", unit="edits") as progress,
    ):
        generate(job.folder, job.opened, job.editor, job.wanted, lambda done, of: progress.update(round(done, 1), of))


def _report(request: EvalRequest, runs: Sequence[EvalRun], scoring: Scoring) -> None:
    show_runs(runs)
    files = write_tables(request.output, runs, request.page)
    for path in files.values():
        console.say(path)
    document: dict[str, Any] = {"results": [run_document(run) for run in runs], "complete": True, **files}
    finish(runs, scoring, document)
