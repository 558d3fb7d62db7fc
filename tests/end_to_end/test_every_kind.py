"""What the embedded model does to photos of every sort and shape, at full size: each kind of edit does what it says and
nothing else.

The short part runs with `make test`, all photos, kinds and seeds with `make test-full`. A sheet for each kind to look
at is left in the folder ``EARL_SHEETS``.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from edits import COLOURS, PLACES, SHAPE_RADIUS
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

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
from earl_cli.images.arrays import connected_regions
from earl_cli.models.bundle import load_model

pytestmark = pytest.mark.slow
PHOTOS = Path(__file__).parents[2] / "docs" / "photos"
SET = Path(str(files("earl_cli.evaluation") / "embedded_set"))
Pixels = NDArray[np.float64]


def photo(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def in_shape(image: Image.Image, ratio: float, longer: int) -> Image.Image:
    """The middle of a photo in the shape ``ratio`` (width to height), its longer side as given."""
    width, height = min(image.width, image.height * ratio), min(image.height, image.width / ratio)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    scale = longer / max(width, height)
    size = (round(width * scale), round(height * scale))
    return image.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))


def page() -> Image.Image:
    """A sheet of text."""
    image = Image.new("RGB", (620, 877), (250, 248, 242))
    canvas, rng = ImageDraw.Draw(image), np.random.default_rng(3)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "box"]
    for line in range(28):
        canvas.text((60, 50 + 28 * line), " ".join(rng.choice(words, 9)), fill=(30, 30, 34), font_size=18)
    return image


SCENES: dict[str, Callable[[], Image.Image]] = {
    "flat sky": lambda: photo(SET / "kite.webp"),
    "texture": lambda: photo(PHOTOS / "palace.jpg"),
    "portrait": lambda: photo(SET / "astronaut.webp"),
    "saturated": lambda: photo(SET / "flower.webp"),
    "grey": lambda: photo(SET / "astronaut.webp").convert("L").convert("RGB"),
    "night": lambda: photo(PHOTOS / "rocket.jpg"),
    "page": page,
    "9:20": lambda: in_shape(photo(PHOTOS / "palace.jpg"), 9 / 20, 1400),
    "portrait 9:20": lambda: in_shape(photo(SET / "astronaut.webp"), 9 / 20, 1000),
    "20:9": lambda: in_shape(photo(PHOTOS / "coffee.jpg"), 20 / 9, 1400),
    "1:1": lambda: in_shape(photo(PHOTOS / "cat.jpg"), 1, 600),
    "21:9": lambda: in_shape(photo(SET / "water.webp"), 21 / 9, 1200),
}
KINDS = {
    "snow": "make it snowy",
    "rain": "make it rainy",
    "fog": "make it foggy",
    "night": "make it night",
    "sunset": "make it a sunset",
    "black and white": "make it black and white",
    "sepia": "make it sepia",
    "negative": "make it a negative",
    "brighter": "make it brighter",
    "darker": "make it darker",
    "warmer": "make it warmer",
    "cooler": "make it cooler",
    "contrast": "add contrast",
    "vivid": "make it vivid",
    "tint": "give it a red tint",
    "blur": "make it blurry",
    "mirror": "mirror it",
    "circle": "add a red circle in the middle",
    "blue circle": "add a blue circle in the top left",
    "yellow circle": "add a yellow circle on the right",
}
CIRCLES = {"circle": ("red", "in the middle"), "blue circle": ("blue", "in the top left")} | {
    "yellow circle": ("yellow", "on the right")
}
NOTHING_TO_DO = {("grey", "vivid"), ("page", "vivid")}
SHORT = {  # with every run: what went wrong once
    "9:20": ("snow", "night", "warmer", "circle"),
    "21:9": ("sunset", "blue circle"),
    "saturated": ("black and white", "yellow circle", "blur"),
    "grey": ("brighter", "black and white"),
    "page": ("blur", "mirror"),
    "night": ("blur", "mirror", "fog"),
}
ALWAYS = {(scene, kind, 0) for scene, kinds in SHORT.items() for kind in kinds}
CASES = [
    pytest.param(case, marks=[] if case in ALWAYS else pytest.mark.full, id=" · ".join(map(str, case)))
    for case in product(SCENES, KINDS, range(3))
]


@dataclass(frozen=True, eq=False)
class Case:
    source: Image.Image
    edited: Image.Image
    drawn: Image.Image
    problem: str | None


@cache
def scene(name: str) -> Image.Image:
    return SCENES[name]()


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> dict[tuple[str, str, int], Case]:
    """All that were chosen, sampled in one batch, as ``earl edit`` does it with the model's own settings."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]
    model = load_model()
    engine = TransformersEngine(model.language, model.layout)
    jobs = [EditJob(scene(name), KINDS[kind], (seed,)) for name, kind, seed in chosen]
    found: dict[tuple[str, str, int], Case] = {}

    def take(number: int, drafts: list[SampledEdit]) -> None:
        source, before = jobs[number].image, decode_image(model, drafts[0].source)
        edited = render_edit(model, source, before, drafts[0], "source")
        generated = render_edit(model, source, before, drafts[0], "model").image
        found[chosen[number]] = Case(source, edited.image, generated, edited.problem)

    sample_edits(model, engine, jobs, EditSettings(model.sampling), on_sampled=take)
    missed = [case for case in chosen if case[1] in CIRCLES and found[case].problem]
    assert len(missed) <= 0.05 * sum(kind in CIRCLES for _, kind, _ in chosen), missed
    if os.environ.get("EARL_SHEETS"):
        write_sheets(found, Path(os.environ["EARL_SHEETS"]))
    return found


