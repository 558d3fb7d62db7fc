"""Flat shapes with crisp edges that an edit puts on a photo, detected in a small and soft image."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earl_cli.images.arrays import CELL, Plane, gaussian_blur

KINDS = ("disc", "rectangle")
Mask = NDArray[np.bool_]
SAME_COLOUR = 0.2  # colours (0..1) with a smaller distance belong to one shape
MAX_SHAPES = 3
MAX_OVERHANG = 2.0  # pixels by which a shape may extend over the image's edge
DISC_FIRST = 0.08  # a rectangle must explain so much more than a disc, since wrong cells have straight edges too
DIFFERENCE_LIMIT = 120  # squared differences saturate at about this many times that of the noise


@dataclass(frozen=True)
class FlatShape:
    """A disc (centre x, y, radius) or an upright rectangle (left, right, top, bottom), in pixels, and its colour."""

    kind: str
    geometry: tuple[float, ...]
    color: tuple[float, float, float]

    @property
    def thickness(self) -> float:
        if self.kind == "disc":
            return 2 * self.geometry[2]
        left, right, top, bottom = self.geometry
        return min(right - left, bottom - top)

    def at(self, scale_x: float, scale_y: float, scale: float) -> FlatShape:
        """The shape in an image scaled by ``scale_x`` and ``scale_y``; a disc stays round, scaled by ``scale``."""
        if self.kind == "disc":
            x, y, radius = self.geometry
            return FlatShape(self.kind, (x * scale_x, y * scale_y, radius * scale), self.color)
        left, right, top, bottom = self.geometry
        return FlatShape(self.kind, (left * scale_x, right * scale_x, top * scale_y, bottom * scale_y), self.color)

    def lies_within(self, width: int, height: int) -> bool:
        """Whether the shape, but for `MAX_OVERHANG`, lies within an image of this size."""
        if self.kind == "disc":
            x, y, radius = self.geometry
            left, right, top, bottom = x - radius, x + radius, y - radius, y + radius
        else:
            left, right, top, bottom = self.geometry
        outside = max(-left, right - width, -top, bottom - height)
        return outside <= MAX_OVERHANG


def opacity(kind: str, geometry: tuple[float, ...], x: Plane, y: Plane, soft: float) -> Plane:
    """The shape's coverage [h, w] of the pixels at ``x`` [1, w] and ``y`` [h, 1], after a Gaussian blur of ``soft``."""
    if kind == "disc":
        center_x, center_y, radius = geometry
        return _soft_step(radius - np.hypot(x - center_x, y - center_y), soft)
    left, right, top, bottom = geometry
    across = _soft_step(x - left, soft) * _soft_step(right - x, soft)
    return across * _soft_step(y - top, soft) * _soft_step(bottom - y, soft)


def _soft_step(inward: Plane, soft: float) -> Plane:
    """A blurred straight edge, ``inward`` pixels from it (logistic in place of the normal distribution)."""
    coverage: Plane = (1 / (1 + np.exp(np.clip(-1.702 * inward / soft, -50, 50)))).astype(np.float32)
    return coverage


def find_shapes(
    model: Plane,
    after: Plane,
    noise: float,
    soft: float,
    kinds: Collection[str] = KINDS,
    max_shapes: int = MAX_SHAPES,
    doubt: float = 1.0,
) -> tuple[tuple[FlatShape, ...], Plane]:
    """Flat shapes in ``after`` [h, w, 3] that ``model``, the explanation so far, lacks; and the model with them added.

    ``noise`` is the usual difference of the two, ``soft`` the blur (sigma) of the small images. A shape must explain
    most of the difference inside it, and be larger than single wrong cells; one in a colour that the image doesn't
    have otherwise needs less evidence. ``doubt`` below 1 reduces the required evidence, where a shape is expected.
    """
    found: list[FlatShape] = []
    height, width, _ = after.shape
    x, y = np.arange(width, dtype=np.float32)[None] + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    while len(found) < max_shapes:
        shape = _best_shape(model, after, noise, soft, kinds, doubt, x, y)
        if shape is None:
            break
        found.append(shape)
        coverage = opacity(shape.kind, shape.geometry, x, y, soft)[..., None]
        model = model + coverage * (np.array(shape.color, np.float32) - model)
    return tuple(found), model


def _best_shape(
    model: Plane,
    after: Plane,
    noise: float,
    soft: float,
    kinds: Collection[str],
    doubt: float,
    x: Plane,
    y: Plane,
) -> FlatShape | None:
    difference = after - model
    unexplained = (difference**2).sum(-1) > (doubt * min(0.3, max(0.15, 4.3 * noise))) ** 2
    best: tuple[float, FlatShape] | None = None
    for color in _colors(after, unexplained):
        region = _largest_region(unexplained & (((after - color) ** 2).sum(-1) < SAME_COLOUR**2))
        if region is None or region.sum() < CELL**2:
            continue
        paint = np.median(after[region], axis=0)
        gain, shape = _fit_shape(region, difference, paint - model, paint, noise, soft, kinds, x, y)
        if best is None or gain > best[0]:
            best = gain, shape
    if best is None:
        return None
    _, shape = best
    coverage = opacity(shape.kind, shape.geometry, x, y, soft)
    area, inside = float(coverage.sum()), coverage > 0.5
    limit = DIFFERENCE_LIMIT * min(noise, 0.07) ** 2
    without = (difference[inside] ** 2).sum(-1)
    with_shape = ((after[inside] - np.array(shape.color)) ** 2).sum(-1)
    total = float((without / (without + limit)).sum())
    explained = 1 - float((with_shape / (with_shape + limit)).sum()) / total if total else 0.0
    is_new_color = (((model - np.array(shape.color)) ** 2).sum(-1) < SAME_COLOUR**2).mean() < 0.01
    min_area, min_thickness, min_explained = (100, 10, 0.55) if is_new_color else (300, 16, 0.6)
    if area < min_area or shape.thickness < min_thickness or explained < doubt * min_explained:
        return None
    if not shape.lies_within(width=x.shape[1], height=y.shape[0]):
        return None  # cut off by the image's edge: rather an error of the model than a shape
    core = after[coverage > 0.95]
    if len(core) > 20:
        shape = FlatShape(shape.kind, shape.geometry, _as_color(np.median(core, axis=0)))
    return shape


