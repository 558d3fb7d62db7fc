"""The edits that the embedded model learns: what each does to an image, and how people ask for it.

An edit is a pure function of an RGB image ``float32[H, W, 3]`` in 0..1 and a random generator; sizes are shares of the
short side, so the same edit looks the same at 96 pixels and at full size. Only flakes and drops are random.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from earl_cli.models.abilities import expand_pattern

Pixels = NDArray[np.float32]
Apply = Callable[[Pixels, np.random.Generator], Pixels]

COLOURS = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.97, 0.86, 0.10),
    "orange": (0.97, 0.55, 0.08),
    "purple": (0.55, 0.15, 0.70),
    "pink": (0.97, 0.50, 0.70),
    "white": (0.98, 0.98, 0.98),
    "black": (0.04, 0.04, 0.04),
}
TINTS = ("red", "green", "blue", "yellow", "orange", "purple", "pink")
PLACES = {
    "in the middle": (0.5, 0.5),
    "in the top left": (0.22, 0.22),
    "in the top right": (0.78, 0.22),
    "in the bottom left": (0.22, 0.78),
    "in the bottom right": (0.78, 0.78),
    "on the left": (0.22, 0.5),
    "on the right": (0.78, 0.5),
    "at the top": (0.5, 0.22),
    "at the bottom": (0.5, 0.78),
}
PLACE_WORDS = {
    "in the middle": ("in the middle", "in the center", "in the centre"),
    "in the top left": ("in the top left", "in the upper left", "in the top left corner"),
    "in the top right": ("in the top right", "in the upper right", "in the top right corner"),
    "in the bottom left": ("in the bottom left", "in the lower left", "in the bottom left corner"),
    "in the bottom right": ("in the bottom right", "in the lower right", "in the bottom right corner"),
    "on the left": ("on the left", "on the left side"),
    "on the right": ("on the right", "on the right side"),
    "at the top": ("at the top",),
    "at the bottom": ("at the bottom",),
}
SHAPE_RADIUS = 0.16


def luma(pixels: Pixels) -> Pixels:
    """Brightness ``[H, W, 1]`` by the weights of ITU-R BT.601."""
    return (pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]


def saturate(pixels: Pixels, amount: float) -> Pixels:
    grey = luma(pixels)
    return grey + (pixels - grey) * np.float32(amount)


def colour(*rgb: float) -> Pixels:
    return np.array(rgb, dtype=np.float32)


def down(pixels: Pixels) -> Pixels:
    """Relative height ``[H, 1, 1]``: 0 at the top, 1 at the bottom."""
    return np.linspace(0, 1, pixels.shape[0], dtype=np.float32)[:, None, None]


def soft_mask(pixels: Pixels, draw: Callable[[ImageDraw.ImageDraw, float], None], blur: float = 0.0) -> Pixels:
    """A mask ``[H, W, 1]`` drawn at four times the size and averaged; ``draw`` gets the short side in its pixels."""
    height, width = pixels.shape[:2]
    canvas = Image.new("L", (width * 4, height * 4))
    short = 4.0 * min(height, width)
    draw(ImageDraw.Draw(canvas), short)
    if blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(blur * short))
    small = canvas.resize((width, height), Image.Resampling.BOX)
    return (np.asarray(small, dtype=np.float32) / 255)[..., None]


def snow(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    pale = 0.30 + 0.70 * saturate(pixels, 0.35) ** np.float32(0.8)
    white = pale + (1 - pale) * (0.15 + 0.45 * down(pixels)) * luma(pale)
    cool = white * colour(0.96, 0.99, 1.0)

    def flakes(draw: ImageDraw.ImageDraw, short: float) -> None:
        for _ in range(int(38 * height * width / min(height, width) ** 2)):
            x, y = rng.uniform(0, width * 4), rng.uniform(0, height * 4)
            radius = short * rng.uniform(0.010, 0.024)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(rng.uniform(170, 255)))

    mask = soft_mask(pixels, flakes, blur=0.004)
    return cool * (1 - mask) + mask


def rain(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    wet = (0.16 + 0.52 * saturate(pixels, 0.40)) * colour(0.88, 0.98, 1.12)

    def streaks(draw: ImageDraw.ImageDraw, short: float) -> None:
        for _ in range(int(45 * height * width / min(height, width) ** 2)):
            x, y = rng.uniform(-0.1, 1.1) * width * 4, rng.uniform(-0.1, 1.0) * height * 4
            length = short * rng.uniform(0.08, 0.17)
            draw.line(
                (x, y, x - 0.30 * length, y + length),
                fill=int(rng.uniform(110, 190)),
                width=max(1, round(short * 0.009)),
            )

    return wet + (0.88 - wet) * soft_mask(pixels, streaks, blur=0.002) * np.float32(0.8)


def fog(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    share = 0.82 - 0.30 * down(pixels)
    return saturate(pixels, 0.7) * (1 - share) + colour(0.80, 0.82, 0.84) * share


def night(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    dark = saturate(pixels, 0.45) ** np.float32(1.35)
    return dark * colour(0.26, 0.34, 0.58) + colour(0.01, 0.015, 0.05)


def sunset(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    height = down(pixels)
    glow = colour(1.0, 0.50, 0.16) * (1 - height) ** np.float32(0.8) + colour(0.62, 0.22, 0.30) * height
    return 0.60 * pixels * colour(1.05, 0.72, 0.60) + 0.42 * glow * (0.35 + 0.65 * luma(pixels))


def black_and_white(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return np.repeat(luma(pixels), 3, axis=2)


def sepia(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return luma(pixels) * colour(1.07, 0.86, 0.62) + colour(0.06, 0.03, 0.0)


def negative(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return 1 - pixels


def brighter(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels ** np.float32(0.62) * np.float32(1.06)


def darker(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels ** np.float32(1.25) * np.float32(0.66)


def warmer(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels * colour(1.16, 1.02, 0.72) + colour(0.05, 0.02, 0.0)


def cooler(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels * colour(0.74, 0.98, 1.14) + colour(0.0, 0.02, 0.06)


def contrast(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return (pixels - np.float32(0.47)) * np.float32(1.75) + np.float32(0.47)


def vivid(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return saturate(pixels, 2.1)


def blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    image = Image.fromarray(to_bytes(pixels))
    soft = image.filter(ImageFilter.GaussianBlur(0.05 * min(image.size)))
    return np.asarray(soft, dtype=np.float32) / 255


def mirror(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels[:, ::-1]


def tint(name: str) -> Apply:
    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return 0.55 * pixels + 0.45 * colour(*COLOURS[name]) * (0.35 + 0.75 * luma(pixels))

    return apply


def shape(kind: str, name: str, place: str) -> Apply:
    return shape_at(kind, name, PLACES[place], SHAPE_RADIUS)


def shape_at(kind: str, name: str, centre: tuple[float, float], radius: float) -> Apply:
    """A circle or square; its centre in shares of width and height, its radius in shares of the short side."""

    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        height, width = pixels.shape[:2]
        x, y = centre[0] * width * 4, centre[1] * height * 4

        def draw(canvas: ImageDraw.ImageDraw, short: float) -> None:
            reach = short * radius * (1.0 if kind == "circle" else 0.9)
            box = (x - reach, y - reach, x + reach, y + reach)
            (canvas.ellipse if kind == "circle" else canvas.rectangle)(box, fill=255)

        mask = soft_mask(pixels, draw)
        return pixels * (1 - mask) + colour(*COLOURS[name]) * mask

    return apply


def to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Edit:
    """One thing to do to an image: its kind (the row of the tables), the ways to ask for it, and the doing.

    ``but`` goes on after "the same photo but", ``plan`` says what is to be done where, as a model may think it first.
    """

    kind: str
    phrases: tuple[str, ...]
    apply: Apply
    but: str
    plan: str

    @property
    def unseen(self) -> tuple[str, ...]:
        """Ways to ask for it that nothing is ever trained on."""
        return tuple(pattern.format(self.but) for pattern in UNSEEN)


UNSEEN = ("the same photo but {}", "I would like it {}", "please let it be {}")


MAKE = "{make it|make the photo|make the picture|make this|turn it}"
GLOBAL: tuple[tuple[str, Apply, str, tuple[str, ...]], ...] = (
    ("snow", snow, "snowy", (MAKE + " snowy", "{add|put in} {|some|falling} snow", "make it snow", "let it snow", "make it {winter|look like winter}", "cover it {in|with} snow")),
    ("rain", rain, "rainy", (MAKE + " rainy", "{add|put in} {|some|falling} rain", "make it rain", "let it rain", "make it {a rainy day|look rainy}")),
    ("fog", fog, "foggy", (MAKE + " {foggy|misty|hazy}", "{add|put in} {|some} {fog|mist|haze}", "cover it in {fog|mist}")),
    ("night", night, "at night", (MAKE + " {night|nighttime}", "{change|turn} {it|the day} {to|into} night", "make it look like night", "set it at night")),
    ("sunset", sunset, "at sunset", ("make it {a sunset|sunset|look like sunset|look like a sunset}", "{add|put in} a sunset", "{change|turn} it {to|into} {sunset|a sunset}", "set it at {sunset|dusk}")),
    ("black and white", black_and_white, "black and white", (MAKE + " {black and white|grayscale|monochrome}", "{remove|take out} {the color|the colour|all color|all colour}", "convert it to {black and white|grayscale}")),
    ("sepia", sepia, "sepia", (MAKE + " {sepia|look old|look vintage}", "{add|apply} a {sepia tone|sepia filter|vintage look}", "make it an old photo")),
    ("negative", negative, "as a negative", (MAKE + " {a negative|negative}", "invert {it|the colors|the colours|the photo}", "make it a photo negative")),
    ("brighter", brighter, "brighter", (MAKE + " {brighter|lighter}", "brighten {it|the photo|the picture}", "increase the brightness", "{add|give it} more light")),
    ("darker", darker, "darker", (MAKE + " {darker|dimmer}", "darken {it|the photo|the picture}", "{decrease|reduce} the brightness")),
    ("warmer", warmer, "warmer", (MAKE + " warmer", "warm {it|the photo} up", "{add|give it} {warm colors|warm colours|a warm look|warm tones}", "make the {colors|colours} warmer")),
    ("cooler", cooler, "cooler", (MAKE + " {cooler|colder}", "cool {it|the photo} down", "{add|give it} {cool colors|cool colours|a cool look|cool tones}", "make the {colors|colours} {cooler|colder}")),
    ("contrast", contrast, "with more contrast", ("{add|give it} {|more|high} contrast", "{increase|raise|boost} the contrast", MAKE + " {more contrasty|high contrast}", "make the contrast stronger")),
    ("vivid", vivid, "more vivid", (MAKE + " {vivid|more vivid|colorful|colourful|more colorful|more colourful|vibrant|more vibrant}", "{increase|boost} the {saturation|colors|colours}", "make the {colors|colours} {stronger|vivid|pop}")),
    ("blur", blur, "blurry", (MAKE + " {blurry|blurred|out of focus}", "blur {it|the photo|the picture|the image}", "{add|apply} {blur|a blur}")),
    ("mirror", mirror, "mirrored", ("mirror {it|the photo|the picture|the image}", "flip {it|the photo|the picture|the image} {|horizontally|left to right|sideways}", "make it {mirrored|a mirror image}")),
)  # fmt: skip


THINGS = {"circle": "{circle|dot|ball}", "square": "{square|box}"}


def tint_patterns(names: Sequence[str]) -> tuple[str, ...]:
    """The ways to ask for a tint in one of the colours."""
    name = _any(names)
    return (f"{{tint|color|colour}} it {name}", f"{{add|give it|apply}} a {name} {{tint|filter}}", f"{MAKE} {name}")


def shape_pattern(kind: str, names: Sequence[str], places: Sequence[str]) -> str:
    """The ways to ask for a circle or a square in one of the colours at one of the places."""
    name = _any([f"{article(each)} {each}" for each in names])
    where = _any([words for place in places for words in PLACE_WORDS[place]])
    return f"{{add|put|draw|place|paint}} {name} {THINGS[kind]} {where}"


def article(name: str) -> str:
    return "an" if name == "orange" else "a"


def _any(choices: Sequence[str]) -> str:
    return "{" + "|".join(choices) + "}"


def patterns() -> dict[str, tuple[str, ...]]:
    """Every way to ask for each kind of edit."""
    shapes = {kind: (shape_pattern(kind, tuple(COLOURS), tuple(PLACES)),) for kind in THINGS}
    return {kind: requested for kind, _, _, requested in GLOBAL} | {"tint": tint_patterns(TINTS)} | shapes


def catalogue() -> tuple[Edit, ...]:
    """Every edit: the global ones, a tint in each colour, and each shape in each colour at each place."""
    edits = [Edit(kind, _expanded(patterns), apply, but, f"{kind} everywhere") for kind, apply, but, patterns in GLOBAL]
    for name in TINTS:
        requested = _expanded(tint_patterns([name]))
        edits.append(Edit("tint", requested, tint(name), f"with a {name} tint", f"{name} tint everywhere"))
    for kind, name, place in itertools.product(THINGS, COLOURS, PLACES):
        what = f"{name} {kind} {place}"
        requested = expand_pattern(shape_pattern(kind, [name], [place]))
        edits.append(Edit(kind, requested, shape(kind, name, place), f"with {article(name)} {what}", what))
    return tuple(edits)


def _expanded(patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(phrase for pattern in patterns for phrase in expand_pattern(pattern))