def write_sheets(found: dict[tuple[str, str, int], Case], folder: Path) -> None:
    """For each kind the photos as they were, as the model drew them, and as they came out."""
    folder.mkdir(parents=True, exist_ok=True)

    def tile(image: Image.Image) -> Image.Image:
        square = Image.new("RGB", (420, 420), "white")
        scale = 420 / max(image.size)
        square.paste(image.resize((round(image.width * scale), round(image.height * scale))), (0, 0))
        return square

    for kind in {kind for _, kind, _ in found}:
        tiles = [
            tile(image)
            for (_, other, seed), case in sorted(found.items())
            if other == kind and seed == 0
            for image in (case.source, case.drawn.resize(case.source.size), case.edited)
        ]
        contact_sheet(tiles, 6).save(folder / f"{kind.replace(' ', '-')}.jpg", quality=90)


def values(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float64) / 255


def light(pixels: Pixels) -> Pixels:
    weights = np.array([0.299, 0.587, 0.114])
    found: Pixels = pixels @ weights
    return found


def warmth(pixels: Pixels) -> float:
    return float((pixels[..., 0] - pixels[..., 2]).mean())


def chroma(pixels: Pixels) -> float:
    return float(np.ptp(pixels, axis=-1).mean())


def detail(pixels: Pixels) -> float:
    """Mean square of differences between neighbours."""
    return float((np.diff(pixels, axis=0) ** 2).mean() + (np.diff(pixels, axis=1) ** 2).mean())


