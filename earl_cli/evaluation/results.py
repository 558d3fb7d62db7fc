"""Results on the disk: a line for each edit, its images, and the metrics by name."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from earl_cli.errors import InputError
from earl_cli.files import atomic_write, loads


@dataclass(frozen=True)
class MetricColumn:
    """``title`` heads tables; ``top`` is the best value there can be, None where there is no bound."""

    title: str
    higher_is_better: bool = True
    top: float | None = None
    digits: int = 2


COLUMNS: Mapping[str, MetricColumn] = {
    "vie_all": MetricColumn("VIEScore", top=10),
    "vie_sc": MetricColumn("SC", top=10),
    "vie_pq": MetricColumn("PQ", top=10),
    "edit_success": MetricColumn("edit success", top=10),
    "overedit": MetricColumn("no over-editing", top=10),
    "looks_natural": MetricColumn("natural", top=10),
    "no_artifact": MetricColumn("no artifacts", top=10),
    "ground_score": MetricColumn("ground score", top=10),
    "reference": MetricColumn("reference", top=1, digits=3),
    "l1": MetricColumn("L1", higher_is_better=False, top=0, digits=4),
    "l2": MetricColumn("L2", higher_is_better=False, top=0, digits=4),
    "psnr": MetricColumn("PSNR", digits=2),
    "ssim": MetricColumn("SSIM", top=1, digits=3),
    "lpips": MetricColumn("LPIPS", higher_is_better=False, top=0, digits=3),
}
"""Judged metrics from 0 to 10 (``overedit``: 10 is none), then those that compare with the target."""

PUBLISHED = ("vie_sc", "vie_pq", "vie_all", "edit_success", "overedit", "looks_natural", "no_artifact")
"""The columns that the published scoring writes, in its order; its summaries spell them in capitals."""


RUN, LINES, IMAGES = "run.json", "lines", "pictures"  # names on the disk
IMAGE_FIELDS = ("original_image", "edited_image", "gt_edited_image", "overview", "grounding_image")
SCORED, SCORING, SUMMARY = "scored.jsonl", "scoring.json", "summary.json"
PUBLISHED_NAMES = {"task_type": "task", "vie_sc_description": "sc_explanation", "vie_pq_description": "pq_explanation"}
"""Fields of published result lines that have another name here."""


@dataclass(frozen=True)
class EditResult:
    """An edit; if it is invalid, ``edited_image`` is None and ``problem`` says why.

    Images are paths relative to the results' folder. ``number`` is the sample's place in its benchmark, from 0,
    ``seed`` the run's; the two name a line. ``source`` is the part of the benchmark that the sample is from; samples
    with the same source image have the same ``picture``. ``seconds`` is the time that the edit took.
    """

    number: int
    seed: int
    id: str
    edit_instruction: str
    original_image: str
    edited_image: str | None
    gt_edited_image: str | None = None
    overview: str | None = None
    grounding_image: str | None = None
    reasoning: str = ""
    task: str = ""
    source: str = ""
    picture: str = ""
    problem: str = ""
    seconds: float | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Number and seed."""
        return self.number, self.seed


_RESULT = TypeAdapter(EditResult)


@dataclass(frozen=True)
class ScoredResult:
    """A result with its metrics by the names of `COLUMNS`; ``missing`` has the reasons for those without a value.

    ``explanations`` are the judge's texts, by ``sc``, ``pq`` and ``ground_score``.
    """

    result: EditResult
    scores: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    explanations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EvalRun:
    """All lines of one editor on one benchmark, by number and seed.

    ``about`` is run.json; ``scoring`` is scoring.json, empty where nothing was scored. ``unreadable`` are rows of the
    data that could not be used: they have a ``problem``, and no image at all.
    """

    folder: Path
    benchmark: str
    editor: str
    about: Mapping[str, Any]
    scoring: Mapping[str, Any]
    lines: tuple[ScoredResult, ...]
    unreadable: tuple[EditResult, ...] = ()


def find_results(places: Sequence[Path]) -> list[Path]:
    """The folders of results in these places, at any depth, and files of published lines as they are named.

    Raises InputError for a place without any.
    """
    found: list[Path] = []
    for place in places:
        here = [place] if place.is_file() else sorted(each.parent for each in place.rglob(RUN))
        if not here:
            what = "there are no results here" if place.exists() else "there is no such file or folder"
            raise InputError(what, where=str(place), hint="give a folder of earl eval, or published JSON lines")
        found += here
    return list(dict.fromkeys(found))


def load_run(place: Path, *, scored: bool = True) -> EvalRun:
    """The results in a folder of ``earl eval``, or in a file of published JSON lines, with scores where there are any.

    Without ``scored`` a folder's scores are left out, and lines written since are included. Raises InputError that
    names the file and the line.
    """
    if place.is_file():
        return _published(place)
    about = read_object(place / RUN)
    scored = scored and (place / SCORED).is_file()
    found = {line.result.key: line for line in (_lines(place / SCORED) if scored else lines_of(place))}
    scoring = read_object(place / SCORING) if scored else {}
    named = about.get("benchmark"), about.get("editor")
    names = [str(each.get("name", "")) if isinstance(each, Mapping) else "" for each in named]
    lines = tuple(found[key] for key in sorted(found) if found[key].result.original_image)
    unreadable = {each.result.number: each.result for each in lines_of(place) if not each.result.original_image}
    return EvalRun(
        place, names[0], names[1], about, scoring, lines, tuple(unreadable[number] for number in sorted(unreadable))
    )


