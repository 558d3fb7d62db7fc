"""The first stage of an evaluation: an editor's images, one JSON line each, in any number of processes.

A line is written after its images are, and an edit that has a line is never made again. A run that was killed at any
moment resumes, and processes that share the work need not communicate.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from earl_cli.data.shard_plan import ShardShare
from earl_cli.data.sources.base import BadRowError
from earl_cli.errors import UsageError
from earl_cli.evaluation.benchmarks import Subset
from earl_cli.evaluation.charts import boxes_and_points, overview, plot_marks
from earl_cli.evaluation.editors import BenchmarkEditor, EditorOutput, EditTask, OnFraction
from earl_cli.evaluation.results import IMAGES, LINES, RUN, EditResult, EvalRun, lines_of, read_object, write_object
from earl_cli.evaluation.samples import BenchmarkSample, OpenedBenchmark
from earl_cli.files import remove_partials, truncate_incomplete_line
from earl_cli.images.image_file import save_image

ORIGINALS = "originals"
WHOLE = ShardShare()
OnGenerated = Callable[[float, int], None]
"""Called with the number of edits that are done, fractions included, and the number of all."""


@dataclass(frozen=True)
class Selection:
    """Which edits are made: ``limit`` samples (None: all), each with every seed; ``share`` is this process's.

    ``subset`` None is of all its rows.
    """

    limit: int | None = None
    seeds: tuple[int, ...] = (0,)
    share: ShardShare = WHOLE
    subset: Subset | None = None


def start_run(folder: Path, opened: OpenedBenchmark, editor: BenchmarkEditor, versions: Mapping[str, str]) -> None:
    """Note in run.json what the edits depend on. Raises UsageError if the folder has edits of anything else."""
    about = {
        "benchmark": {
            "name": opened.benchmark.name,
            "title": opened.benchmark.title,
            "fingerprint": opened.fingerprint,
            "samples": len(opened),
            "paper": subset.model_dump() if (subset := opened.benchmark.paper) else None,
        },
        "editor": dict(editor.describe()),
        "versions": dict(versions),
    }
    if (folder / RUN).is_file():
        before = read_object(folder / RUN)
        for part in ("benchmark", "editor"):
            differs = _difference(before.get(part), json.loads(json.dumps(about[part])))
            if differs:
                what = f"these results were made with other settings: {part} {differs}"
                raise UsageError(what, where=str(folder), hint="choose another --output, or remove that folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_object(folder / RUN, about)


def generate(
    folder: Path,
    opened: OpenedBenchmark,
    editor: BenchmarkEditor,
    selection: Selection,
    progress: OnGenerated | None = None,
) -> None:
    """Make the remaining edits of this process's share, into ``folder`` (see `start_run`).

    A row of the data that can't be used gets a line with the reason and without images. Raises EarlError if the editor
    can't go on, and OSError if the disk can't; finished edits are kept.
    """
    (folder / LINES).mkdir(exist_ok=True)
    (folder / IMAGES).mkdir(exist_ok=True)
    own = folder / LINES / f"{selection.share.index}-of-{selection.share.count}.jsonl"
    truncate_incomplete_line(own)
    todo, total = remaining(folder, opened, selection), len(keys(opened, selection))
    done = total - len(todo)
    while todo:
        _report(progress, done, total)
        chunk, todo = todo[: editor.batch_size], todo[editor.batch_size :]
        samples, unreadable = _samples(opened, chunk)
        _append(own, unreadable)
        if samples:
            tasks = [_task(sample, seed) for sample, seed in samples]
            began = time.monotonic()
            outputs = editor.edit(tasks, _within(progress, done, len(tasks), total))
            seconds = (time.monotonic() - began) / len(tasks)
            found = zip(samples, outputs, strict=True)
            _append(own, [_saved(folder, sample, seed, each, seconds) for (sample, seed), each in found])
        done += len(chunk)
    _report(progress, done, total)


def keys(opened: OpenedBenchmark, selection: Selection) -> list[tuple[int, int]]:
    """Number and seed of this share's edits, in the order in which they are made."""
    chosen = opened.chosen(selection.limit, selection.subset)
    mine = [number for place, number in enumerate(chosen) if selection.share.owns(place)]
    return [(number, seed) for number in mine for seed in selection.seeds]


