"""The change of colours between two small images, as a formula that can be applied to the photo itself.

A colour changes by a polynomial of itself, with hinges over its lightness, and of its position (fog and sunsets are
gradients). Cross-validation over cells decides how rich the formula is, because the image that it is fitted to is
noisy: every cell was sampled by a language model, and some are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earl_cli.images.arrays import CELL, Plane, cell_errors, cells, downsample, gaussian_blur

LIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)
HINGES = (0.2, 0.4, 0.6, 0.8)
WIDTHS = {"linear": 4, "square": 6, "tone": 4}
EQUAL_ON_GREYS = {"linear": ((0,), (1, 2, 3)), "square": ((0, 1, 2, 3, 4, 5),), "tone": ((0,), (1,), (2,), (3,))}
"""Features of a group that have equal values for every grey: there, only the sum of their weights matters."""
SCALES = {"linear": 0.5, "square": 0.3, "tone": 0.3}
"""The standard deviation of each group's Gaussian prior, around "nothing changes"."""


@dataclass(frozen=True)
class Term:
    """A group of colour features times x**a * y**b, where x and y are the position in the image, from -1 to 1."""

    group: str
    a: int = 0
    b: int = 0

    @property
    def scale(self) -> float:
        return SCALES[self.group] * (1.0, 0.4, 0.2)[self.a + self.b]


LINEAR, SQUARE, TONE = Term("linear"), Term("square"), Term("tone")
TILT = (Term("linear", 1, 0), Term("linear", 0, 1))
BOW = (Term("linear", 2, 0), Term("linear", 1, 1), Term("linear", 0, 2))
FORMULAS: tuple[tuple[Term, ...], ...] = (
    (LINEAR,),
    (LINEAR, SQUARE),
    (LINEAR, SQUARE, TONE),
    (LINEAR, SQUARE, *TILT),
    (LINEAR, SQUARE, TONE, *TILT, Term("tone", 0, 1)),
    (LINEAR, SQUARE, TONE, *TILT, Term("tone", 0, 1), *BOW),
)
POSITION_FREE_FORMULAS = tuple(terms for terms in FORMULAS if not any(term.a or term.b for term in terms))
RICHER = 0.96  # a richer formula must bring the cross-validation error below this share of a simpler one's,
ANY = 0.95  # the first formula below this share of the error without a change,
POSITION = 0.92  # and the first that depends on the position below this share
NOISE = 0.05
VALUES_PER_CELL = 16  # the pixels of a cell share its error, so they count as one observation
FOLDS = 6
NO_CAST = 1e4  # the penalty of a colour cast on greys, in observations: far more than all cells together
TONE_DEGREE, TONE_RIDGE = 2, 1e-3
NEUTRAL = 0.03  # a tone nearer to grey than this (RMS) is the tokenizer's noise
NEUTRAL_PHOTO = 2.5 / 255
COLOURFUL = 0.03  # RMS difference of colours from the tone; less is the tokenizer's noise
COLLAPSED = 0.15  # the share of differences of colours that may remain


@dataclass(frozen=True, eq=False)
class Recolor:
    """``rgb + features(rgb, x, y) @ weights``, clipped to 0..1; without terms nothing changes.

    With a ``tone`` [degree + 1, 3], only the lightness L of the result matters: the colour is L plus the polynomial of
    L with these coefficients, lowest first. All zero is exactly grey.
    """

    terms: tuple[Term, ...] = ()
    weights: NDArray[np.float32] | None = None
    tone: NDArray[np.float32] | None = None

    @property
    def depends_on_position(self) -> bool:
        """Whether the same colour changes differently at different positions."""
        return any(term.a or term.b for term in self.terms)

    def __call__(self, rgb: Plane, top: float = -1.0, bottom: float = 1.0) -> Plane:
        """The new colours of [h, w, 3], a strip of the photo from ``top`` to ``bottom``, where the photo is -1 to 1."""
        changed = rgb if self.weights is None else self._by_formula(rgb, top, bottom)
        return changed if self.tone is None else apply_tone(changed, self.tone)

    def _by_formula(self, rgb: Plane, top: float, bottom: float) -> Plane:
        assert self.weights is not None
        height, width, _ = rgb.shape
        y = pixel_positions(height, top, bottom)
        parts: dict[tuple[str, int], NDArray[np.float32]] = {}
        start = 0
        for term in self.terms:  # what differs only by the power of y shares its features: weights [h, 3, features]
            stop = start + WIDTHS[term.group]
            share = (y**term.b)[:, None, None] * self.weights[start:stop].T
            key = term.group, term.a
            parts[key] = parts[key] + share if key in parts else share
            start = stop
        planes = np.ascontiguousarray(rgb.transpose(0, 2, 1))
        x = pixel_positions(width)
        features = [group_features(planes, group) * x**a if a else group_features(planes, group) for group, a in parts]
        planes += np.concatenate(list(parts.values()), axis=2) @ np.concatenate(features, axis=1)
        return np.clip(planes, 0, 1, out=planes).transpose(0, 2, 1)