def lines_of(folder: Path) -> list[ScoredResult]:
    """All edits that have a line in a folder, in no order, without scores; a line that is half written isn't there."""
    return [line for file in sorted((folder / LINES).glob("*.jsonl")) for line in _lines(file, may_be_torn=True)]


def to_line(scored: ScoredResult) -> dict[str, Any]:
    """A line of scored.jsonl: the result's fields, the published names for scores and explanations, null if missing."""
    line: dict[str, Any] = asdict(scored.result)
    line |= {**scored.scores, **dict.fromkeys(scored.missing)}
    line |= {f"{name}_explanation": text for name, text in scored.explanations.items()}
    return line | ({"missing": dict(scored.missing)} if scored.missing else {})


def write_scored(folder: Path, lines: Sequence[ScoredResult], scoring: Mapping[str, Any]) -> None:
    """Write scored.jsonl and scoring.json, each whole or not at all."""
    with atomic_write(folder / SCORED) as aside:
        aside.write_text("".join(json.dumps(to_line(line)) + "\n" for line in lines), encoding="utf-8")
    write_object(folder / SCORING, scoring)


def adopt(file: Path) -> Path:
    """A results folder beside a file of published lines, with the same images, so that they can be scored again."""
    folder = file.with_name(f"{file.stem}-results")
    run = _published(file)

    def moved(image: str | None) -> str | None:
        return image and Path(os.path.relpath(file.parent / image, folder)).as_posix()

    lines = []
    for line in run.lines:
        images = {name: moved(getattr(line.result, name)) for name in IMAGE_FIELDS}
        lines.append(json.dumps(asdict(line.result) | images) + "\n")
    (folder / LINES).mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / LINES / "published.jsonl") as aside:
        aside.write_text("".join(lines), encoding="utf-8")
    editor = {"name": run.editor, "kind": "published", "file": file.name}
    write_object(folder / RUN, {"benchmark": {"name": run.benchmark}, "editor": editor})
    return folder


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError if it isn't there or is none."""
    try:
        content = loads(path.read_bytes())
    except OSError as error:
        what = f"there are no results of earl eval here: {error.strerror or error}"
        raise InputError(
            what, where=str(path), hint="give a folder that earl eval wrote, or published JSON lines"
        ) from None
    except ValueError as error:
        raise InputError(f"this is no JSON: {error}", where=str(path)) from None
    if not isinstance(content, dict):
        raise InputError("this is no JSON object", where=str(path))
    return content


def _published(file: Path) -> EvalRun:
    """Published lines have no number and no seed: their order counts; paths are relative to the file's folder."""
    lines = tuple(_lines(file))
    return EvalRun(
        file.parent, file.parent.name, file.stem, {}, {"published": str(file)} if _scored(lines) else {}, lines
    )


def _scored(lines: Sequence[ScoredResult]) -> bool:
    return any(line.scores for line in lines)


def _lines(file: Path, *, may_be_torn: bool = False) -> Iterator[ScoredResult]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the results can't be read: {error.strerror or error}", where=str(file)) from None
    except UnicodeDecodeError:
        hint = "results are the folder of earl eval, or JSON lines"
        raise InputError("the results can't be read: this is no text", where=str(file), hint=hint) from None
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1] if may_be_torn else lines):
        if line.strip():
            yield _line(line, number, f"{file}, line {number + 1}")


def _line(text: str, number: int, where: str) -> ScoredResult:
    try:
        content = loads(text)
    except ValueError as error:
        raise InputError(f"this is no JSON: {error}", where=where) from None
    if not isinstance(content, dict):
        raise InputError("this is no JSON object", where=where)
    for name in ("original_image", "edit_instruction"):
        if not isinstance(content.get(name), str):
            raise InputError(f"there is no text {name!r}", where=where, hint="results have one JSON object a line")
    content |= {own: content.get(name) for name, own in PUBLISHED_NAMES.items() if not content.get(own)}
    own = {each.name: content[each.name] for each in fields(EditResult) if content.get(each.name) is not None}
    own = {"number": number, "seed": 0, "edited_image": None, "id": number, **own}
    for name in ("id", "task", "source"):  # numbers in some data sets
        own[name] = str(own.get(name, ""))
    try:
        result = _RESULT.validate_python(own)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]}: {first['msg']}", where=where) from None
    scores = {name: float(content[name]) for name in COLUMNS if _is_number(content.get(name))}
    missing = content.get("missing")
    endings = {key.removesuffix("_explanation"): text for key, text in content.items() if key.endswith("_explanation")}
    explanations = {name: text for name, text in endings.items() if isinstance(text, str)}
    return ScoredResult(result, scores, missing if isinstance(missing, dict) else {}, explanations)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