def keys_of_subset(run: EvalRun) -> list[tuple[int, int]] | None:
    """Number and seed of a run's edits that are in its benchmark's published subset; None if it names none."""
    about = run.about.get("benchmark")
    if not isinstance(about, Mapping) or not about.get("paper"):
        return None
    rows = set(Subset(**about["paper"]).rows(int(about["samples"])))
    return [line.result.key for line in run.lines if line.result.number in rows]


def remaining(folder: Path, opened: OpenedBenchmark, selection: Selection) -> list[tuple[int, int]]:
    """Those of `keys` that have no line yet."""
    done = {line.result.key for line in lines_of(folder)}
    return [key for key in keys(opened, selection) if key not in done]


def folder_of(results: Path, benchmark: str, editor: Mapping[str, Any]) -> Path:
    """Where an editor's results on a benchmark are: its name, and digits for all that its edits depend on."""
    digest = hashlib.sha256(json.dumps(editor, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return results / plain(benchmark) / f"{plain(str(editor['name']))}-{digest}"


def plain(name: str, length: int = 60) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._")[:length] or "_"


def _samples(
    opened: OpenedBenchmark, todo: Sequence[tuple[int, int]]
) -> tuple[list[tuple[BenchmarkSample, int]], list[EditResult]]:
    """The samples with their seeds, and lines for those that can't be read."""
    numbers = sorted({number for number, _ in todo})
    found = dict(zip(numbers, opened.read(numbers), strict=True))
    samples: list[tuple[BenchmarkSample, int]] = []
    unreadable: list[EditResult] = []
    for number, seed in todo:
        row = found[number]
        if isinstance(row, BadRowError):
            why = f"{row.where}: {row.what}" if row.where else row.what
            unreadable.append(EditResult(number, seed, f"{number:06d}", "", "", None, problem=why))
        else:
            samples.append((row, seed))
    return samples, unreadable


def task_seed(seed: int, number: int) -> int:
    """An edit's own seed, in 31 bits, from the run's and the sample's number: no two samples share their noise."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def _task(sample: BenchmarkSample, seed: int) -> EditTask:
    return EditTask(sample.id, sample.image, sample.instruction, task_seed(seed, sample.number))


def _saved(folder: Path, sample: BenchmarkSample, seed: int, output: EditorOutput, seconds: float) -> EditResult:
    """The line of an edit whose images are saved: the sample's own once for all editors, beside their folders."""
    name = f"{sample.number:06d}"
    shared = folder.parent / ORIGINALS
    shared.mkdir(exist_ok=True)

    def kept(path: Path, image: Image | None, fresh: bool = True) -> str | None:
        if image is None:
            return None
        if fresh:
            remove_partials(path)
        if fresh or not path.is_file():
            save_image(image, path)
        return Path(os.path.relpath(path, folder)).as_posix()

    marks = boxes_and_points(output.reasoning)
    marked = plot_marks(sample.image, marks, output.seen or sample.image.size) if marks else None
    side_by_side = overview(sample.image, output.image, sample.target, sample.instruction, output.reasoning)
    images = folder / IMAGES
    return EditResult(
        number=sample.number,
        seed=seed,
        id=sample.id,
        edit_instruction=sample.instruction,
        original_image=kept(shared / f"{name}-{sample.digest}.png", sample.image, fresh=False) or "",
        edited_image=kept(images / f"{name}-{seed}.png", output.image),
        gt_edited_image=kept(shared / f"{name}-{sample.digest}-target.png", sample.target, fresh=False),
        overview=kept(images / f"{name}-{seed}-overview.jpg", side_by_side),
        grounding_image=kept(images / f"{name}-{seed}-grounding.png", marked),
        reasoning=output.reasoning,
        task=sample.task,
        source=sample.source,
        picture=sample.digest,
        problem=output.problem,
        seconds=round(seconds, 3),
    )


def _append(path: Path, results: Sequence[EditResult]) -> None:
    if not results:
        return
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:  # half a character becomes an escape
        file.write("".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in results))
        file.flush()
        os.fsync(file.fileno())


def _within(progress: OnGenerated | None, done: int, count: int, total: int) -> OnFraction:
    return lambda share: _report(progress, done + share * count, total)


def _report(progress: OnGenerated | None, done: float, total: int) -> None:
    if progress:
        progress(done, total)


def _difference(before: Any, now: Any) -> str:
    """The first entry in which two objects differ, as text; "" if none does."""
    before = before if isinstance(before, Mapping) else {}
    for key in sorted({*before, *now} - {"title", "paper"}):
        if before.get(key) != now.get(key):
            return f"{key} {before.get(key)!r} there, {now.get(key)!r} now"
    return ""
