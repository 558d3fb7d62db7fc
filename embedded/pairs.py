"""Photo pairs for the embedded model: random crops and collages of the training photos, each with several edits.

``python embedded/pairs.py WORK SET SOURCES EDITS`` writes WORK/pairs/SET: pictures and pairs.jsonl, the layout that
``earl tokenize`` reads. The set heldout is made of held-out photos, any other of training photos; the set places is
about edits that need to know where they are. The same arguments give the same files.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from functools import cache
from pathlib import Path

import numpy as np
from edits import USUAL_WEIGHTS, WEIGHTS, Edit, Pixels, catalogue, saturate, to_bytes
from PIL import Image

from earl_cli.images.area import resize_to_area

AREA = 96 * 96
RATIOS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16)


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
    """A synthetic picture: a gradient between four random colours with a little texture."""
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    return Image.blend(
        corners.resize((320, 320), Image.Resampling.BICUBIC),
        noise.resize((320, 320), Image.Resampling.BICUBIC),
        rng.uniform(0.0, 0.5),
    )


def source_picture(work: Path, split: str, rng: np.random.Generator) -> Pixels:
    """One source ``float32[H, W, 3]``: a crop, perhaps mirrored, graded, or with objects stuck on."""
    trained = split != "heldout"
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


def draw_edits(edits: tuple[Edit, ...], split: str, count: int, rng: np.random.Generator) -> list[Edit]:
    """``count`` edits by the weights of their kinds; within a kind all are equally likely."""
    kinds = sorted({edit.kind for edit in edits})
    weights = np.array([WEIGHTS.get(split, USUAL_WEIGHTS).get(kind, 1.0) for kind in kinds])
    chosen = rng.choice(len(kinds), count, p=weights / weights.sum(), replace=False)
    by_kind = {kind: [edit for edit in edits if edit.kind == kind] for kind in kinds}
    return [by_kind[kinds[k]][rng.integers(len(by_kind[kinds[k]]))] for k in chosen]


def write_one(task: tuple[Path, str, int, int]) -> list[dict[str, str]]:
    work, split, index, count = task
    rng = np.random.default_rng((sum(split.encode()), index))
    folder = work / "pairs" / split
    pixels = source_picture(work, split, rng)
    rows = []

    def save(picture: Pixels, name: str) -> None:
        resize_to_area(Image.fromarray(to_bytes(picture)), AREA).save(folder / name, compress_level=1)

    save(pixels, f"source/{index:05d}.png")
    for number, edit in enumerate(draw_edits(catalogue_once(), split, count, rng)):
        name = f"edited/{index:05d}-{number}.png"
        save(edit.apply(pixels, rng), name)
        phrase = edit.phrases[rng.integers(len(edit.phrases))]
        if rng.random() < 0.3:
            phrase = phrase[0].upper() + phrase[1:] + ("." if rng.random() < 0.5 else "")
        row = {"id": f"{split}-{index:05d}-{number}", "source": f"source/{index:05d}.png", "edited": name}
        rows.append(row | {"instruction": phrase, "kind": edit.kind})
    return rows


@cache
def catalogue_once() -> tuple[Edit, ...]:
    return catalogue()


def write_pairs(work: Path, split: str, sources: int, edits: int) -> None:
    folder = work / "pairs" / split
    for part in ("source", "edited"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool() as pool:
        batches = pool.map(write_one, [(work, split, index, edits) for index in range(sources)], chunksize=16)
    lines = [json.dumps(row) for batch in batches for row in batch]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} pairs of {sources} pictures in {folder}")


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
