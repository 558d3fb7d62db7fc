"""What an edit puts on top of a photo: flat shapes with crisp edges, found in a small and soft picture of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earl_cli.images.arrays import CELL, Plane, gauss

KINDS = ("disc", "rectangle")
Mask = NDArray[np.bool_]
SAME = 0.2  # colours (0..1) closer than this are of one shape
MOST = 3
SPILL = 2.0  # pixels by which a shape may reach over the edge
DISC_FIRST = 0.08  # a rectangle must explain so much more than a disc: cells have straight edges, also wrong ones
BROAD = 120  # differences count in full up to about this many times the noise's square


@dataclass(frozen=True)
class FlatShape:
    """A disc (centre x, y, radius) or an upright rectangle (left, right, top, bottom), in pixels, and its colour."""

    kind: str
    place: tuple[float, ...]
    color: tuple[float, float, float]

    @property
    def thickness(self) -> float:
        if self.kind == "disc":
            return 2 * self.place[2]
        left, right, top, bottom = self.place
        return min(right - left, bottom - top)

    def at(self, scale_x: float, scale_y: float, scale: float) -> FlatShape:
        """The shape in a picture enlarged by ``scale_x`` and ``scale_y``; a disc stays round, larger by ``scale``."""
        if self.kind == "disc":
            x, y, radius = self.place
            return FlatShape(self.kind, (x * scale_x, y * scale_y, radius * scale), self.color)
        left, right, top, bottom = self.place
        return FlatShape(self.kind, (left * scale_x, right * scale_x, top * scale_y, bottom * scale_y), self.color)

    def lies_within(self, width: int, height: int) -> bool:
        """Whether all of it but its edge lies in a picture of this size."""
        if self.kind == "disc":
            x, y, radius = self.place
            left, right, top, bottom = x - radius, x + radius, y - radius, y + radius
        else:
            left, right, top, bottom = self.place
        outside = max(-left, right - width, -top, bottom - height)
        return outside <= SPILL


def opacity(kind: str, place: tuple[float, ...], x: Plane, y: Plane, soft: float) -> Plane:
    """How much the shape covers of the pixels at ``x`` [1, w] and ``y`` [h, 1] after a Gaussian blur of ``soft``."""
    if kind == "disc":
        return _inside(place[2] - np.hypot(x - place[0], y - place[1]), soft)
    across = _inside(x - place[0], soft) * _inside(place[1] - x, soft)
    return across * _inside(y - place[2], soft) * _inside(place[3] - y, soft)


def _inside(inward: Plane, soft: float) -> Plane:
    """A straight edge after a Gaussian blur, ``inward`` pixels from it (the logistic function for the normal one's)."""
    cover: Plane = (1 / (1 + np.exp(np.clip(-1.702 * inward / soft, -50, 50)))).astype(np.float32)
    return cover


def find_shapes(
    model: Plane,
    after: Plane,
    noise: float,
    soft: float,
    kinds: Collection[str] = KINDS,
    most: int = MOST,
    doubt: float = 1.0,
) -> tuple[tuple[FlatShape, ...], Plane]:
    """Flat shapes in ``after`` [h, w, 3] that ``model``, the explanation so far, lacks; and the model with them drawn.

    ``noise`` is the usual difference of the two, ``soft`` the blur (sigma) of the model's pictures. A shape must
    explain most of what is strange inside it, and be larger than the cells that a language model gets wrong; one in
    a colour that the picture doesn't have otherwise is believed more easily. ``doubt`` below 1 is content with a
    fainter one, where a shape is expected.
    """
    found: list[FlatShape] = []
    height, width, _ = after.shape
    x, y = np.arange(width, dtype=np.float32)[None] + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    while len(found) < most:
        shape = _best_shape(model, after, noise, soft, kinds, doubt, x, y)
        if shape is None:
            break
        found.append(shape)
        cover = opacity(shape.kind, shape.place, x, y, soft)[..., None]
        model = model + cover * (np.array(shape.color, np.float32) - model)
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
    strange = (difference**2).sum(-1) > (doubt * min(0.3, max(0.15, 4.3 * noise))) ** 2
    best: tuple[float, FlatShape] | None = None
    for color in _colors(after, strange):
        region = _largest_region(strange & (((after - color) ** 2).sum(-1) < SAME**2))
        if region is None or region.sum() < CELL**2:
            continue
        paint = np.median(after[region], axis=0)
        gain, shape = _fitted(region, difference, paint - model, paint, noise, soft, kinds, x, y)
        if best is None or gain > best[0]:
            best = gain, shape
    if best is None:
        return None
    _, shape = best
    cover = opacity(shape.kind, shape.place, x, y, soft)
    area, inside = float(cover.sum()), cover > 0.5
    usual = BROAD * min(noise, 0.07) ** 2
    strange_before = (difference[inside] ** 2).sum(-1)
    strange_after = ((after[inside] - np.array(shape.color)) ** 2).sum(-1)
    unexplained = float((strange_before / (strange_before + usual)).sum())
    explained = 1 - float((strange_after / (strange_after + usual)).sum()) / unexplained if unexplained else 0.0
    novel = (((model - np.array(shape.color)) ** 2).sum(-1) < SAME**2).mean() < 0.01
    least_area, least_thickness, least_explained = (100, 10, 0.55) if novel else (300, 16, 0.6)
    if area < least_area or shape.thickness < least_thickness or explained < doubt * least_explained:
        return None
    if not shape.lies_within(width=x.shape[1], height=y.shape[0]):
        return None  # cut off by the edge: hardly laid on top, rather something that was drawn wrong
    core = after[cover > 0.95]
    if len(core) > 20:
        shape = FlatShape(shape.kind, shape.place, _triple(np.median(core, axis=0)))
    return shape


def _triple(color: NDArray[np.floating]) -> tuple[float, float, float]:
    r, g, b = (float(value) for value in color)
    return r, g, b


def _colors(after: Plane, strange: Mask) -> list[Plane]:
    """The most frequent colours of the strange pixels, by mean shift from the fullest histogram boxes."""
    pixels = after[strange]
    boxes = np.clip(pixels * 6, 0, 5).astype(np.int64) @ np.array([36, 6, 1])
    counts = np.bincount(boxes, minlength=216)
    colors: list[Plane] = []
    for box in np.argsort(-counts, kind="stable")[:3]:
        if counts[box] < 25:
            break
        color = pixels[boxes == box].mean(axis=0)
        for _ in range(5):
            color = pixels[((pixels - color) ** 2).sum(-1) < SAME**2].mean(axis=0)
        if all(((color - other) ** 2).sum() > (SAME / 2) ** 2 for other in colors):
            colors.append(color)
    return colors


def _largest_region(members: Mask) -> Mask | None:
    """The connected region around the densest spot, after single stray pixels are smoothed away; None if empty."""
    solid = gauss(members[..., None].astype(np.float32), 1.2)[..., 0] > 0.5
    density = gauss(solid[..., None].astype(np.float32), 3)[..., 0] * solid
    if not solid.any():
        return None
    region = np.zeros_like(solid)
    region[np.unravel_index(int(np.argmax(density)), density.shape)] = True
    while True:
        around = np.pad(region, 1)
        grown = solid & (around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:] | region)
        if grown.sum() == region.sum():
            return region
        region = grown


