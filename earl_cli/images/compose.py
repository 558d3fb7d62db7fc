"""An edit drawn small and soft by the model, brought to the photo's own size without losing the photo's detail.

The two small pictures, before and after, only say what changed; that is read as a mirroring, a change of colours, a
blur, shapes laid on top and, where none of these explains it, new content. The photo itself goes through the same.
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
    connected,
    enlarge_rows,
    gauss,
    resized,
    shrink,
    smoothstep,
)
from earl_cli.images.color import on_white
from earl_cli.images.overlay import FlatShape, find_shapes, opacity
from earl_cli.images.recolor import (
    EVERYWHERE,
    LADDER,
    Fit,
    Recolor,
    choose_recolor,
    find_tone,
    refine_recolor,
    robust_mean,
    softness,
)

T = TypeVar("T", np.uint8, np.float32)
MISSING = {
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
EFFECTS = tuple(MISSING)
"""What an edit may do to a photo: change colours; change them alike everywhere, greys to greys; make them depend on
lightness alone; take them away; soften the photo; swap left and right; lay a shape on top; draw something new."""
COLOURS = ("recolor", "grade", "tone", "grey")
UNCHANGED = Recolor()
EXPECTED = 0.5  # of the evidence that an unexpected shape needs is enough for one that is asked for
Flip = tuple[int, int]
FLIPS: tuple[Flip, ...] = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # steps over rows and columns
SIGMAS = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.7, 3.0, 3.5, 4.0, 5.0, 6.0)
LEAST_NOISE = 0.03
STRIP = 16  # rows worked on at once: small enough for the processor's cache
LEAST_CELLS = 5


class Composed(NamedTuple):
    """An edited photo uint8[H, W, 3], and in words which of its known effects the model didn't draw."""

    pixels: NDArray[np.uint8]
    missing: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Change:
    """What happened between two small pictures of ``height`` x ``width`` pixels, in the order in which it applies.

    ``flip``, ``sigma`` (a blur, in small pixels), ``recolor``, then ``content`` [h, w, 3] to the ``share`` [h, w, 1]
    in which it replaces the photo (None: nowhere), then ``shapes``.
    """

    height: int
    width: int
    flip: Flip = (1, 1)
    sigma: float = 0.0
    recolor: Recolor = UNCHANGED
    content: Plane | None = None
    share: Plane | None = None
    shapes: tuple[FlatShape, ...] = ()


def compose(photo: NDArray[np.uint8], before: Plane, after: Plane, effects: Collection[str] | None = None) -> Composed:
    """The edit of ``photo`` uint8[H, W, 3] that the model drew as ``before`` -> ``after``, float32[h, w, 3] in 0..1.

    ``before`` is the model's own picture of the photo, so that what it can't draw isn't taken for a change; where the
    two are equal, the photo comes back as it is. Both have the same sides, multiples of 8. A fourth channel of the
    photo is its opacity: the model saw the photo on white, but its colours change as they are, without the white in
    them.
    ``effects`` (some of `EFFECTS`) are all that the edit can have: whatever else is in ``after`` was drawn wrong. None:
    it may be anything.
    """
    if np.array_equal(before, after):
        return Composed(photo.copy(), tuple(MISSING[effect] for effect in effects or ()))
    change = find_change(_on_white(photo), before, after, effects)
    return Composed(apply_change(change, photo), missing(change, effects or ()))


