"""The size at which the model sees a picture: a wanted area, the picture's shape, sides that are whole code cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from earl_cli.errors import UsageError

Grids = tuple[tuple[int, int], ...]
"""Shapes in (rows, columns) of cells that a model was trained on; empty: any shape of about its area."""


OLD_SHAPES = "rounded"
"""What `shapes` would give for stores that say nothing of it: their sides were rounded to the nearest multiple."""


def shapes(grids: Grids) -> str:
    """In which shapes pictures are seen, as one word or list, to be compared."""
    return " ".join(f"{rows}x{columns}" for rows, columns in grids) or "floored"


def area_size(width: int, height: int, area: int, multiple: int = 8) -> tuple[int, int]:
    """The (width, height) in pixels for a ``width`` x ``height`` picture brought to about ``area`` pixels.

    It is the published code's: each side times sqrt(area / (width * height)), rounded, and of that the whole multiples
    of ``multiple``. A strip thinner than one multiple becomes one multiple thin, and as long as the area allows.
    """
    if area < 1:
        raise UsageError(f"an image area of {area} pixels is too small", hint="65536 is 256 x 256")
    if width < 1 or height < 1 or multiple < 1:
        raise ValueError(f"not a size: {width} x {height} in multiples of {multiple}")
    scale = math.sqrt(area / (width * height))
    wide, high = (multiple * (round(side * scale) // multiple) for side in (width, height))
    if wide and high:
        return wide, high
    long = multiple * max(1, area // multiple**2)
    return (multiple, long) if width <= height else (long, multiple)


def nearest_size(width: int, height: int, grids: Sequence[tuple[int, int]], multiple: int = 8) -> tuple[int, int]:
    """The (width, height) in pixels of the grid whose aspect ratio is nearest to the picture's."""
    ratio = math.log(width / height)
    rows, columns = min(grids, key=lambda grid: abs(math.log(grid[1] / grid[0]) - ratio))
    return columns * multiple, rows * multiple


def seen_size(width: int, height: int, area: int, multiple: int = 8, grids: Grids = ()) -> tuple[int, int]:
    """The (width, height) in pixels at which a model sees a picture: :func:`area_size`, or the nearest of ``grids``."""
    return nearest_size(width, height, grids, multiple) if grids else area_size(width, height, area, multiple)


def resize_to_area(image: Image.Image, area: int, multiple: int = 8, grids: Grids = ()) -> Image.Image:
    """``image`` resized (bicubic, with antialiasing) to :func:`seen_size`.

    A photo of a shape that the model never saw is squeezed, not cropped. The image itself where it has the size.
    """
    size = seen_size(*image.size, area, multiple, grids)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
