"""The rollouts of an iteration on disk: a table of all of them, and a gallery of some edits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from earl_cli.data.batches import DatasetRows
from earl_cli.files import atomic_write
from earl_cli.images.html_gallery import Entry, ImageFigure, page, write_page
from earl_cli.training.common.checkpoints import writing
from earl_cli.training.rl.rollouts import ScoredGroup, decode_images

if TYPE_CHECKING:
    from transformers import Emu3VQVAE

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("id", pa.string()),
        ("instruction", pa.string()),
        ("seed", pa.uint64()),
        ("reward", pa.float64()),  # null if it is missing
        ("advantage", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
        ("reason", pa.string()),
        ("finished", pa.bool_()),
        ("problem", pa.string()),
        ("thoughts", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
        ("logprob", pa.float64()),  # of the whole completion, under the sampler
    ]
)


def write_rollouts(path: Path, step: int, rows: DatasetRows, groups: Sequence[ScoredGroup]) -> None:
    """Write the completions of an iteration as Parquet, a row each. Raises OutputError if they can't be written."""
    found = [
        {
            "step": step,
            "id": rows.id(group.rollout.row),
            "instruction": rows.instruction(group.rollout.row),
            "seed": seed,
            "reward": score.value,
            "advantage": None if math.isnan(advantage) else float(advantage),
            "parts": list(score.parts.items()),
            "reason": score.reason,
            "finished": finished,
            "problem": parsed.problem,
            "thoughts": parsed.thoughts,
            "prompt_tokens": len(group.rollout.request.prompt),
            "tokens": completion.ids.astype(np.int32),
            "logprob": float(completion.logprobs.sum()),
        }
        for group in groups
        for seed, completion, parsed, finished, score, advantage in zip(
            group.rollout.request.seeds,
            group.rollout.completions,
            group.rollout.parsed,
            group.rollout.finished,
            group.scores,
            group.advantages,
            strict=True,
        )
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing("the rollouts", path), atomic_write(path) as aside:
        pq.write_table(pa.Table.from_pylist(found, SCHEMA), aside, compression="zstd")


def write_gallery(
    path: Path,
    title: str,
    vision: Emu3VQVAE,
    rows: DatasetRows,
    groups: Sequence[ScoredGroup],
    count: int,
    notes: Sequence[str],
) -> None:
    """Write a page of the best, median and worst edits by reward, about ``count`` in all.

    Raises OutputError if it can't be written.
    """
    ranked = [
        (score.value, group, index)
        for group in groups
        for index, score in enumerate(group.scores)
        if score.value is not None
    ]
    ranked.sort(key=lambda each: -each[0])
    entries = []
    for name, (_, group, index) in _chosen(ranked, count):
        rollout, score = group.rollout, group.scores[index]
        codes: list[NDArray[np.integer] | None] = [
            rows.source(rollout.row),
            rollout.parsed[index].codes,
            rows.target(rollout.row),
        ]
        images = zip(decode_images(vision, codes), ("source", "edit", "target"), strict=True)
        figures = [ImageFigure(image, caption) for image, caption in images if image is not None]
        advantage = group.advantages[index]
        texts = [("instruction", rows.instruction(rollout.row)), ("reward", f"{score.value:.3f}")]
        texts += [("advantage", f"{advantage:+.2f}")] if not math.isnan(advantage) and len(group.scores) > 1 else []
        texts += [(part.replace("_", " "), f"{value:.3f}") for part, value in score.parts.items()]
        texts += [("reason", score.reason)] if score.reason else []
        texts += [("thinking", thoughts)] if (thoughts := rollout.parsed[index].thoughts) else []
        texts += [("problem", problem)] if (problem := rollout.parsed[index].problem) else []
        entries.append(Entry(f"{name} · {rows.id(rollout.row)}", figures, texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing("the gallery", path):
        write_page(path, page(title, list(notes), entries))


def _chosen(
    ranked: Sequence[tuple[float, ScoredGroup, int]], count: int
) -> list[tuple[str, tuple[float, ScoredGroup, int]]]:
    """Of edits from best to worst: a third from each end and a third from the middle, without duplicates."""
    if len(ranked) <= count:
        return [("edit", each) for each in ranked]
    third = max(1, count // 3)
    middle = (len(ranked) - third) // 2
    parts = (("best", ranked[:third]), ("median", ranked[middle : middle + third]), ("worst", ranked[-third:]))
    return [(name, each) for name, part in parts for each in part]
