"""The second stage of an evaluation: metrics of edits that are there already, by a judge and by the target.

A metric without a value is missing with its reason, never zero; an invalid edit gets the judge's zero, as published.
No edits are made here, and the judge's replies are cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from earl_cli.errors import EarlError
from earl_cli.evaluation.metrics import measure, versions
from earl_cli.evaluation.results import EditResult, EvalRun, ScoredResult
from earl_cli.images.image_file import open_image
from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.judge.declarations import DEFAULT, PUBLISHED, Rubrics
from earl_cli.rewards.judge.pairwise import EditPair
from earl_cli.rewards.reference import reference_reward
from earl_cli.rewards.reward import Edit, Pixels, Reward, Score
from earl_cli.rewards.viescore import judged_reward

BATCH_SIZE = 64
JUDGED = {
    "semantic_consistency": ("vie_sc", "edit_success", "overedit", "vie_all"),
    "perceptual_quality": ("vie_pq", "looks_natural", "no_artifact", "vie_all"),
    "ground_score": ("ground_score",),
}
"""The metrics that are missing if the judge doesn't reply to this task."""
NAMES = {"semantic_consistency": "vie_sc", "perceptual_quality": "vie_pq", "viescore": "vie_all"}
NO_EDIT = "the edit has no image"
# in scoring.json, where another text would mean another scoring
SIZES = "one for all pictures of a sample: the source's, the area at most"


@dataclass(frozen=True)
class Protocol:
    """What comparable evaluations share: the judge's declaration, the ``area`` of its images, the rows.

    ``area`` None is the declaration's. With ``subset`` only a benchmark's published rows count, where it names some.
    """

    declaration: str
    area: int | None
    subset: bool


PROTOCOLS = {"earl": Protocol(DEFAULT, None, False), "paper": Protocol(PUBLISHED, 256 * 256, True)}
"""By name; ``paper`` is that of arXiv 2508.01119."""


@dataclass(frozen=True)
class Scoring:
    """How edits are scored: by a ``judge``, if there is one, and by ``metrics`` of `measure` where there is a target.

    The judge sees all images of a sample, of every editor, at one size: at the source's number of pixels, but no
    more than ``area`` of them where that is given. ``protocol`` is one of `PROTOCOLS`.
    """

    judge: Judge | None
    rubrics: Rubrics
    metrics: tuple[str, ...]
    ground_score: bool = False
    area: int | None = None
    protocol: str = "earl"

    def describe(self) -> dict[str, Any]:
        """Everything the metrics depend on, as JSON."""
        wording = {name: text for name, text in asdict(self.rubrics).items() if self._uses(name)}
        return {
            "protocol": self.protocol,
            "judge": {"model": self.judge.model, "declaration": self.judge.declaration.describe()}
            if self.judge
            else None,
            "rubrics": hashlib.sha256(repr(wording).encode()).hexdigest()[:16] if self.judge else None,
            "area": self.area if self.judge else None,
            "sizes": SIZES if self.judge else None,
            "metrics": list(self.metrics),
            "versions": versions(),
        }

    def _uses(self, rubric: str) -> bool:
        return rubric in ("semantic_consistency", "perceptual_quality") or (
            rubric == "ground_score" and self.ground_score
        )


def score(run: EvalRun, scoring: Scoring, progress: Callable[[int, int], None] | None = None) -> list[ScoredResult]:
    """All lines of a run with their metrics, in order.

    Raises JudgeDownError if the judge doesn't reply; replies until then are in its cache.
    """
    reward = judge_reward(scoring)
    found: list[ScoredResult] = []
    for start in range(0, len(run.lines), BATCH_SIZE):
        lines = run.lines[start : start + BATCH_SIZE]
        edits = [_load_edit(run.folder, line.result) for line in lines]
        there = [edit for edit in edits if isinstance(edit, Edit)]
        scores = iter(reward([_for_judge(edit, scoring.area) for edit in there]) if reward else [None] * len(there))
        found += [
            _scored(line.result, edit, next(scores), scoring)
            if isinstance(edit, Edit)
            else _unreadable(line.result, edit, scoring)
            for line, edit in zip(lines, edits, strict=True)
        ]
        if progress:
            progress(len(found), len(run.lines))
    return found


