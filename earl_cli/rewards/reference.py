"""The reward without a judge: how much of the way from the source to the true edit was gone. Offline, a few ms each.

The distance of two pictures is taken in Oklab, where a difference is as large as it looks (Ottosson, "A perceptual
color space for image processing", 2020, bottosson.github.io/posts/oklab), on means over squares of 1, 2, 4, 8 and 16
pixels a side. On each of these scales it is the sum of

- colour: the root mean square over the picture of the Euclidean distance of two colours, and
- structure: the root mean square of the difference in how much edge there is around a place, which is the length of the
  gradient of lightness, averaged over 4 x 4 squares of the scale,

and over all of them the mean, weighted by the side of the square: noise and what scatters lose half of their amplitude
from one scale to the next, what is really there loses nothing. So fine scales see where something is, coarse ones and
the structure whether it is there: of a thousand snow flakes none has to be in its place. With root mean squares a
strong change in a corner isn't drowned by weak noise everywhere. All of it keeps the triangle inequality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from earl_cli.rewards.reward import Edit, Pixels, Score

Plane: TypeAlias = NDArray[np.float64]

WORST, BEST = -1.0, 1.0
FLOOR = 0.01
"""A distance that nobody sees: about half of a just noticeable difference, all over the picture."""
SCALES = 5
PLACE = 8
"""Pixels a side of the squares that a distance is taken apart into: those of a code."""
CELLS = 2
"""How often edges are averaged over 2 x 2 places."""

_LMS = np.array(  # from linear sRGB, as published, transposed
    [
        [0.4122214708, 0.2119034982, 0.0883024619],
        [0.5363325363, 0.6806995451, 0.2817188376],
        [0.0514459929, 0.1073969566, 0.6299787005],
    ]
)
_LAB = np.array(  # from the cube roots of these
    [
        [0.2104542553, 1.9779984951, 0.0259040371],
        [0.7936177850, -2.4285922050, 0.7827717662],
        [-0.0040720468, 0.4505937099, -0.8086757660],
    ]
)
_CODES = np.arange(256) / 255
_LINEAR = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What a distance is taken from: on each scale the colours [h, w, 3] in Oklab, and the edges [h', w']."""

    colours: tuple[Plane, ...]
    edges: tuple[Plane, ...]


@dataclass(frozen=True)
class Distance:
    """How far apart two pictures are, in units of Oklab: 0.02 is just noticeable, black and white are 1 apart."""

    colour: float
    structure: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.colour + self.structure


def reference_reward(edits: Sequence[Edit], /) -> list[Score]:
    """1 − d(edited, target) / d(source, target) of each edit, in [−1, 1].

    1 is the true edit, 0 the source left as it is, −1 what isn't finished and anything at least twice as far from the
    target as the source is. Where the source itself is within `FLOOR` of the target, this takes the place of their
    distance: nothing is to be changed, and what is changed visibly costs. A picture of another size than the target's
    is brought to it. Parts: ``removed``, the value before it is cut to the range, and the same for ``colour`` and
    ``structure`` alone. Without a target there is no value.
    """
    looks: dict[tuple[int, tuple[int, ...]], ImageFeatures] = {}  # an edit's group has the same source and target

    def seen(pixels: Pixels, like: Pixels) -> ImageFeatures:
        key = (id(pixels), like.shape)
        if key not in looks:
            looks[key] = look(_resized(pixels, like))
        return looks[key]

    def score(edit: Edit) -> Score:
        if edit.target is None:
            return Score(None, reason="there is no true edit to compare with")
        if edit.edited is None:
            return Score(WORST, reason="no finished picture")
        target = seen(edit.target, edit.target)
        drawn = look(_resized(edit.edited, edit.target))
        left = distance(drawn, target)
        whole = distance(seen(edit.source, edit.target), target)
        scale = max(whole.total, FLOOR)
        parts = {
            "removed": 1 - left.total / scale,
            "colour": _removed(left.colour, whole.colour),
            "structure": _removed(left.structure, whole.structure),
        }
        places = 1 - distance_by_place(drawn, target) / scale
        return Score(min(BEST, max(WORST, parts["removed"])), parts, places=places)

    return [score(edit) for edit in edits]


