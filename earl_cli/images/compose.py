"""The model's small and soft edit, applied to the photo at its own size without loss of detail.

The two small images, before and after, are only used to estimate what changed: a mirroring, a change of colours, a
blur, shapes on top and, where none of these explains it, new content. The same change is then applied to the photo
itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from earl_cli.images.arrays import (
    CELL,
    Plane,
    cell_errors,
    cells,
    connected_regions,
    downsample,
    enlarge_rows,
    gaussian_blur,
    resized,
    smoothstep,
)
from earl_cli.images.color import on_white
from earl_cli.images.overlay import FlatShape, find_shapes, opacity
from earl_cli.images.recolor import (
    FORMULAS,
    POSITION_FREE_FORMULAS,
    Fit,
    Recolor,
    choose_recolor,
    find_tone,
    refine_recolor,
    robust_mean,
    softness,
)

T = TypeVar("T", np.uint8, np.float32)
EFFECT_DESCRIPTIONS = {
    "recolor": "change of colours",
    "grade": "change of colours",
    "tone": "change of colours",
    "grey": "change of colours",
    "blur": "blur",
    "mirror": "mirroring",
    "disc": "disc",
    "rectangle": "rectangle",
    "content": "new content",
}
EFFECTS = tuple(EFFECT_DESCRIPTIONS)
"""What an edit may do to a photo: change colours; change them equally everywhere and keep greys grey; make them depend
on lightness alone; remove them; blur; swap left and right; add a shape; add something new."""
COLOUR_EFFECTS = ("recolor", "grade", "tone", "grey")
UNCHANGED = Recolor()
DOUBT_WHEN_EXPECTED = 0.5  # a shape that the instruction names needs this share of the evidence of an unexpected one
Flip = tuple[int, int]
FLIPS: tuple[Flip, ...] = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # steps over rows and columns
SIGMAS = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.7, 3.0, 3.5, 4.0, 5.0, 6.0)
MIN_NOISE = 0.03
STRIP_ROWS = 16  # at a time: few enough for the processor's cache
MIN_CELLS = 5


class Composed(NamedTuple):
    """An edited photo uint8[H, W, 3 or 4], and descriptions of the expected effects that the model's edit lacks."""

    pixels: NDArray[np.uint8]
    missing: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Change:
    """The change between two small images of ``height`` x ``width`` pixels.

    Its steps in order: ``flip``; ``sigma``, of a blur in small pixels; ``recolor``; ``content`` [h, w, 3] blended in by
    ``content_mask`` [h, w, 1] (None: nowhere); ``shapes``.
    """

    height: int
    width: int
    flip: Flip = (1, 1)
    sigma: float = 0.0
    recolor: Recolor = UNCHANGED
    content: Plane | None = None
    content_mask: Plane | None = None
    shapes: tuple[FlatShape, ...] = ()


def compose(photo: NDArray[np.uint8], before: Plane, after: Plane, effects: Collection[str] | None = None) -> Composed:
    """Apply to ``photo`` uint8[H, W, 3 or 4] the change from ``before`` to ``after``, float32[h, w, 3] in 0..1.

    ``before`` is the model's reconstruction of the photo, so that reconstruction errors aren't taken for a change;
    where the two are equal, the photo is returned unchanged. Both have the same size, multiples of 8. A fourth channel
    of the photo is its opacity: the model sees the photo on white, but its colours are changed without that white.
    ``effects``, a subset of `EFFECTS`, are the only ones that the edit can have; anything else in ``after`` is an error
    of the model. None allows any.
    """
    if np.array_equal(before, after):
        return Composed(photo.copy(), tuple(EFFECT_DESCRIPTIONS[effect] for effect in effects or ()))
    change = find_change(_on_white(photo), before, after, effects)
    return Composed(apply_change(change, photo), missing_effects(change, effects or ()))