def _fitted(
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
    """The disc or rectangle near ``region`` that explains most, and how many pixels' worth it explains."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    reach = CELL + 4
    top, left = max(0, rows[0] - reach), max(0, columns[0] - reach)
    near = np.s_[top : rows[-1] + 1 + reach, left : columns[-1] + 1 + reach]
    difference, paint, x, y = difference[near], paint[near], x[:, near[1]], y[near[0]]
    usual = BROAD * min(noise, 0.07) ** 2

    def unexplained(kind: str, place: tuple[float, ...]) -> float:
        rest = ((difference - opacity(kind, place, x, y, soft)[..., None] * paint) ** 2).sum(-1)
        return float((rest / (rest + usual)).sum())

    inside_y, inside_x = np.nonzero(region)
    center_x, center_y, area = inside_x.mean() + 0.5, inside_y.mean() + 0.5, region.sum()
    half = area**0.5 / 2
    square = (center_x - half, center_x + half, center_y - half, center_y + half)
    disc, left_by_disc = _search(lambda place: unexplained("disc", place), (center_x, center_y, (area / np.pi) ** 0.5))
    box, left_by_box = _search(lambda place: unexplained("rectangle", place), square)
    total = (difference**2).sum(-1)
    before = float((total / (total + usual)).sum())
    boxed = left_by_box < left_by_disc - DISC_FIRST * (before - left_by_box)
    if "disc" not in kinds or (boxed and "rectangle" in kinds):
        return before - left_by_box, FlatShape("rectangle", box, _triple(color))
    return before - left_by_disc, FlatShape("disc", disc, _triple(color))


def _search(cost: Callable[[tuple[float, ...]], float], place: tuple[float, ...]) -> tuple[tuple[float, ...], float]:
    """A minimum of ``cost`` near ``place`` by steps of 2 pixels down to 1/4 of a number, or of opposite sides."""
    moves = [(i,) for i in range(len(place))] + ([(0, 1), (2, 3)] if len(place) == 4 else [])
    best = cost(place)
    for step in (2.0, 1.0, 0.5, 0.25):
        improved, rounds = True, 0
        while improved and rounds < 12:
            improved, rounds = False, rounds + 1
            for move in moves:
                for way in (-step, step):
                    tried = tuple(value + way * (i in move) for i, value in enumerate(place))
                    value = cost(tried)
                    if value < best - 1e-9:
                        place, best, improved = tried, value, True
    return place, best