def _on_white(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return photo if photo.shape[2] == 3 else np.asarray(on_white(Image.fromarray(photo)))


def find_change(
    photo: NDArray[np.uint8], before: Plane, after: Plane, effects: Collection[str] | None = None
) -> Change:
    """Read the change off the small pictures (arguments as in :func:`compose`)."""
    return _any_change(photo, before, after) if effects is None else _known_change(photo, before, after, effects)


def _known_change(photo: NDArray[np.uint8], before: Plane, after: Plane, effects: Collection[str]) -> Change:
    """The strength of effects that the edit is known to have."""
    height, width, _ = after.shape
    sharp = resized(photo, 2 * width, 2 * height)
    flip = nearer_flip(before, after) if "mirror" in effects else FLIPS[0]
    sharp, before = flipped(sharp, flip), flipped(before, flip)
    soft = max(0.5, softness(shrink(sharp, 2), before))
    sigma = likeliest_blur(before, after) if "blur" in effects else 0.0
    if sigma:
        sharp, before = gauss(sharp, 2 * sigma), gauss(before, sigma)
    recolor = UNCHANGED
    colours = [effect for effect in COLOURS if effect in effects]  # the first allows most
    if colours:
        ladder, cast = (LADDER if colours[0] == "recolor" else EVERYWHERE), colours[0] != "grade"
        fit = choose_recolor(before, after, ladder, cast)
        recolor = refine_recolor(fit, sharp, before, after, cast) if fit else recolor
        if cast:
            only = colours[0] if colours[0] in ("tone", "grey") else None
            recolor = replace(recolor, tone=find_tone(shrink(sharp, 2), before, after, only))
    model = recolor(before)
    noise = max(LEAST_NOISE, float(np.median(cell_errors(after - model))))
    kinds = [kind for kind in ("disc", "rectangle") if kind in effects]
    shapes, model = find_shapes(model, after, noise, soft, kinds, len(kinds), EXPECTED) if kinds else ((), model)
    share = find_content(model, after, noise) if "content" in effects else None
    return Change(height, width, flip, sigma, recolor, after if share is not None else None, share, shapes)


def missing(change: Change, effects: Collection[str]) -> tuple[str, ...]:
    """Which of the ``effects`` that an edit is known to have aren't in the change, in words."""
    there = {
        "mirror": change.flip != FLIPS[0],
        "blur": change.sigma > 0,
        "disc": any(shape.kind == "disc" for shape in change.shapes),
        "rectangle": any(shape.kind == "rectangle" for shape in change.shapes),
        "content": change.content is not None,
    }
    colours = change.recolor is not UNCHANGED
    return tuple(MISSING[effect] for effect in effects if not there.get(effect, colours))


def _any_change(photo: NDArray[np.uint8], before: Plane, after: Plane) -> Change:
    """What an edit did of which nothing is known: every effect must show clearly."""
    flip = find_flip(before, after)
    height, width, _ = after.shape
    sharp, before = flipped(resized(photo, 2 * width, 2 * height), flip), flipped(before, flip)
    soft = max(0.5, softness(shrink(sharp, 2), before))
    fit = choose_recolor(before, after)
    sigma = find_blur(before, after, fit)
    if sigma:
        sharp, before = gauss(sharp, 2 * sigma), gauss(before, sigma)
        fit = choose_recolor(before, after)
    recolor = refine_recolor(fit, sharp, before, after) if fit else UNCHANGED
    recolor = replace(recolor, tone=find_tone(shrink(sharp, 2), before, after)) if fit else recolor
    if flip != FLIPS[0]:  # a mirrored picture is hard to draw: what is wrong in it would pass for something new
        return Change(height, width, flip, sigma, recolor)
    model = recolor(before)
    noise = max(LEAST_NOISE, float(np.median(cell_errors(after - model))))
    shapes, model = find_shapes(model, after, noise, soft)
    share = find_content(model, after, noise)
    return Change(height, width, flip, sigma, recolor, after if share is not None else None, share, shapes)


def flipped(planes: NDArray[T], flip: Flip) -> NDArray[T]:
    return np.ascontiguousarray(planes[:: flip[0], :: flip[1]])


def nearer_flip(before: Plane, after: Plane) -> Flip:
    """Swapping left and right, or not: which brings ``before`` nearer to ``after``."""
    return min(FLIPS[:2], key=lambda flip: float(((flipped(before, flip) - after) ** 2).mean()))


def find_flip(before: Plane, after: Plane) -> Flip:
    """The mirroring whose detail explains that of ``after`` best; none unless it explains 5 % more.

    Detail, at about the size of a cell, isn't fooled by fog or sunsets, which have a top and a bottom of their own.
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


def _detail(picture: Plane) -> Plane:
    """What is left of [h, w, 3] without its large forms, at half the size: [h * w / 4, 3]."""
    small = shrink(picture, 2)
    return (small - gauss(small, 2.5)).reshape(-1, 3)


def find_blur(before: Plane, after: Plane, fit: Fit | None) -> float:
    """The sigma in pixels by which ``after`` is a blurred ``before``; 0 if it isn't.

    A blur must bring the two much nearer, explain ``after`` about as well as the best change of colours does, and show
    in the picture itself: ``after`` is less steep within cells (between them, sampled pictures always have steps).
    """
    same = _cell_squares(before, after)
    blurs = [_cell_squares(gauss(before, sigma), after) for sigma in SIGMAS]
    colors = fit.errors if fit else same
    usual = min(float(np.median(errors)) for errors in (*blurs, same, colors))
    costs = [robust_mean(errors, usual) for errors in blurs]
    best = int(np.argmin(costs))
    nearer = costs[best] < 0.88 * robust_mean(same, usual) and costs[best] < 1.2 * robust_mean(colors, usual)
    before_steep, after_steep = _steepness(before), _steepness(after)
    rich = before_steep >= np.quantile(before_steep, 0.3)
    smoother = after_steep[rich].mean() < 0.88**2 * before_steep[rich].mean()
    return SIGMAS[best] if nearer and smoother else 0.0


def likeliest_blur(before: Plane, after: Plane) -> float:
    """The sigma in pixels with which a blurred ``before`` is most like ``after``; 0 if no blur brings them nearer."""
    same = _cell_squares(before, after)
    blurs = [_cell_squares(gauss(before, sigma), after) for sigma in SIGMAS]
    usual = min(float(np.median(errors)) for errors in (*blurs, same))
    costs = [robust_mean(errors, usual) for errors in (same, *blurs)]
    return (0.0, *SIGMAS)[int(np.argmin(costs))]


def _cell_squares(first: Plane, second: Plane) -> NDArray[np.float64]:
    return cell_errors(shrink(first - second, 2), CELL // 2) ** 2


def _steepness(picture: Plane) -> NDArray[np.float64]:
    tiles = cells(picture).reshape(-1, CELL, CELL, 3).astype(np.float64)
    down, across = np.diff(tiles, axis=1), np.diff(tiles, axis=2)
    steepness: NDArray[np.float64] = (down**2).mean(axis=(1, 2, 3)) + (across**2).mean(axis=(1, 2, 3))
    return steepness


def find_content(model: Plane, after: Plane, noise: float) -> Plane | None:
    """Where ``after`` shows what no formula explains, [h, w, 1] from 0 to 1; None for nowhere.

    Cells count where their difference is far above the usual one and the texture's, and only in groups, for a few
    cells in any sampled picture are just wrong.
    """
    height, width, _ = after.shape
    texture = np.maximum(gauss(model**2, 2.5) - gauss(model, 2.5) ** 2, 0).mean(-1, keepdims=True)
    energy = ((after - model) ** 2).mean(-1, keepdims=True) / (noise**2 + 0.15 * texture)
    strange = cells(energy).mean(axis=(1, 2)).reshape(height // CELL, width // CELL)
    groups = connected(strange > 6)
    large = np.bincount(groups.ravel()) >= LEAST_CELLS
    large[0] = False
    if not large.any():
        return None
    around = connected(strange > 2.5)
    kept = np.isin(around, np.unique(around[large[groups]]))
    area = np.repeat(np.repeat(kept, CELL, 0), CELL, 1)[..., None].astype(np.float32)
    return smoothstep(gauss(area, 3), 0.1, 0.6) * smoothstep(gauss(energy, 1.5), 1, 3)


def blurred(photo: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))


def apply_change(change: Change, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``photo`` uint8[H, W, 3 or 4] changed in the same way at its own size, strip by strip.

    Opacity is mirrored and blurred as colours are. Shapes are opaque; of new content only its look on white is known,
    so it makes the photo no more opaque than that takes.
    """
    height, width, _ = photo.shape
    scale_x, scale_y = width / change.width, height / change.height
    scale = min(scale_x, scale_y)  # where the model saw the photo squeezed, sizes go by the short side
    photo = flipped(photo, change.flip)
    if change.sigma:
        photo = blurred(photo, change.sigma * scale)
    shapes = [shape.at(scale_x, scale_y, scale) for shape in change.shapes]
    result = np.empty_like(photo)
    x = np.arange(width, dtype=np.float32)[None] + np.float32(0.5)
    for top in range(0, height, STRIP):
        bottom = min(height, top + STRIP)
        rows = photo[top:bottom].astype(np.float32)
        rows *= 1 / 255
        rows[..., :3] = change.recolor(rows[..., :3], 2 * top / height - 1, 2 * bottom / height - 1)
        if change.content is not None and change.share is not None:
            content = enlarge_rows(change.content, width, height, top, bottom)
            _redraw(content, enlarge_rows(change.share, width, height, top, bottom), rows)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
        for shape in shapes:
            cover = opacity(shape.kind, shape.place, x, y, 0.4)[..., None]
            _lay(np.array(shape.color, np.float32), cover, rows)
        result[top:bottom] = np.clip(rows * 255 + 0.5, 0, 255)
    return result


def _redraw(content: Plane, share: Plane, rows: Plane) -> None:
    """Put ``content`` in the place of ``rows`` [h, w, 3 or 4], in this ``share`` [h, w, 1], as it looks on white."""
    if rows.shape[2] == 3:
        rows += share * (content - rows)
        return
    flat = 1 + rows[..., 3:] * (rows[..., :3] - 1)
    flat += share * (content - flat)
    opacities = np.maximum(rows[..., 3:], (1 - flat).max(axis=-1, keepdims=True))
    colors = 1 - (1 - flat) / np.maximum(opacities, 1e-6)
    np.copyto(rows, np.concatenate([colors, opacities], axis=-1), where=share > 0)


def _lay(color: Plane, cover: Plane, rows: Plane) -> None:
    """Put ``color`` over ``rows`` [h, w, 3 or 4], in the share ``cover`` [h, w, 1] (Porter and Duff's "over")."""
    if rows.shape[2] == 4:
        opacities = cover + rows[..., 3:] * (1 - cover)
        cover = (cover / np.maximum(opacities, 1e-6)).astype(np.float32)
        rows[..., 3:] = opacities
    rows[..., :3] += cover * (color - rows[..., :3])
