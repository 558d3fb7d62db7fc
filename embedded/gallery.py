"""The pictures in docs/gallery: every ability of the embedded model on the photos in docs/photos, seed 0, none picked.

``python embedded/gallery.py`` needs the packaged model and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from earl_cli.generation.editing import EditSettings, Job, decoded, draft, render, sheet
from earl_cli.generation.engine import Sampling
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.images.picture import open_picture
from earl_cli.models.abilities import examples
from earl_cli.models.bundle import load_model

DOCS = Path(__file__).parent.parent / "docs"
WIDTH = 320
CAPTION = 20


def captioned(image: Image.Image, text: str) -> Image.Image:
    small = image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (WIDTH, small.height + CAPTION), "white")
    tile.paste(small, (0, CAPTION))
    ImageDraw.Draw(tile).text((2, 3), text, fill="black", font_size=14)
    return tile


def draw_gallery() -> None:
    model = load_model(device="cpu")
    engine = TransformersEngine(model.language, model.layout)
    sampling = Sampling(**(model.sampling or {}))
    folder = DOCS / "gallery"
    folder.mkdir(exist_ok=True)
    for path in sorted((DOCS / "photos").glob("*.jpg")):
        picture = open_picture(path)
        tiles = [captioned(picture.rgb, "the photo")]
        for instruction in examples(model.abilities or {"kinds": {}}):
            variant = draft(model, engine, [Job(picture.rgb, instruction, (0,))], EditSettings(sampling))[0][0]
            edited = render(model, picture.rgb, decoded(model, variant.source), variant, "source")
            tiles.append(captioned(edited, instruction))
            if path.stem == "palace" and "snowy" in instruction:
                sheet([picture.rgb, edited], 2).save(folder / "snow.jpg", quality=88)
        sheet(tiles, 4).save(folder / f"{path.stem}.jpg", quality=74)


if __name__ == "__main__":
    draw_gallery()
