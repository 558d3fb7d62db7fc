"""Photo pairs for the embedded model: random crops and collages of photos, each with several edits.

``python embedded/pairs.py WORK SET SOURCES EDITS`` writes WORK/pairs/SET: images and pairs.jsonl, the layout that
``earl tokenize`` reads; `SETS` says which photos, edits and phrases a set is made of. The same arguments give the same
files.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from complex_edits import complex_catalogue
from edits import Edit, Pixels, catalogue, saturate, to_bytes
from PIL import Image

from earl_cli.images.resize import resize_to_area

AREA = 96 * 96
GRIDS = (
    (9, 16),
    (10, 15),
    (10, 14),
    (11, 13),
    (12, 12),
    (13, 11),
    (14, 10),
    (15, 10),
    (16, 9),
)  # of codes
RATIOS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16)
USUAL_WEIGHTS = {"mirror": 2.5, "circle": 3.0, "square": 3.0, "tint": 2.0, "negative": 1.5, "snow": 1.3}
PLACES_WEIGHTS = {"mirror": 1000.0, "circle": 1000.0, "square": 1000.0, "blur": 3.0}


@dataclass(frozen=True, eq=False)
class Set:
    """What a set of pairs is made of.

    ``weights`` says how often a kind is drawn (1 without it; what is hard to learn is drawn more often), ``phrases`` in
    which of an edit's wordings are used, ``group`` what a row's kind is called.
    """

    edits: Callable[[], tuple[Edit, ...]]
    weights: Mapping[str, float] = field(default_factory=dict)
    heldout: bool = False
    phrases: Callable[[Edit], tuple[str, ...]] = lambda edit: edit.phrases
    group: Callable[[Edit], str] = lambda edit: edit.kind


def simple_or_complex() -> tuple[Edit, ...]:
    return (*catalogue(), *complex_catalogue())


def column(edit: Edit) -> str:
    """The column of the miniature's table in which an edit counts."""
    simple = {"circle": "object", "square": "object"}
    return edit.kind if edit.kind in COMPLEX else simple.get(edit.kind, "global")


COMPLEX = ("count", "place", "relation", "two edits")
SETS = {
    "train": Set(catalogue, USUAL_WEIGHTS),
    "places": Set(catalogue, PLACES_WEIGHTS),  # edits that depend on where something is
    "heldout": Set(catalogue, USUAL_WEIGHTS, heldout=True),
    "simple": Set(catalogue, USUAL_WEIGHTS),
    "complex": Set(complex_catalogue),
    "validation": Set(simple_or_complex, phrases=lambda edit: edit.unseen, group=column),
    "test": Set(simple_or_complex, heldout=True, phrases=lambda edit: edit.unseen, group=column),
}


@cache
def photographs(work: Path, split: str) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((work / "photos" / split).glob("*.png"))]


@cache
def stickers(work: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGBA") for path in sorted((work / "objects").glob("*.png"))]


def crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part, 45 to 100 % of what fits, in one of the usual aspect ratios, at four times the model's area."""
    ratio = RATIOS[rng.integers(len(RATIOS))] * np.exp(rng.normal(0, 0.03))
    share = rng.uniform(0.45, 1.0)
    width = min(photo.width, photo.height * ratio) * share
    height = width / ratio
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    size = (max(8, round(np.sqrt(4 * AREA * ratio))), max(8, round(np.sqrt(4 * AREA / ratio))))
    return photo.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height), reducing_gap=3.0)


def scene(rng: np.random.Generator) -> Image.Image:
    """A synthetic image: a gradient between four random colours with a little texture."""
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    return Image.blend(
        corners.resize((320, 320), Image.Resampling.BICUBIC),
        noise.resize((320, 320), Image.Resampling.BICUBIC),
        rng.uniform(0.0, 0.5),
    )


def source_image(work: Path, chosen: Set, rng: np.random.Generator) -> Pixels:
    """One source ``float32[H, W, 3]``: a crop, perhaps mirrored, graded, or with objects stuck on."""
    trained = not chosen.heldout
    photos = photographs(work, "train" if trained else "heldout")
    image = crop(scene(rng) if rng.random() < 0.04 else photos[rng.integers(len(photos))], rng)
    if trained and rng.random() < 0.25:
        objects = stickers(work)
        for _ in range(rng.integers(1, 4)):
            thing = objects[rng.integers(len(objects))].copy()
            side = int(rng.uniform(0.2, 0.6) * min(image.size))
            thing.thumbnail((side, side))
            image.paste(
                thing, (int(rng.uniform(-0.1, 0.9) * image.width), int(rng.uniform(-0.1, 0.9) * image.height)), thing
            )
    pixels = np.asarray(image, dtype=np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if trained and rng.random() < 0.5:
        pixels = saturate(pixels, rng.uniform(0.6, 1.4)) * rng.uniform(0.85, 1.15, 3).astype(np.float32)
        pixels = np.clip(pixels, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.2)))
    return np.clip(pixels, 0, 1).astype(np.float32)


def draw_edits(chosen: Set, count: int, rng: np.random.Generator) -> list[Edit]:
    """``count`` edits of different groups by the groups' weights; within a group all are equally likely."""
    groups = grouped(chosen)
    names = sorted(groups)
    weights = np.array([chosen.weights.get(name, 1.0) for name in names])
    sampled = rng.choice(len(names), count, p=weights / weights.sum(), replace=False)
    return [groups[names[k]][rng.integers(len(groups[names[k]]))] for k in sampled]


@cache
def grouped(chosen: Set) -> dict[str, list[Edit]]:
    groups: dict[str, list[Edit]] = {}
    for edit in chosen.edits():
        groups.setdefault(chosen.group(edit), []).append(edit)
    return groups


def write_one(task: tuple[Path, str, int, int]) -> list[dict[str, str]]:
    work, name, index, count = task
    chosen = SETS[name]
    rng = np.random.default_rng((sum(name.encode()), index))
    folder = work / "pairs" / name
    pixels = source_image(work, chosen, rng)
    rows = []

    def save(image: Pixels, file: str) -> None:
        resize_to_area(Image.fromarray(to_bytes(image)), AREA, grids=GRIDS).save(folder / file, compress_level=1)

    save(pixels, f"source/{index:05d}.png")
    for number, edit in enumerate(draw_edits(chosen, count, rng)):
        edited = f"edited/{index:05d}-{number}.png"
        save(edit.apply(pixels, rng), edited)
        phrases = chosen.phrases(edit)
        phrase = phrases[rng.integers(len(phrases))]
        if rng.random() < 0.3:
            phrase = phrase[0].upper() + phrase[1:] + ("." if rng.random() < 0.5 else "")
        row = {"id": f"{name}-{index:05d}-{number}", "source": f"source/{index:05d}.png", "edited": edited}
        rows.append(row | {"instruction": phrase, "kind": chosen.group(edit), "plan": edit.plan})
    return rows


def write_pairs(work: Path, name: str, sources: int, edits: int) -> None:
    folder = work / "pairs" / name
    for part in ("source", "edited"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool() as pool:
        batches = pool.map(write_one, [(work, name, index, edits) for index in range(sources)], chunksize=16)
    lines = [json.dumps(row) for batch in batches for row in batch]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} pairs of {sources} pictures in {folder}")


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