def _on_white(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return photo if photo.shape[2] == 3 else np.asarray(on_white(Image.fromarray(photo)))


def find_change(
    photo: NDArray[np.uint8], before: Plane, after: Plane, effects: Collection[str] | None = None
) -> Change:
    """Estimate the change from the small images (arguments as in `compose`)."""
    return _any_change(photo, before, after) if effects is None else _known_change(photo, before, after, effects)


def _known_change(photo: NDArray[np.uint8], before: Plane, after: Plane, effects: Collection[str]) -> Change:
    """Estimate the strength of effects that the edit is known to have."""
    height, width, _ = after.shape
    sharp = resized(photo, 2 * width, 2 * height)
    flip = best_horizontal_flip(before, after) if "mirror" in effects else FLIPS[0]
    sharp, before = flipped(sharp, flip), flipped(before, flip)
    soft = max(0.5, softness(downsample(sharp, 2), before))
    sigma = best_blur(before, after) if "blur" in effects else 0.0
    if sigma:
        sharp, before = gaussian_blur(sharp, 2 * sigma), gaussian_blur(before, sigma)
    recolor = UNCHANGED
    colours = [effect for effect in COLOUR_EFFECTS if effect in effects]  # the first allows most
    if colours:
        ladder, cast = (FORMULAS if colours[0] == "recolor" else POSITION_FREE_FORMULAS), colours[0] != "grade"
        fit = choose_recolor(before, after, ladder, cast)
        recolor = refine_recolor(fit, sharp, before, after, cast) if fit else recolor
        if cast:
            only = colours[0] if colours[0] in ("tone", "grey") else None
            recolor = replace(recolor, tone=find_tone(downsample(sharp, 2), before, after, only))
    model = recolor(before)
    noise = max(MIN_NOISE, float(np.median(cell_errors(after - model))))
    kinds = [kind for kind in ("disc", "rectangle") if kind in effects]
    shapes, model = (
        find_shapes(model, after, noise, soft, kinds, len(kinds), DOUBT_WHEN_EXPECTED) if kinds else ((), model)
    )
    mask = find_content(model, after, noise) if "content" in effects else None
    return Change(height, width, flip, sigma, recolor, after if mask is not None else None, mask, shapes)


def missing_effects(change: Change, effects: Collection[str]) -> tuple[str, ...]:
    """Descriptions of those of ``effects`` that the change lacks."""
    found = {
        "mirror": change.flip != FLIPS[0],
        "blur": change.sigma > 0,
        "disc": any(shape.kind == "disc" for shape in change.shapes),
        "rectangle": any(shape.kind == "rectangle" for shape in change.shapes),
        "content": change.content is not None,
    }
    has_recolor = change.recolor is not UNCHANGED
    return tuple(EFFECT_DESCRIPTIONS[effect] for effect in effects if not found.get(effect, has_recolor))


def _any_change(photo: NDArray[np.uint8], before: Plane, after: Plane) -> Change:
    """Estimate the change of an edit whose effects aren't known; each effect must show clearly."""
    flip = find_flip(before, after)
    height, width, _ = after.shape
    sharp, before = flipped(resized(photo, 2 * width, 2 * height), flip), flipped(before, flip)
    soft = max(0.5, softness(downsample(sharp, 2), before))
    fit = choose_recolor(before, after)
    sigma = find_blur(before, after, fit)
    if sigma:
        sharp, before = gaussian_blur(sharp, 2 * sigma), gaussian_blur(before, sigma)
        fit = choose_recolor(before, after)
    recolor = refine_recolor(fit, sharp, before, after) if fit else UNCHANGED
    recolor = replace(recolor, tone=find_tone(downsample(sharp, 2), before, after)) if fit else recolor
    if flip != FLIPS[0]:  # a model's mirrored images have errors that would be taken for new content
        return Change(height, width, flip, sigma, recolor)
    model = recolor(before)
    noise = max(MIN_NOISE, float(np.median(cell_errors(after - model))))
    shapes, model = find_shapes(model, after, noise, soft)
    mask = find_content(model, after, noise)
    return Change(height, width, flip, sigma, recolor, after if mask is not None else None, mask, shapes)


def flipped(planes: NDArray[T], flip: Flip) -> NDArray[T]:
    return np.ascontiguousarray(planes[:: flip[0], :: flip[1]])


def best_horizontal_flip(before: Plane, after: Plane) -> Flip:
    """Whether left and right are swapped: which of the two brings ``before`` nearer to ``after``."""
    return min(FLIPS[:2], key=lambda flip: float(((flipped(before, flip) - after) ** 2).mean()))


def find_flip(before: Plane, after: Plane) -> Flip:
    """The mirroring that explains the detail of ``after`` best; none unless it explains 5 % more.

    Only detail, at about the size of a cell, is compared: fog and sunsets add large gradients.
    """
    detail = _detail(after)
    power = max(float((detail**2).sum()), 1e-9)
    explained = []
    for flip in FLIPS:
        guide = _detail(flipped(before, flip))
        matrix = np.linalg.lstsq(guide, detail, rcond=None)[0]
        explained.append(1 - float(((detail - guide @ matrix) ** 2).sum()) / power)
    best = int(np.argmax(explained))
    return FLIPS[best] if explained[best] > explained[0] + 0.05 else FLIPS[0]


def _detail(image: Plane) -> Plane:
    """The high frequencies of [h, w, 3], at half the size: [h * w / 4, 3]."""
    small = downsample(image, 2)
    return (small - gaussian_blur(small, 2.5)).reshape(-1, 3)


def find_blur(before: Plane, after: Plane, fit: Fit | None) -> float:
    """The sigma in pixels of the blur from ``before`` to ``after``; 0 if there is none.

    A blur must bring the two much nearer, explain ``after`` about as well as the best change of colours does, and
    reduce the gradients within cells (between cells, sampled images always have steps).
    """
    same = _cell_squares(before, after)
    blurs = [_cell_squares(gaussian_blur(before, sigma), after) for sigma in SIGMAS]
    colors = fit.errors if fit else same
    usual = min(float(np.median(errors)) for errors in (*blurs, same, colors))
    costs = [robust_mean(errors, usual) for errors in blurs]
    best = int(np.argmin(costs))
    nearer = costs[best] < 0.88 * robust_mean(same, usual) and costs[best] < 1.2 * robust_mean(colors, usual)
    before_steep, after_steep = _steepness(before), _steepness(after)
    rich = before_steep >= np.quantile(before_steep, 0.3)
    smoother = after_steep[rich].mean() < 0.88**2 * before_steep[rich].mean()
    return SIGMAS[best] if nearer and smoother else 0.0


def best_blur(before: Plane, after: Plane) -> float:
    """The sigma in pixels with which a blurred ``before`` is nearest to ``after``; 0 if no blur brings them nearer."""
    same = _cell_squares(before, after)
    blurs = [_cell_squares(gaussian_blur(before, sigma), after) for sigma in SIGMAS]
    usual = min(float(np.median(errors)) for errors in (*blurs, same))
    costs = [robust_mean(errors, usual) for errors in (same, *blurs)]
    return (0.0, *SIGMAS)[int(np.argmin(costs))]


def _cell_squares(first: Plane, second: Plane) -> NDArray[np.float64]:
    return cell_errors(downsample(first - second, 2), CELL // 2) ** 2


def _steepness(image: Plane) -> NDArray[np.float64]:
    tiles = cells(image).reshape(-1, CELL, CELL, 3).astype(np.float64)
    down, across = np.diff(tiles, axis=1), np.diff(tiles, axis=2)
    steepness: NDArray[np.float64] = (down**2).mean(axis=(1, 2, 3)) + (across**2).mean(axis=(1, 2, 3))
    return steepness


def find_content(model: Plane, after: Plane, noise: float) -> Plane | None:
    """The mask [h, w, 1], 0 to 1, of what in ``after`` is new content; None if nothing is.

    These are cells that differ from ``model`` by much more than its noise and texture explain, in connected groups: in
    any sampled image a few single cells are wrong.
    """
    height, width, _ = after.shape
    texture = np.maximum(gaussian_blur(model**2, 2.5) - gaussian_blur(model, 2.5) ** 2, 0).mean(-1, keepdims=True)
    energy = ((after - model) ** 2).mean(-1, keepdims=True) / (noise**2 + 0.15 * texture)
    residual = cells(energy).mean(axis=(1, 2)).reshape(height // CELL, width // CELL)
    groups = connected_regions(residual > 6)
    large = np.bincount(groups.ravel()) >= MIN_CELLS
    large[0] = False
    if not large.any():
        return None
    extended = connected_regions(residual > 2.5)
    kept = np.isin(extended, np.unique(extended[large[groups]]))
    area = np.repeat(np.repeat(kept, CELL, 0), CELL, 1)[..., None].astype(np.float32)
    return smoothstep(gaussian_blur(area, 3), 0.1, 0.6) * smoothstep(gaussian_blur(energy, 1.5), 1, 3)


def blurred(photo: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))


def apply_change(change: Change, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Apply the change to ``photo`` uint8[H, W, 3 or 4] at its own size, strip by strip.

    Opacity is mirrored and blurred as colours are. Shapes are opaque. New content is known on white only, so it gets
    the least opacity that gives that appearance.
    """
    height, width, _ = photo.shape
    scale_x, scale_y = width / change.width, height / change.height
    scale = min(scale_x, scale_y)  # they differ where the photo was squeezed for the model
    photo = flipped(photo, change.flip)
    if change.sigma:
        photo = blurred(photo, change.sigma * scale)
    shapes = [shape.at(scale_x, scale_y, scale) for shape in change.shapes]
    result = np.empty_like(photo)
    x = np.arange(width, dtype=np.float32)[None] + np.float32(0.5)
    for top in range(0, height, STRIP_ROWS):
        bottom = min(height, top + STRIP_ROWS)
        rows = photo[top:bottom].astype(np.float32)
        rows *= 1 / 255
        rows[..., :3] = change.recolor(rows[..., :3], 2 * top / height - 1, 2 * bottom / height - 1)
        if change.content is not None and change.content_mask is not None:
            content = enlarge_rows(change.content, width, height, top, bottom)
            _blend_content(content, enlarge_rows(change.content_mask, width, height, top, bottom), rows)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
        for shape in shapes:
            coverage = opacity(shape.kind, shape.geometry, x, y, 0.4)[..., None]
            _alpha_over(np.array(shape.color, np.float32), coverage, rows)
        result[top:bottom] = np.clip(rows * 255 + 0.5, 0, 255)
    return result


def _blend_content(content: Plane, mask: Plane, rows: Plane) -> None:
    """Blend ``content``, on white, into ``rows`` [h, w, 3 or 4] in place, by ``mask`` [h, w, 1]."""
    if rows.shape[2] == 3:
        rows += mask * (content - rows)
        return
    flat = 1 + rows[..., 3:] * (rows[..., :3] - 1)
    flat += mask * (content - flat)
    opacities = np.maximum(rows[..., 3:], (1 - flat).max(axis=-1, keepdims=True))
    colors = 1 - (1 - flat) / np.maximum(opacities, 1e-6)
    np.copyto(rows, np.concatenate([colors, opacities], axis=-1), where=mask > 0)


def _alpha_over(color: Plane, coverage: Plane, rows: Plane) -> None:
    """Put ``color`` over ``rows`` [h, w, 3 or 4] in place, with opacity ``coverage`` [h, w, 1] (Porter-Duff "over")."""
    if rows.shape[2] == 4:
        opacities = coverage + rows[..., 3:] * (1 - coverage)
        coverage = (coverage / np.maximum(opacities, 1e-6)).astype(np.float32)
        rows[..., 3:] = opacities
    rows[..., :3] += coverage * (color - rows[..., :3])