def apply_tone(rgb: Plane, tone: NDArray[np.float32]) -> Plane:
    """Colours [h, w, 3] that depend on lightness alone, see `Recolor`."""
    lightness = rgb @ LIGHTNESS
    planes = np.repeat(lightness[None], 3, axis=0)
    if tone.any():
        planes += np.polynomial.polynomial.polyval(lightness, tone).astype(np.float32)
    return np.clip(planes, 0, 1, out=planes).transpose(1, 2, 0)


def pixel_positions(size: int, first: float = -1.0, last: float = 1.0) -> NDArray[np.float32]:
    """The centres of ``size`` pixels between ``first`` and ``last``."""
    return (first + (np.arange(size, dtype=np.float32) + 0.5) * ((last - first) / size)).astype(np.float32)


def group_features(planes: Plane, group: str) -> Plane:
    """The features of one group, [h, 4 | 6 | 4, w], of colours as planes [h, 3, w]."""
    height, _, width = planes.shape
    result = np.empty((height, WIDTHS[group], width), np.float32)
    if group == "tone":
        lightness = LIGHTNESS @ planes
        for i, hinge in enumerate(HINGES):
            np.maximum(lightness - np.float32(hinge), 0, out=result[:, i])
    elif group == "linear":
        result[:, 0] = 1
        np.subtract(planes, np.float32(0.5), out=result[:, 1:])
    else:
        centred = planes - np.float32(0.5)
        for i, (p, q) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))):
            np.multiply(centred[:, p], centred[:, q], out=result[:, i])
        result *= 2
    return result


def features_of(rgb: Plane, terms: tuple[Term, ...]) -> Plane:
    """[h, w, 3] -> [h, w, features] for a whole image."""
    height, width, _ = rgb.shape
    planes = np.ascontiguousarray(rgb.transpose(0, 2, 1))
    x, y = pixel_positions(width), pixel_positions(height)[:, None, None]
    groups = {term.group: group_features(planes, term.group) for term in terms}
    features = [groups[term.group] * (x**term.a * y**term.b) for term in terms]
    return np.ascontiguousarray(np.concatenate(features, axis=1).transpose(0, 2, 1))


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted formula, its squared errors of cells in cross-validation, and the robust weights of cells."""

    recolor: Recolor
    errors: NDArray[np.float64]
    cell_weights: NDArray[np.float64]


def fit_recolor(before: Plane, after: Plane, terms: tuple[Term, ...], cast: bool = True, steps: int = 6) -> Fit:
    """The formula from ``before`` to ``after`` (float32[h, w, 3], 16 pixels a cell) by robust ridge regression.

    Without ``cast`` greys stay grey. Outlying cells get low weights (Geman-McClure); of a colour that was clipped, only
    the direction is used.
    """
    side = CELL // 2
    height, width, _ = before.shape
    x, start, goal = (cells(each, side) for each in (features_of(before, terms), before, after))
    gram = np.einsum("cip,ciq->cpq", x, x, optimize=True).astype(np.float64)
    ridge = _ridge(terms, x.shape[-1], cast)
    cell_weights = np.ones(len(x))
    change = goal - start
    for _ in range(steps):
        moment = np.einsum("cip,cik->cpk", x, change, optimize=True).astype(np.float64)
        weights = _solve(np.tensordot(cell_weights, gram, 1), np.tensordot(cell_weights, moment, 1), ridge)
        found = start + x @ weights
        outside = ((goal > 0.97) & (found > goal)) | ((goal < 0.03) & (found < goal))
        change = np.where(outside, found, goal) - start
        cell_weights = robust_weights(
            np.sqrt((np.where(outside, 0, goal - found) ** 2).mean(axis=(1, 2), dtype=np.float64))
        )
    moment = np.einsum("cip,cik->cpk", x, change, optimize=True).astype(np.float64)
    errors = np.empty(len(x))
    for unseen in _folds(height // side, width // side):
        seen = ~unseen
        known = np.tensordot(cell_weights[seen], gram[seen], 1), np.tensordot(cell_weights[seen], moment[seen], 1)
        weights_of_rest = _solve(*known, ridge)
        found = np.clip(start[unseen] + x[unseen] @ weights_of_rest, 0, 1)
        errors[unseen] = ((found - goal[unseen]) ** 2).mean(axis=(1, 2))
    return Fit(Recolor(terms, weights), errors, cell_weights)


def _folds(height: int, width: int) -> list[NDArray[np.bool_]]:
    """Masks over height x width cells of the parts that are left out in turn: tiles of about 4 x 4 cells, in 6 folds.

    Neighbours share a fold, because errors of the tokenizer are correlated over several cells.
    """
    tile = 4 if height * width >= 64 else 1
    down, across = max(1, round(height / tile)), max(1, round(width / tile))
    rows, columns = np.mgrid[:height, :width]
    tiles = (rows * down // height) * across + columns * across // width
    folds = (np.random.default_rng(0).permutation(down * across) % FOLDS)[tiles].ravel()
    return [folds == fold for fold in range(min(FOLDS, down * across))]


def _ridge(terms: tuple[Term, ...], features: int, cast: bool) -> NDArray[np.float64]:
    """The penalty on weights [features, 3], as a quadratic form over all of them, channel by channel."""
    scales = np.concatenate([np.full(WIDTHS[term.group], term.scale) for term in terms])
    assert len(scales) == features
    ridge = np.diag(np.tile(NOISE**2 * VALUES_PER_CELL / scales**2, 3))
    if cast:
        return ridge
    colour = np.eye(3) - LIGHTNESS  # from (r, g, b) to its differences from the lightness
    start = 0
    for term in terms:
        for equal in EQUAL_ON_GREYS[term.group]:
            sums = np.zeros(features)
            sums[start + np.array(equal)] = 1
            ridge += NO_CAST * np.kron(colour.T @ colour, np.outer(sums, sums))
        start += WIDTHS[term.group]
    return ridge


def _solve(gram: NDArray[np.floating], moment: NDArray[np.floating], ridge: NDArray[np.float64]) -> Plane:
    """Weights [features, 3] of ridge regression; ``gram`` is [features, features], or one for each channel."""
    features = len(moment)
    left = ridge.copy()
    for channel, own in enumerate(np.broadcast_to(gram, (3, features, features))):
        rows = np.s_[channel * features : (channel + 1) * features]
        left[rows, rows] += own
    return np.linalg.solve(left, moment.T.ravel()).reshape(3, features).T.astype(np.float32)


def robust_weights(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Geman-McClure weights of cells by their RMS errors: 1 for no error, 1/4 at 1.5 times the median."""
    usual = max(1.5 * float(np.median(errors)), 0.01)
    return 1 / (1 + (errors / usual) ** 2) ** 2


