"""Fine structure for the vision tokenizer to learn: flakes, streaks, grain, lines, letters, blocks, shapes.

A texture is a pure function of an RGB image ``float32[H, W, 3]`` in 0..1 and a random generator, as an edit is; sizes
are shares of the short side. No language model is trained on these.
"""

from __future__ import annotations

import string

import numpy as np
from edits import COLOURS, Pixels, catalogue, colour, luma, saturate, soft_mask, to_bytes
from PIL import Image, ImageDraw

LETTERS = string.ascii_letters + string.digits + "  .,!?"


def flakes(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Round flakes in two or three depths, small and sharp to large and soft, over a paler image."""
    height, width = pixels.shape[:2]
    pale = 0.25 * rng.uniform() + 0.75 * saturate(pixels, rng.uniform(0.3, 1.0))
    for _ in range(rng.integers(1, 4)):
        radius, count = np.exp(rng.uniform(np.log(0.004), np.log(0.028))), rng.uniform(20, 160)

        def layer(draw: ImageDraw.ImageDraw, short: float, radius: float = radius, count: float = count) -> None:
            for _ in range(int(count * height * width / min(height, width) ** 2)):
                x, y = rng.uniform(0, width * 4), rng.uniform(0, height * 4)
                reach = short * radius * rng.uniform(0.6, 1.4)
                draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=int(rng.uniform(120, 256)))

        mask = soft_mask(pixels, layer, blur=float(radius * rng.uniform(0, 0.6)))
        pale = pale + (1 - pale) * mask
    return pale.astype(np.float32)


def streaks(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Slanted bright streaks of one angle over a darker image."""
    height, width = pixels.shape[:2]
    wet = saturate(pixels, rng.uniform(0.4, 1.0)) * np.float32(rng.uniform(0.5, 1.0))
    slant, thick = rng.uniform(-0.6, 0.6), rng.uniform(0.003, 0.012)

    def lines(draw: ImageDraw.ImageDraw, short: float) -> None:
        for _ in range(int(rng.uniform(30, 160) * height * width / min(height, width) ** 2)):
            x, y = rng.uniform(-0.1, 1.1) * width * 4, rng.uniform(-0.1, 1.0) * height * 4
            length = short * rng.uniform(0.04, 0.2)
            bright = int(rng.uniform(80, 230))
            draw.line((x, y, x + slant * length, y + length), fill=bright, width=max(1, round(short * thick)))

    return (wet + (0.92 - wet) * soft_mask(pixels, lines, blur=0.001)).astype(np.float32)


def grain(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    noise = rng.normal(0, rng.uniform(0.02, 0.12), (*pixels.shape[:2], 3 if rng.random() < 0.5 else 1))
    return (pixels + noise).astype(np.float32)


def letters(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Lines of text in one colour, on a page or over the image."""
    height = pixels.shape[0]
    page = rng.random() < 0.5
    ground = np.full_like(pixels, rng.uniform(0.85, 1.0)) if page else pixels
    ink = colour(*rng.uniform(0, 0.4, 3)) if page else colour(*rng.uniform(0, 1, 3))
    size = rng.uniform(0.03, 0.14)

    def text(draw: ImageDraw.ImageDraw, short: float) -> None:
        y = 0.0
        while y < height * 4:
            line = "".join(rng.choice(list(LETTERS), 80))
            draw.text((short * 0.03, y), line, fill=255, font_size=max(8, round(size * short)))
            y += size * short * rng.uniform(1.1, 2.0)

    mask = soft_mask(pixels, text)
    return (ground + (ink - ground) * mask).astype(np.float32)


def blocks(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The image in large pixels."""
    image = Image.fromarray(to_bytes(pixels))
    side = max(2, round(rng.uniform(0.02, 0.09) * min(image.size)))
    small = image.resize((max(1, image.width // side), max(1, image.height // side)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.NEAREST), dtype=np.float32) / 255


def steps(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Few levels of brightness or colour."""
    levels = rng.integers(2, 7)
    base = pixels if rng.random() < 0.6 else np.repeat(luma(pixels), 3, axis=2)
    return (np.round(np.clip(base, 0, 1) * levels) / levels).astype(np.float32)


def outlines(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Dark lines on white where the image has edges, as a pencil would draw them."""
    grey = luma(pixels)[..., 0]
    down, across = np.gradient(grey)
    edges = np.clip(np.hypot(down, across) * rng.uniform(4, 14), 0, 1)[..., None]
    return np.repeat(1 - edges, 3, axis=2).astype(np.float32)


def figures(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Some polygons and discs with crisp edges."""
    height, width = pixels.shape[:2]
    names = list(COLOURS)
    for _ in range(rng.integers(1, 5)):
        paint = colour(*COLOURS[names[rng.integers(len(names))]]) if rng.random() < 0.7 else rng.uniform(0, 1, 3)
        corners, turn = rng.integers(3, 9), rng.uniform(0, 2 * np.pi)
        x, y, reach = rng.uniform(0, width * 4), rng.uniform(0, height * 4), rng.uniform(0.03, 0.25)
        inner = rng.uniform(0.4, 1.0) if corners > 4 else 1.0

        def figure(draw: ImageDraw.ImageDraw, short: float) -> None:
            radii = [reach * short * (1.0 if k % 2 else inner) for k in range(2 * corners)]  # noqa: B023
            angles = turn + np.pi * np.arange(2 * corners) / corners  # noqa: B023
            points = [(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]  # noqa: B023
            draw.polygon(points, fill=255)

        mask = soft_mask(pixels, figure)
        pixels = pixels * (1 - mask) + np.asarray(paint, np.float32) * mask
    return pixels.astype(np.float32)


TEXTURES = (flakes, flakes, streaks, streaks, grain, letters, blocks, steps, outlines, figures)


def any_texture(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """One of the textures, or an edit of the catalogue, or nothing, or two of these."""
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        if rng.random() < 0.6:
            pixels = TEXTURES[rng.integers(len(TEXTURES))](pixels, rng)
        else:
            edits = [edit for edit in catalogue() if edit.kind not in ("circle", "square")]
            pixels = edits[rng.integers(len(edits))].apply(pixels, rng)
        pixels = np.clip(pixels, 0, 1).astype(np.float32)
    return pixels
