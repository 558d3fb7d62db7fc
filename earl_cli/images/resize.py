"""The size of the model's input: a given area, the image's aspect ratio, sides that are whole cells of codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from earl_cli.errors import UsageError

Grids = tuple[tuple[int, int], ...]
"""Shapes in (rows, columns) of codes that a model was trained on; empty: any shape of about its area."""

LEGACY_SHAPES = "rounded"
"""What stands for `describe_shapes` in stores without it: their sides were rounded to the nearest multiple."""


def describe_shapes(grids: Grids) -> str:
    """How shapes are chosen, as text that is stored and compared."""
    return " ".join(f"{rows}x{columns}" for rows, columns in grids) or "floored"


def area_size(width: int, height: int, area: int, multiple: int = 8) -> tuple[int, int]:
    """The (width, height) in pixels of a ``width`` x ``height`` image resized to about ``area`` pixels.

    As in the published code: each side times sqrt(area / (width * height)), rounded, then rounded down to a multiple of
    ``multiple``. A side that would be shorter than one multiple gets one, and the other is as long as the area allows.
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


def nearest_grid_size(width: int, height: int, grids: Sequence[tuple[int, int]], multiple: int = 8) -> tuple[int, int]:
    """The (width, height) in pixels of the grid with the nearest aspect ratio."""
    ratio = math.log(width / height)
    rows, columns = min(grids, key=lambda grid: abs(math.log(grid[1] / grid[0]) - ratio))
    return columns * multiple, rows * multiple


def model_size(width: int, height: int, area: int, multiple: int = 8, grids: Grids = ()) -> tuple[int, int]:
    """The (width, height) in pixels of a model's input: `area_size`, or with ``grids`` the nearest of these."""
    return nearest_grid_size(width, height, grids, multiple) if grids else area_size(width, height, area, multiple)


def resize_to_area(image: Image.Image, area: int, multiple: int = 8, grids: Grids = ()) -> Image.Image:
    """``image`` resized (bicubic, antialiased) to `model_size`, or itself if it has that size.

    An aspect ratio that isn't among ``grids`` is changed: the image is squeezed, not cropped.
    """
    size = model_size(*image.size, area, multiple, grids)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
