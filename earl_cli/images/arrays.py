"""Arithmetic on float images [h, w, channels] for the composition: cells, blur, resampling, regions."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane: TypeAlias = NDArray[np.float32]

CELL = 8
"""Pixels a side of a code's area; sampling errors are the same all over a cell."""


def gaussian_blur(planes: Plane, sigma: float) -> Plane:
    """Gaussian blur of [h, w, c] with repeated edges; ``sigma`` in pixels, 0 changes nothing."""
    if sigma <= 0:
        return planes
    radius = math.ceil(3 * sigma)
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        size = planes.shape[axis]
        padded = np.pad(planes, [(radius, radius) if i == axis else (0, 0) for i in range(3)], mode="edge")
        total = np.zeros_like(planes)
        for shift, tap in enumerate(taps):
            total += tap * (padded[shift : shift + size] if axis == 0 else padded[:, shift : shift + size])
        planes = total
    return planes


def downsample(planes: Plane, factor: int) -> Plane:
    """[h, w, c] -> [h / factor, w / factor, c], means of factor x factor pixels."""
    height, width, channels = planes.shape
    tiles = planes.reshape(height // factor, factor, width // factor, factor, channels)
    means: Plane = tiles.mean(axis=(1, 3), dtype=np.float32)
    return means


def cells(planes: Plane, side: int = CELL) -> Plane:
    """[h, w, c] -> [cells, side * side, c], row by row."""
    height, width, channels = planes.shape
    tiles = planes.reshape(height // side, side, width // side, side, channels)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, side * side, channels)


def cell_errors(difference: Plane, side: int = CELL) -> NDArray[np.float64]:
    """Root mean square of [h, w, c] in each cell: float64[cells]."""
    squares: NDArray[np.float64] = (cells(difference, side).astype(np.float64) ** 2).mean(axis=(1, 2))
    return np.sqrt(squares)


def enlarge_rows(planes: Plane, width: int, height: int, top: int, bottom: int) -> Plane:
    """Rows ``top`` to ``bottom`` of ``planes`` [h, w, c] enlarged (bicubic) to ``height`` x ``width``."""
    small_height, small_width, channels = planes.shape
    box = (0.0, top * small_height / height, float(small_width), bottom * small_height / height)
    size = (width, bottom - top)
    enlarged = [
        Image.fromarray(np.ascontiguousarray(planes[..., i])).resize(size, Image.Resampling.BICUBIC, box)
        for i in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in enlarged], axis=-1)


def resized(rgb: NDArray[np.uint8], width: int, height: int) -> Plane:
    """uint8[H, W, 3] -> float32[height, width, 3] in 0..1, antialiased."""
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX if width < rgb.shape[1] else 3)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def smoothstep(values: Plane, low: float, high: float) -> Plane:
    """0 up to ``low``, 1 from ``high``, smooth in between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    smooth: Plane = (t * t * (3 - 2 * t)).astype(np.float32)
    return smooth


def connected_regions(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Labels [h, w] of the 4-connected regions of a mask, from 1, not consecutive; 0 outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        around = np.max([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:], labels], axis=0)
        spread = np.where(mask, around, 0)
        if np.array_equal(spread, labels):
            return labels
        labels = spread