def judge_reward(scoring: Scoring) -> Reward | None:
    """VIEScore by the judge, with the ground score if chosen; None without a judge."""
    if scoring.judge is None:
        return None
    return judged_reward(scoring.judge, scoring.rubrics, "viescore", ("ground_score",) if scoring.ground_score else ())


def shared_keys(a: EvalRun, b: EvalRun) -> list[tuple[int, int]]:
    """Number and seed of the edits that both have."""
    theirs = {line.result.key for line in b.lines}
    return [line.result.key for line in a.lines if line.result.key in theirs]


def pairs_of(a: EvalRun, b: EvalRun, keys: Collection[tuple[int, int]], area: int | None) -> list[EditPair]:
    """These edits of both, as a judge sees them (see `Scoring`); those whose images can't be read are left out."""
    others = {line.result.key: line.result for line in b.lines}
    pairs = []
    for line in a.lines:
        if line.result.key not in keys:
            continue
        first, second = _load_edit(a.folder, line.result), _load_edit(b.folder, others[line.result.key])
        if isinstance(first, Edit) and isinstance(second, Edit):
            first, second = _for_judge(first, area), _for_judge(second, area)
            pairs.append(EditPair(first.id, first.instruction, first.source, first.edited, second.edited))
    return pairs


def read_image(folder: Path, image: str) -> Pixels:
    """An image of a line, uint8[h, w, 3]. Raises InputError."""
    return np.asarray(open_image(folder / image).rgb)


def _load_edit(folder: Path, result: EditResult) -> Edit | str:
    """The edit with its images, or why they can't be read."""
    try:
        source = read_image(folder, result.original_image)
        edited = read_image(folder, result.edited_image) if result.edited_image else None
        target = read_image(folder, result.gt_edited_image) if result.gt_edited_image else None
    except EarlError as error:
        return str(error)
    return Edit(result.id, result.edit_instruction, source, edited, target)


def _scored(result: EditResult, edit: Edit, judgement: Score | None, scoring: Scoring) -> ScoredResult:
    scores: dict[str, float] = {}
    missing: dict[str, str] = {}
    explanations: Mapping[str, str] = {}
    if judgement is not None:
        scores |= {NAMES.get(part, part): value for part, value in judgement.parts.items()}
        unanswered = {
            task: why for task, why in judgement.missing.items() if task != "ground_score" or edit.target is not None
        }
        missing |= {name: why for task, why in unanswered.items() for name in JUDGED[task]}
        explanations = judgement.explanations
    if edit.target is not None:
        reference = reference_reward([edit])[0]
        if reference.value is not None:
            scores["reference"] = reference.value
        if edit.edited is None:
            missing |= dict.fromkeys(scoring.metrics, NO_EDIT)
        else:
            scores |= measure(edit.edited, edit.target, scoring.metrics)
    return ScoredResult(result, scores, missing, explanations)


def _unreadable(result: EditResult, why: str, scoring: Scoring) -> ScoredResult:
    """A line whose images are gone: everything is missing."""
    tasks = [task for task in JUDGED if task != "ground_score" or scoring.ground_score] if scoring.judge else []
    names = [name for task in tasks for name in JUDGED[task]]
    names += ["reference", *scoring.metrics] if result.gt_edited_image else []
    return ScoredResult(result, {}, dict.fromkeys(names, why))


def _for_judge(edit: Edit, area: int | None) -> Edit:
    """The edit as the judge sees it: all its images have the source's number of pixels, ``area`` at most."""
    pixels = edit.source.shape[0] * edit.source.shape[1]
    area = min(pixels, area or pixels)
    return replace(
        edit,
        source=_resized(edit.source, area),
        edited=None if edit.edited is None else _resized(edit.edited, area),
        target=None if edit.target is None else _resized(edit.target, area),
    )


def _resized(pixels: Pixels, area: int) -> Pixels:
    """The image in its own shape at about ``area`` pixels."""
    height, width = pixels.shape[:2]
    scale = (area / (height * width)) ** 0.5
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
