"""What an iteration sampled, to be read and to be looked at: a table of all episodes, and a page of some edits."""

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
        ("reward", pa.float64()),  # null where it could not be had
        ("advantage", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
        ("reason", pa.string()),
        ("finished", pa.bool_()),
        ("problem", pa.string()),
        ("thoughts", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
        ("logprob", pa.float64()),  # of the whole completion, as it was sampled
    ]
)


def write_rollouts(path: Path, step: int, rows: DatasetRows, groups: Sequence[ScoredGroup]) -> None:
    """All episodes of an iteration as Parquet, a row each. Raises OutputError if the disk doesn't take them."""
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
            "problem": answer.problem,
            "thoughts": answer.thoughts,
            "prompt_tokens": len(group.rollout.request.prompt),
            "tokens": completion.ids.astype(np.int32),
            "logprob": float(completion.logprobs.sum()),
        }
        for group in groups
        for seed, completion, answer, finished, score, advantage in zip(
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
    with writing("the episodes", path), atomic_write(path) as aside:
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
    """A page of the best, the middle and the worst edits by reward, about ``count`` in all; OutputError as above."""
    places = [
        (score.value, group, place)
        for group in groups
        for place, score in enumerate(group.scores)
        if score.value is not None
    ]
    places.sort(key=lambda each: -each[0])
    entries = []
    for name, (_, group, place) in _chosen(places, count):
        rollout, score = group.rollout, group.scores[place]
        codes: list[NDArray[np.integer] | None] = [
            rows.source(rollout.row),
            rollout.parsed[place].codes,
            rows.target(rollout.row),
        ]
        pictures = zip(decode_images(vision, codes), ("source", "drawn", "target"), strict=True)
        figures = [ImageFigure(picture, caption) for picture, caption in pictures if picture is not None]
        advantage = group.advantages[place]
        texts = [("instruction", rows.instruction(rollout.row)), ("reward", f"{score.value:.3f}")]
        texts += [("advantage", f"{advantage:+.2f}")] if not math.isnan(advantage) and len(group.scores) > 1 else []
        texts += [(part.replace("_", " "), f"{value:.3f}") for part, value in score.parts.items()]
        texts += [("reason", score.reason)] if score.reason else []
        texts += [("thinking", thoughts)] if (thoughts := rollout.parsed[place].thoughts) else []
        texts += [("problem", problem)] if (problem := rollout.parsed[place].problem) else []
        entries.append(Entry(f"{name} · {rows.id(rollout.row)}", figures, texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing("the gallery", path):
        write_page(path, page(title, list(notes), entries))


def _chosen(
    places: Sequence[tuple[float, ScoredGroup, int]], count: int
) -> list[tuple[str, tuple[float, ScoredGroup, int]]]:
    """Of places from the best to the worst: a third from each end, a third from the middle; none twice."""
    if len(places) <= count:
        return [("edit", place) for place in places]
    third = max(1, count // 3)
    middle = (len(places) - third) // 2
    parts = (("best", places[:third]), ("median", places[middle : middle + third]), ("worst", places[-third:]))
    return [(name, place) for name, part in parts for place in part]
