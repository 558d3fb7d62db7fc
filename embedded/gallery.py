"""The images in docs/gallery, none of them picked: every ability of the embedded model on photos that it never saw.

``python embedded/gallery.py`` needs the packaged model and nothing else. It draws a sheet for each kind of edit, with
the 8 photos of the embedded benchmark before and after, and one with all kinds for each photo in docs/photos; seed 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from edits import Edit, catalogue
from PIL import Image, ImageDraw, ImageOps

import earl_cli.evaluation
from earl_cli.generation.editing import (
    EditJob,
    EditSettings,
    SampledEdit,
    contact_sheet,
    decode_image,
    render_edit,
    sample_edits,
)
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.images.image_file import open_image
from earl_cli.models.abilities import examples
from earl_cli.models.bundle import EarlModel, load_model

DOCS = Path(__file__).parent.parent / "docs"
BENCHMARK = Path(earl_cli.evaluation.__file__).parent / "embedded_set"
PHOTOS = ("astronaut", "cat", "coffee", "flower", "kite", "palace", "rocket", "water")
WIDTH, HALF_WIDTH = 320, 200
CAPTION = 20


def captioned(images: Sequence[Image.Image], text: str, width: int) -> Image.Image:
    """Images beside each other, each in a cell so wide and three quarters as high, under a line of text."""
    cell = (width, width * 3 // 4)
    tile = Image.new("RGB", (width * len(images), cell[1] + CAPTION), "white")
    for place, each in enumerate(images):
        tile.paste(ImageOps.pad(each, cell, Image.Resampling.LANCZOS, "white"), (place * width, CAPTION))
    ImageDraw.Draw(tile).text((2, 3), text, fill="black", font_size=14)
    return tile


def edited(model: EarlModel, engine: TransformersEngine, jobs: Sequence[tuple[Image.Image, str]]) -> list[Image.Image]:
    """Each photo edited by its instruction, at its own size, with seed 0."""
    settings = EditSettings(model.sampling)
    drafts: list[list[SampledEdit]] = sample_edits(
        model, engine, [EditJob(photo, requested, (0,)) for photo, requested in jobs], settings
    )
    return [
        render_edit(model, photo, decode_image(model, variant.source), variant, "source").image
        for (photo, _), (variant,) in zip(jobs, drafts, strict=True)
    ]


def by_photo(model: EarlModel, engine: TransformersEngine, folder: Path) -> None:
    for path in sorted((DOCS / "photos").glob("*.jpg")):
        photo = open_image(path).rgb
        requested = examples(model.abilities or {"kinds": {}})
        found = edited(model, engine, [(photo, each) for each in requested])
        tiles = [captioned([image], text, WIDTH) for image, text in zip(found, requested, strict=True)]
        contact_sheet([captioned([photo], "the photo", WIDTH), *tiles], 4).save(folder / f"{path.stem}.jpg", quality=74)
        if path.stem == "palace":
            snowy = next(image for image, text in zip(found, requested, strict=True) if "snowy" in text)
            contact_sheet([photo, snowy], 2).save(folder / "snow.jpg", quality=88)


def by_kind(model: EarlModel, engine: TransformersEngine, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    kinds: dict[str, list[Edit]] = {}
    for edit in catalogue():
        if edit.kind in (model.abilities or {})["kinds"]:
            kinds.setdefault(edit.kind, []).append(edit)
    photos = [open_image(BENCHMARK / f"{name}.webp").rgb for name in PHOTOS]
    for number, (kind, edits) in enumerate(kinds.items()):
        rng = np.random.default_rng((0, number))
        chosen = [edits[rng.integers(len(edits))] for _ in photos]
        requested = [edit.phrases[rng.integers(len(edit.phrases))] for edit in chosen]
        afters = edited(model, engine, list(zip(photos, requested, strict=True)))
        rows = zip(photos, afters, requested, strict=True)
        tiles = [captioned([photo, after], text, HALF_WIDTH) for photo, after, text in rows]
        contact_sheet(tiles, 4).save(folder / f"{kind.replace(' ', '-')}.jpg", quality=72)
        print(kind, flush=True)


if __name__ == "__main__":
    packaged = load_model(device="cpu")
    sampler = TransformersEngine(packaged.language, packaged.layout)
    by_kind(packaged, sampler, DOCS / "gallery" / "kinds")
    by_photo(packaged, sampler, DOCS / "gallery")
