"""The size at which the model sees a picture: a wanted area, the picture's shape, sides that are whole code cells."""

from __future__ import annotations

import math
from itertools import product

from PIL import Image

from earl_cli.errors import UsageError


def area_size(width: int, height: int, area: int, multiple: int = 8) -> tuple[int, int]:
    """The (width, height) in pixels for a ``width`` x ``height`` picture brought to about ``area`` pixels.

    Both sides are multiples of ``multiple`` and at least one of them long. Of the sizes around the exact one,
    side * sqrt(area / (width * height)), the one with the nearest area wins; the aspect ratio counts half as much.
    A strip too thin for the wanted area keeps the area and gives up its aspect ratio.
    """
    if area < 1:
        raise UsageError(f"an image area of {area} pixels is too small", hint="65536 is 256 x 256")
    if width < 1 or height < 1 or multiple < 1:
        raise ValueError(f"not a size: {width} x {height} in multiples of {multiple}")
    scale = math.sqrt(area / (width * height))

    def around(side: float) -> set[int]:
        cells = math.floor(side / multiple)
        return {multiple * max(1, cells + step) for step in (-1, 0, 1, 2)}

    def cost(size: tuple[int, int]) -> tuple[float, float]:
        wrong_area = abs(math.log(size[0] * size[1] / area))
        wrong_shape = abs(math.log((size[0] / size[1]) * (height / width)))
        return 2 * wrong_area + wrong_shape, wrong_shape

    widths, heights = around(width * scale), around(height * scale)
    sizes = set(product(widths, heights))
    sizes |= {(w, h) for w in widths for h in around(area / w)} | {(w, h) for h in heights for w in around(area / h)}
    return min(sorted(sizes), key=cost)


def resize_to_area(image: Image.Image, area: int, multiple: int = 8) -> Image.Image:
    """``image`` resized (bicubic, with antialiasing) to :func:`area_size`; the image itself where it has that size."""
    size = area_size(*image.size, area, multiple)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