def robust_mean(errors: NDArray[np.float64], usual: float) -> float:
    """Mean over cells of squared errors, each saturating at 1, relative to the ``usual`` one."""
    return float((errors / (errors + 4 * usual + 1e-6)).mean())


def choose_recolor(
    before: Plane, after: Plane, formulas: Sequence[tuple[Term, ...]] = FORMULAS, cast: bool = True
) -> Fit | None:
    """The simplest formula that explains ``after`` about as well as any (float32[h, w, 3]); None: nothing changed."""
    before, after = downsample(before, 2), downsample(after, 2)
    fits = [fit_recolor(before, after, terms, cast) for terms in formulas]
    same = cell_errors(before - after, CELL // 2) ** 2
    usual = min(float(np.median(errors)) for errors in (same, *(fit.errors for fit in fits)))
    best, least = None, robust_mean(same, usual)
    for fit in fits:
        error = robust_mean(fit.errors, usual)
        if best is None:
            share = ANY
        else:
            adds_position = fit.recolor.depends_on_position and not best.recolor.depends_on_position
            share = POSITION if adds_position else RICHER
        if error < share * least:
            best, least = fit, error
    return best


@dataclass(frozen=True, eq=False)
class Tone:
    """How an image's colours depend on its lightness (see `Recolor`).

    ``chroma`` is their RMS distance from grey by this, ``rest`` [h * w, 3] the residual.
    """

    coefficients: NDArray[np.float32]
    chroma: float
    rest: Plane


def estimate_tone(image: Plane, steps: int = 5) -> Tone:
    """The tone of an image by robust regression over its pixels."""
    lightness = (image @ LIGHTNESS).astype(np.float64)
    off = (image - lightness[..., None]).reshape(-1, 3)
    x = np.stack([lightness.ravel() ** power for power in range(TONE_DEGREE + 1)], axis=1)
    pixel_weights = np.ones(len(x))
    for _ in range(steps):
        weighted = x * pixel_weights[:, None]
        coefficients = np.linalg.solve(weighted.T @ x + TONE_RIDGE * np.eye(x.shape[1]), weighted.T @ off)
        errors = ((off - x @ coefficients) ** 2).sum(1)
        pixel_weights = 1 / (1 + errors / max(4 * float(np.median(errors)), 1e-4)) ** 2
    found = x @ coefficients
    chroma = float(np.sqrt((found**2).sum(1).mean()))
    return Tone(coefficients.astype(np.float32), chroma, (off - found).astype(np.float32))


def find_tone(photo: Plane, before: Plane, after: Plane, only: str | None = None) -> NDArray[np.float32] | None:
    """The tone that all colours take between ``before`` and ``after``; None if they keep their differences.

    ``photo`` is the photo itself, small. Colours take a tone where differences between colours of equal lightness
    vanish and differences of lightness stay, or where the photo has no colours. A tone that is neutral up to noise is
    exactly grey. With ``only`` "grey" or "tone" the edit is known to be that.
    """
    old, new = estimate_tone(before), estimate_tone(after)
    grey = np.zeros((1, 3), np.float32)
    if only is not None:
        return grey if only == "grey" else new.coefficients
    if np.ptp(photo, axis=-1).max() <= NEUTRAL_PHOTO:
        return grey if new.chroma < NEUTRAL else new.coefficients
    left = float((old.rest * new.rest).sum() / max((old.rest**2).sum(), 1e-9))
    lightness, new_lightness = before @ LIGHTNESS, after @ LIGHTNESS
    centred = lightness - lightness.mean()
    slope = float((centred * new_lightness).sum() / max((centred**2).sum(), 1e-9))
    colourful = float((old.rest**2).sum(1).mean()) > COLOURFUL**2
    if not colourful or abs(slope) < 0.6 or abs(left) > COLLAPSED * abs(slope):
        return None
    return grey if new.chroma < NEUTRAL else new.coefficients


def softness(photo: Plane, shown: Plane) -> float:
    """The blur (sigma in pixels) that brings the photo [h, w, 3] nearest to the model's reconstruction ``shown``."""
    return min(
        (float(((gaussian_blur(photo, sigma) - shown) ** 2).mean()), sigma) for sigma in (0, 0.6, 0.9, 1.2, 1.6, 2, 2.5)
    )[1]


def refine_recolor(fit: Fit, sharp: Plane, before: Plane, after: Plane, cast: bool = True, steps: int = 4) -> Recolor:
    """Fit again, so that the recoloured photo, once blurred like the model's images, looks like ``after``.

    Blur doesn't commute with squares, hinges and clipping: without this, a stronger contrast comes out too weak. Linear
    terms are still computed from ``before``, to ignore what the tokenizer loses. ``sharp`` is the photo at twice the
    small images' sides, float32[2h, 2w, 3].
    """
    assert fit.recolor.weights is not None
    terms, weights = fit.recolor.terms, fit.recolor.weights
    sigma = softness(downsample(sharp, 2), before)

    def soft(planes: Plane) -> Plane:
        return downsample(gaussian_blur(downsample(planes, 2), sigma), 2)

    shown, goal = downsample(before, 2), cells(downsample(after, 2), CELL // 2)
    sharp_features, soft_photo = features_of(sharp, terms), soft(sharp)
    lost = features_of(shown, terms) - features_of(soft_photo, terms)
    all_soft = soft(sharp_features)
    ridge, cell_weights = _ridge(terms, sharp_features.shape[-1], cast), fit.cell_weights
    for _ in range(steps):
        edited = sharp + sharp_features @ weights
        grams, moments, parts = [], [], []
        for channel in range(3):
            free = ((edited[..., channel] > 0) & (edited[..., channel] < 1)).astype(np.float32)[..., None]
            white = (edited[..., channel] >= 1).astype(np.float32)[..., None]
            share = soft(free)
            x = (all_soft if free.all() else soft(free * sharp_features)) + share * lost
            own = slice(channel, channel + 1)
            known = soft(free * sharp[..., own] + white) + share * (shown[..., own] - soft_photo[..., own])
            xs, rest = cells(x, CELL // 2), goal[..., own] - cells(known, CELL // 2)
            weighted = (xs * cell_weights[:, None, None]).astype(np.float32)
            grams.append(np.einsum("cip,ciq->pq", weighted, xs, optimize=True))
            moments.append(np.einsum("cip,cik->pk", weighted, rest, optimize=True))
            parts.append((xs, goal[..., own] - rest))
        weights = _solve(np.stack(grams), np.concatenate(moments, axis=1), ridge)
        columns = [known + xs @ weights[:, i : i + 1] for i, (xs, known) in enumerate(parts)]
        found = np.concatenate(columns, axis=2)
        cell_weights = robust_weights(np.sqrt(((found - goal) ** 2).mean(axis=(1, 2), dtype=np.float64)))
    return Recolor(terms, weights)
