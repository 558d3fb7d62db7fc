"""The reward without a judge: the share of the distance from source to target that an edit removes. A few ms an edit.

The distance of two images is computed in Oklab, where equal distances look equally large (Ottosson, "A perceptual color
space for image processing", 2020, bottosson.github.io/posts/oklab), on block means of 1, 2, 4, 8 and 16 pixels a side.
On each of these scales it is the sum of

- colour: the root mean square over the image of the Euclidean distance of two colours, and
- structure: the root mean square of the difference in local edge strength, which is the length of the gradient of
  lightness, averaged over 4 x 4 blocks of the scale.

The total is their mean over scales, weighted by the side of the block: noise loses half of its amplitude from one scale
to the next, objects lose nothing. So fine scales measure where something is, coarse ones and the structure whether it
is there: of a thousand snow flakes, none has to be at its exact position. A root mean square keeps a strong change in a
corner from being hidden by weak noise everywhere. The total satisfies the triangle inequality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from earl_cli.rewards.reward import NO_TARGET, Edit, Pixels, Score

Plane: TypeAlias = NDArray[np.float64]

MIN_REWARD, MAX_REWARD = -1.0, 1.0
MIN_DISTANCE = 0.01
"""An invisible distance: about half of a just noticeable difference, all over the image."""
SCALES = 5
CODE_SIDE = 8
"""Pixels a side of a cell of `distance_map`: the area of a code."""
EDGE_HALVINGS = 2
"""How often edge strength is averaged over 2 x 2 blocks."""

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
    """What distances are computed from: on each scale the Oklab colours [h, w, 3], and edge strength [h', w']."""

    colours: tuple[Plane, ...]
    edges: tuple[Plane, ...]


@dataclass(frozen=True)
class Distance:
    """The distance of two images, in units of Oklab: 0.02 is just noticeable, black to white is 1."""

    colour: float
    structure: float

    @property
    def total(self) -> float:
        """The sum of both."""
        return self.colour + self.structure


def reference_reward(edits: Sequence[Edit], /) -> list[Score]:
    """1 − d(edited, target) / d(source, target) of each edit, in [−1, 1].

    1 is the target itself, 0 the unchanged source, −1 an invalid or incomplete edit and anything at least twice as far
    from the target as the source is. If the distance of source and target is below `MIN_DISTANCE`, that is used in its
    place: then nothing should change, and visible changes cost. Images of another size are resized to the target's.
    Parts: ``removed``, the value before clipping, and the same for ``colour`` and ``structure`` alone. Without a target
    there is no value.
    """
    cached: dict[tuple[int, tuple[int, ...]], ImageFeatures] = {}  # a group's edits share source and target

    def features(pixels: Pixels, like: Pixels) -> ImageFeatures:
        key = (id(pixels), like.shape)
        if key not in cached:
            cached[key] = image_features(_resized(pixels, like))
        return cached[key]

    def score(edit: Edit) -> Score:
        if edit.target is None:
            return Score(None, reason=NO_TARGET)
        if edit.edited is None:
            return Score(MIN_REWARD, reason="the edit is invalid or incomplete")
        target = features(edit.target, edit.target)
        edited = image_features(_resized(edit.edited, edit.target))
        remaining = distance(edited, target)
        initial = distance(features(edit.source, edit.target), target)
        scale = max(initial.total, MIN_DISTANCE)
        parts = {
            "removed": 1 - remaining.total / scale,
            "colour": _removed(remaining.colour, initial.colour),
            "structure": _removed(remaining.structure, initial.structure),
        }
        places = 1 - distance_map(edited, target) / scale
        return Score(min(MAX_REWARD, max(MIN_REWARD, parts["removed"])), parts, places=places)

    return [score(edit) for edit in edits]


def _removed(remaining: float, initial: float) -> float:
    return 1 - remaining / max(initial, MIN_DISTANCE)


def distance(one: ImageFeatures, other: ImageFeatures) -> Distance:
    """Of two images of one size."""
    colours = [_rms(a - b) for a, b in zip(one.colours, other.colours, strict=True)]
    edges = [_rms(a - b) for a, b in zip(one.edges, other.edges, strict=True)]
    sides = [1 << scale for scale in range(len(colours))]
    return Distance(float(np.average(colours, weights=sides)), float(np.average(edges, weights=sides)))


def distance_map(one: ImageFeatures, other: ImageFeatures) -> Plane:
    """The contribution of each 8 x 8 pixel cell to the total distance of two images of one size, [h, w].

    A root mean square is the mean of the squares, each divided by it; so the mean of the map is the distance, but for a
    narrower last row or column. A block of a coarser scale counts for all cells that it covers.
    """
    height, width = (-(-side // CODE_SIDE) for side in one.colours[0].shape[:2])
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
    """``plane`` resampled to [height, width]: block means along an axis that is finer, repeats along a coarser one."""
    for axis, size in enumerate((height, width)):
        current = plane.shape[axis]
        starts = np.arange(size) * current // size
        if current > size:
            counts = np.diff(starts, append=current)
            shape = [1, 1]
            shape[axis] = size
            plane = np.add.reduceat(plane, starts, axis=axis) / counts.reshape(shape)
        else:
            plane = plane.take(starts, axis=axis)
    return plane


def image_features(pixels: Pixels) -> ImageFeatures:
    """Of uint8[h, w, 3], on up to `SCALES` scales; on fewer where a side would have less than one pixel."""
    colours = [oklab(pixels)]
    while len(colours) < SCALES and min(colours[-1].shape[:2]) > 1:
        colours.append(_halved(colours[-1]))
    return ImageFeatures(tuple(colours), tuple(_edges(scale[..., 0]) for scale in colours))


def oklab(pixels: Pixels) -> Plane:
    """sRGB uint8[..., 3] to Oklab [..., 3]: lightness from 0 to 1, green to red, blue to yellow."""
    found: Plane = np.cbrt(_LINEAR[pixels] @ _LMS) @ _LAB
    return found


def _edges(lightness: Plane) -> Plane:
    """Local edge strength: the length of the gradient, averaged over 4 x 4 blocks."""
    down = np.diff(lightness, axis=0, append=lightness[-1:])
    right = np.diff(lightness, axis=1, append=lightness[:, -1:])
    edges = np.sqrt(down**2 + right**2)
    for _ in range(EDGE_HALVINGS):
        if min(edges.shape) > 1:
            edges = _halved(edges)
    return edges


def _halved(plane: Plane) -> Plane:
    """Means of 2 x 2 blocks; a last odd row or column is dropped."""
    height, width = (side - side % 2 for side in plane.shape[:2])
    rows = plane[0:height:2, :width] + plane[1:height:2, :width]
    return (rows[:, 0::2] + rows[:, 1::2]) / 4


def _rms(difference: Plane) -> float:
    """Root mean square over the pixels of [h, w], or of [h, w, 3] with the Euclidean norm of a pixel's values."""
    height, width = difference.shape[:2]
    flat = difference.ravel()  # einsum: BLAS would start threads for this product, which cost more than it does
    return math.sqrt(np.einsum("i,i", flat, flat) / (height * width))


def _resized(pixels: Pixels, like: Pixels) -> Pixels:
    height, width = like.shape[:2]
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