def _removed(left: float, whole: float) -> float:
    return 1 - left / max(whole, FLOOR)


def distance(one: ImageFeatures, other: ImageFeatures) -> Distance:
    """Between pictures of one size."""
    colours = [_rms(a - b) for a, b in zip(one.colours, other.colours, strict=True)]
    edges = [_rms(a - b) for a, b in zip(one.edges, other.edges, strict=True)]
    sides = [1 << scale for scale in range(len(colours))]
    return Distance(float(np.average(colours, weights=sides)), float(np.average(edges, weights=sides)))


def distance_by_place(one: ImageFeatures, other: ImageFeatures) -> Plane:
    """The total distance of two pictures of one size taken apart: what each square of 8 pixels a side adds, [h, w].

    A root mean square is the mean of the squares, each divided by it; so the mean of all places is the distance, but
    for a last, narrower row or column. Scales coarser than a place give theirs to all that it covers.
    """
    height, width = (-(-side // PLACE) for side in one.colours[0].shape[:2])
    found = np.zeros((height, width))
    sides = np.array([1 << scale for scale in range(len(one.colours))], dtype=np.float64)
    for weight, colours, edges in zip(
        sides / sides.sum(),
        *(
            [np.square(a - b) for a, b in zip(ours, theirs, strict=True)]
            for ours, theirs in ((one.colours, other.colours), (one.edges, other.edges))
        ),
        strict=True,
    ):
        for square in (colours.sum(axis=-1), edges):
            root = math.sqrt(square.mean())
            if root:
                found += weight * _on_grid(square, height, width) / root
    return found


def _on_grid(plane: Plane, height: int, width: int) -> Plane:
    """The mean of each part of a finer plane, or the place of a coarser one that a part lies in."""
    for axis, size in enumerate((height, width)):
        there = plane.shape[axis]
        starts = np.arange(size) * there // size
        if there > size:
            counts = np.diff(starts, append=there)
            shape = [1, 1]
            shape[axis] = size
            plane = np.add.reduceat(plane, starts, axis=axis) / counts.reshape(shape)
        else:
            plane = plane.take(starts, axis=axis)
    return plane


def look(pixels: Pixels) -> ImageFeatures:
    """The scales of uint8[h, w, 3]; fewer where a side would be less than a place."""
    colours = [oklab(pixels)]
    while len(colours) < SCALES and min(colours[-1].shape[:2]) > 1:
        colours.append(_halved(colours[-1]))
    return ImageFeatures(tuple(colours), tuple(_edges(scale[..., 0]) for scale in colours))


def oklab(pixels: Pixels) -> Plane:
    """sRGB uint8[..., 3] to Oklab [..., 3]: lightness from 0 to 1, green to red, blue to yellow."""
    found: Plane = np.cbrt(_LINEAR[pixels] @ _LMS) @ _LAB
    return found


def _edges(lightness: Plane) -> Plane:
    """How much edge there is around every place: the length of the gradient, averaged over cells."""
    down = np.diff(lightness, axis=0, append=lightness[-1:])
    right = np.diff(lightness, axis=1, append=lightness[:, -1:])
    edges = np.sqrt(down**2 + right**2)
    for _ in range(CELLS):
        if min(edges.shape) > 1:
            edges = _halved(edges)
    return edges


def _halved(plane: Plane) -> Plane:
    """Means of 2 x 2; a last odd row or column counts on finer scales only."""
    height, width = (side - side % 2 for side in plane.shape[:2])
    rows = plane[0:height:2, :width] + plane[1:height:2, :width]
    return (rows[:, 0::2] + rows[:, 1::2]) / 4


def _rms(difference: Plane) -> float:
    """Over the places of [h, w] or [h, w, 3], with the Euclidean norm of a place's three values."""
    height, width = difference.shape[:2]
    flat = difference.ravel()  # einsum: BLAS starts threads for a product of this size, which cost more than it
    return math.sqrt(np.einsum("i,i", flat, flat) / (height * width))


def _resized(pixels: Pixels, like: Pixels) -> Pixels:
    height, width = like.shape[:2]
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