def left_over(source: Pixels, edited: Pixels, side: int = 24) -> float:
    """The worst window's rest, RMS, that no change of the photo's own colours explains: what was put on or taken away.

    In every window the edit's colours are fitted by a polynomial of second degree in the photo's colours there.
    """
    height, width = (edge // side * side for edge in source.shape[:2])

    def windows(pixels: Pixels) -> Pixels:
        tiles = pixels[:height, :width].reshape(height // side, side, width // side, side, 3)
        return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, side * side, 3)

    before, after = windows(source), windows(edited)
    squares = np.concatenate([before**2, before * np.roll(before, 1, axis=-1)], axis=-1)
    features = np.concatenate([np.ones_like(before[..., :1]), before, squares], axis=-1)
    gram = np.einsum("npi,npj->nij", features, features) + 1e-4 * np.eye(features.shape[-1])
    weights = np.linalg.solve(gram, np.einsum("npi,npj->nij", features, after))
    rest: Pixels = np.sqrt(((after - features @ weights) ** 2).mean(axis=(1, 2)))
    return float(rest.max())


@pytest.mark.parametrize("case", CASES)
def test_the_edit_is_done_and_nothing_else(cases: dict, case: tuple[str, str, int]) -> None:
    name, kind, _ = case
    made = cases[case]
    if made.problem is not None:  # said aloud, and then nothing is done in its place
        assert made.edited.tobytes() == made.source.tobytes()
        assert (name, kind) in NOTHING_TO_DO or kind in CIRCLES
        return
    assert made.edited.size == made.source.size
    source, edited = values(made.source), values(made.edited)
    if kind in CIRCLES:
        check_circle(source, edited, *CIRCLES[kind])
    elif kind == "mirror":
        assert np.array_equal(edited, source[:, ::-1])
    elif kind == "blur":
        assert detail(edited) < 0.1 * detail(source)
        soft = made.source.filter(ImageFilter.GaussianBlur(0.045 * min(made.source.size)))
        assert np.abs(edited - values(soft)).mean() < 0.04
    else:
        assert left_over(source, edited) < 16 / 255
        check_colours(kind, name, source, edited)


def check_colours(kind: str, name: str, source: Pixels, edited: Pixels) -> None:
    """That the colours went where the instruction says."""
    before, after = light(source).mean(), light(edited).mean()
    contrast = light(edited).std() / light(source).std()
    coloured = name not in ("grey", "page")
    if kind == "black and white":
        assert np.ptp(edited, axis=-1).max() <= 2 / 255
        assert abs(after - before) < 0.08
    elif kind == "sepia":
        assert 0.05 < warmth(edited) < 0.45
    elif kind == "negative":
        assert np.corrcoef(light(source).ravel(), light(edited).ravel())[0, 1] < -0.9
    elif kind in ("brighter", "snow"):
        assert after > before
        assert kind == "brighter" or contrast < 0.9
    elif kind in ("fog", "rain"):  # towards a grey: dark photos become paler
        assert contrast < 0.8
        assert abs(after - (0.8 if kind == "fog" else 0.4)) < abs(before - (0.8 if kind == "fog" else 0.4)) + 0.03
    elif kind in ("darker", "night"):
        assert after < before + (0.03 if name == "night" else -0.02)
    elif kind in ("warmer", "sunset", "tint"):
        assert warmth(edited) > warmth(source)
    elif kind == "cooler":
        assert warmth(edited) < warmth(source)
    elif kind == "contrast":
        assert contrast > 1 or name == "page"
    elif kind == "vivid":
        assert chroma(edited) > chroma(source) or not coloured
    if name == "grey" and kind in ("brighter", "darker", "contrast", "vivid", "negative"):
        assert np.ptp(edited, axis=-1).max() <= 2 / 255


def check_circle(source: Pixels, edited: Pixels, color: str, place: str) -> None:
    """One disc of this colour at this place, and the rest of the photo as it was."""
    height, width = source.shape[:2]
    changed = np.abs(edited - source).max(axis=-1) > 2 / 255
    rows, columns = np.nonzero(changed)
    assert rows.size, "no circle"
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    across, down, short = right - left, bottom - top, min(height, width)
    assert abs(across - down) <= 0.08 * across + 2, "not round"
    assert 0.7 * SHAPE_RADIUS < across / 2 / short < 1.5 * SHAPE_RADIUS
    x, y = PLACES[place]
    assert abs((left + right) / 2 / width - x) < 0.12
    assert abs((top + bottom) / 2 / height - y) < 0.12
    y_grid, x_grid = np.mgrid[:height, :width]
    reach = np.hypot(x_grid + 0.5 - (left + right) / 2, y_grid + 0.5 - (top + bottom) / 2)
    inside = edited[reach < 0.9 * across / 2]
    assert inside.std(axis=0).max() < 1 / 255, "not of one colour"
    paint = inside.mean(axis=0)
    hue, saturation, _ = colorsys.rgb_to_hsv(*paint)
    wanted = colorsys.rgb_to_hsv(*COLOURS[color])[0]
    assert abs((hue - wanted + 0.5) % 1 - 0.5) < 15 / 360
    assert saturation > 0.5
    assert len(np.unique(connected_regions(changed[::4, ::4]))) <= 2, "more than one"