def _as_color(color: NDArray[np.floating]) -> tuple[float, float, float]:
    r, g, b = (float(value) for value in color)
    return r, g, b


def _colors(after: Plane, mask: Mask) -> list[Plane]:
    """The most frequent colours of the pixels in ``mask``, by mean shift from the fullest histogram bins."""
    pixels = after[mask]
    boxes = np.clip(pixels * 6, 0, 5).astype(np.int64) @ np.array([36, 6, 1])
    counts = np.bincount(boxes, minlength=216)
    colors: list[Plane] = []
    for box in np.argsort(-counts, kind="stable")[:3]:
        if counts[box] < 25:
            break
        color = pixels[boxes == box].mean(axis=0)
        for _ in range(5):
            color = pixels[((pixels - color) ** 2).sum(-1) < SAME_COLOUR**2].mean(axis=0)
        if all(((color - other) ** 2).sum() > (SAME_COLOUR / 2) ** 2 for other in colors):
            colors.append(color)
    return colors


def _largest_region(members: Mask) -> Mask | None:
    """The connected region around the densest spot, after smoothing removes single pixels; None if empty."""
    solid = gaussian_blur(members[..., None].astype(np.float32), 1.2)[..., 0] > 0.5
    density = gaussian_blur(solid[..., None].astype(np.float32), 3)[..., 0] * solid
    if not solid.any():
        return None
    region = np.zeros_like(solid)
    region[np.unravel_index(int(np.argmax(density)), density.shape)] = True
    while True:
        padded = np.pad(region, 1)
        grown = solid & (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | region)
        if grown.sum() == region.sum():
            return region
        region = grown


def _fit_shape(
    region: Mask,
    difference: Plane,
    paint: Plane,
    color: Plane,
    noise: float,
    soft: float,
    kinds: Collection[str],
    x: Plane,
    y: Plane,
) -> tuple[float, FlatShape]:
    """The disc or rectangle near ``region`` that explains most of the difference, and how much, in pixels."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    reach = CELL + 4
    top, left = max(0, rows[0] - reach), max(0, columns[0] - reach)
    near = np.s_[top : rows[-1] + 1 + reach, left : columns[-1] + 1 + reach]
    difference, paint, x, y = difference[near], paint[near], x[:, near[1]], y[near[0]]
    limit = DIFFERENCE_LIMIT * min(noise, 0.07) ** 2

    def unexplained(kind: str, geometry: tuple[float, ...]) -> float:
        rest = ((difference - opacity(kind, geometry, x, y, soft)[..., None] * paint) ** 2).sum(-1)
        return float((rest / (rest + limit)).sum())

    inside_y, inside_x = np.nonzero(region)
    center_x, center_y, area = inside_x.mean() + 0.5, inside_y.mean() + 0.5, region.sum()
    half = area**0.5 / 2
    square = (center_x - half, center_x + half, center_y - half, center_y + half)
    circle = (center_x, center_y, (area / np.pi) ** 0.5)
    disc, left_by_disc = _minimize(lambda geometry: unexplained("disc", geometry), circle)
    rectangle, left_by_rectangle = _minimize(lambda geometry: unexplained("rectangle", geometry), square)
    total = (difference**2).sum(-1)
    before = float((total / (total + limit)).sum())
    is_rectangle = left_by_rectangle < left_by_disc - DISC_FIRST * (before - left_by_rectangle)
    if "disc" not in kinds or (is_rectangle and "rectangle" in kinds):
        return before - left_by_rectangle, FlatShape("rectangle", rectangle, _as_color(color))
    return before - left_by_disc, FlatShape("disc", disc, _as_color(color))


def _minimize(
    cost: Callable[[tuple[float, ...]], float], geometry: tuple[float, ...]
) -> tuple[tuple[float, ...], float]:
    """A local minimum of ``cost`` by coordinate search from ``geometry``, and its value.

    Steps of 2 to 1/4 pixels change one number, or both sides of a rectangle.
    """
    moves = [(i,) for i in range(len(geometry))] + ([(0, 1), (2, 3)] if len(geometry) == 4 else [])
    best = cost(geometry)
    for step in (2.0, 1.0, 0.5, 0.25):
        improved, rounds = True, 0
        while improved and rounds < 12:
            improved, rounds = False, rounds + 1
            for move in moves:
                for change in (-step, step):
                    candidate = tuple(value + change * (i in move) for i, value in enumerate(geometry))
                    value = cost(candidate)
                    if value < best - 1e-9:
                        geometry, best, improved = candidate, value, True
    return geometry, best
