"""The change of colours between two small pictures, as a formula that can be applied to the photo itself.

A colour moves by a polynomial of itself, with hinges over its lightness, and of its place in the picture (fog and
sunsets have a top and a bottom). How rich the formula may be is decided by cross-validation over cells, because the
picture it is read from is noisy: every cell was sampled by a language model, and some are plainly wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earl_cli.images.arrays import CELL, Plane, cell_errors, cells, gauss, shrink

LIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)
HINGES = (0.2, 0.4, 0.6, 0.8)
WIDTHS = {"linear": 4, "square": 6, "tone": 4}
ALIKE = {"linear": ((0,), (1, 2, 3)), "square": ((0, 1, 2, 3, 4, 5),), "tone": ((0,), (1,), (2,), (3,))}
"""Features of a group that are equal to each other for every grey: only the sum of their weights counts there."""
SCALES = {"linear": 0.5, "square": 0.3, "tone": 0.3}
"""How large a weight of each group may well be: the deviation of its Gaussian prior (around "nothing changes")."""


@dataclass(frozen=True)
class Term:
    """A group of colour features times x**a * y**b, the place in the picture from -1 to 1."""

    group: str
    a: int = 0
    b: int = 0

    @property
    def scale(self) -> float:
        return SCALES[self.group] * (1.0, 0.4, 0.2)[self.a + self.b]


LINEAR, SQUARE, TONE = Term("linear"), Term("square"), Term("tone")
TILT = (Term("linear", 1, 0), Term("linear", 0, 1))
BOW = (Term("linear", 2, 0), Term("linear", 1, 1), Term("linear", 0, 2))
LADDER: tuple[tuple[Term, ...], ...] = (
    (LINEAR,),
    (LINEAR, SQUARE),
    (LINEAR, SQUARE, TONE),
    (LINEAR, SQUARE, *TILT),
    (LINEAR, SQUARE, TONE, *TILT, Term("tone", 0, 1)),
    (LINEAR, SQUARE, TONE, *TILT, Term("tone", 0, 1), *BOW),
)
EVERYWHERE = tuple(terms for terms in LADDER if not any(term.a or term.b for term in terms))
WORTH = 0.96  # a richer formula must bring the error in unseen cells below this share of a simpler one's,
WORTH_ANY = 0.95  # the first that changes anything below this,
WORTH_PLACE = 0.92  # and the first that depends on the place below this
NOISE = 0.05
VALUES_A_CELL = 16  # a cell's pixels share its error: all of them together say as much as one
FOLDS = 6
NO_CAST = 1e4  # how much a colour that greys would get counts, in values: far more than all cells together
TONE_DEGREE, TONE_RIDGE = 2, 1e-3
NEUTRAL = 0.03  # a tone nearer to grey than this, root mean square, is the tokenizer's own noise
NEUTRAL_PHOTO = 2.5 / 255
COLOURFUL = 0.03  # root mean square of colours' differences from the tone; less is the tokenizer's noise
COLLAPSED = 0.15  # of a difference of colours so much may be left


@dataclass(frozen=True, eq=False)
class Recolor:
    """``rgb + features(rgb, x, y) @ weights``, clipped to 0..1; no terms: nothing changes.

    With a ``tone`` [degree + 1, 3] only the lightness L of that counts: the colour is L plus the polynomial of L with
    these coefficients, lowest first. All zero: exactly grey.
    """

    terms: tuple[Term, ...] = ()
    weights: NDArray[np.float32] | None = None
    tone: NDArray[np.float32] | None = None

    @property
    def placed(self) -> bool:
        """Whether the same colour changes differently in different places."""
        return any(term.a or term.b for term in self.terms)

    def __call__(self, rgb: Plane, top: float = -1.0, bottom: float = 1.0) -> Plane:
        """The new colours of [h, w, 3]; ``top`` and ``bottom`` are the place of its edges in the photo."""
        changed = rgb if self.weights is None else self._by_formula(rgb, top, bottom)
        return changed if self.tone is None else toned(changed, self.tone)

    def _by_formula(self, rgb: Plane, top: float, bottom: float) -> Plane:
        assert self.weights is not None
        height, width, _ = rgb.shape
        y = places(height, top, bottom)
        parts: dict[tuple[str, int], NDArray[np.float32]] = {}
        start = 0
        for term in self.terms:  # what differs only by the power of y shares its features: weights [h, 3, features]
            stop = start + WIDTHS[term.group]
            share = (y**term.b)[:, None, None] * self.weights[start:stop].T
            key = term.group, term.a
            parts[key] = parts[key] + share if key in parts else share
            start = stop
        planes = np.ascontiguousarray(rgb.transpose(0, 2, 1))
        x = places(width)
        features = [group_features(planes, group) * x**a if a else group_features(planes, group) for group, a in parts]
        planes += np.concatenate(list(parts.values()), axis=2) @ np.concatenate(features, axis=1)
        return np.clip(planes, 0, 1, out=planes).transpose(0, 2, 1)


def toned(rgb: Plane, tone: NDArray[np.float32]) -> Plane:
    """Colours of [h, w, 3] that depend on the lightness alone, see `Recolor`."""
    lightness = rgb @ LIGHTNESS
    planes = np.repeat(lightness[None], 3, axis=0)
    if tone.any():
        planes += np.polynomial.polynomial.polyval(lightness, tone).astype(np.float32)
    return np.clip(planes, 0, 1, out=planes).transpose(1, 2, 0)


def places(size: int, first: float = -1.0, last: float = 1.0) -> NDArray[np.float32]:
    """The centres of ``size`` pixels that fill the span from ``first`` to ``last``."""
    return (first + (np.arange(size, dtype=np.float32) + 0.5) * ((last - first) / size)).astype(np.float32)


def group_features(planes: Plane, group: str) -> Plane:
    """Colours as planes [h, 3, w] -> the features of one group, [h, 4 | 6 | 4, w]."""
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
    """[h, w, 3] -> [h, w, features] for a whole picture."""
    height, width, _ = rgb.shape
    planes = np.ascontiguousarray(rgb.transpose(0, 2, 1))
    x, y = places(width), places(height)[:, None, None]
    groups = {term.group: group_features(planes, term.group) for term in terms}
    features = [groups[term.group] * (x**term.a * y**term.b) for term in terms]
    return np.ascontiguousarray(np.concatenate(features, axis=1).transpose(0, 2, 1))


@dataclass(frozen=True, eq=False)
class Fit:
    """A formula's weights, its squared errors of cells when they were left out, and how far cells are trusted."""

    recolor: Recolor
    errors: NDArray[np.float64]
    trust: NDArray[np.float64]


def fit_recolor(before: Plane, after: Plane, terms: tuple[Term, ...], cast: bool = True, steps: int = 6) -> Fit:
    """The formula from ``before`` to ``after`` (float32[h, w, 3], 16 values a cell) by robust ridge regression.

    Without ``cast`` greys stay grey.

    Cells that contradict the rest lose their say (Geman-McClure weights); a colour that left 0..1 is only known to
    have left it.
    """
    side = CELL // 2
    height, width, _ = before.shape
    x, start, goal = (cells(each, side) for each in (features_of(before, terms), before, after))
    gram = np.einsum("cip,ciq->cpq", x, x, optimize=True).astype(np.float64)
    ridge = _ridge(terms, x.shape[-1], cast)
    trust = np.ones(len(x))
    change = goal - start
    for _ in range(steps):
        moment = np.einsum("cip,cik->cpk", x, change, optimize=True).astype(np.float64)
        weights = _solve(np.tensordot(trust, gram, 1), np.tensordot(trust, moment, 1), ridge)
        found = start + x @ weights
        outside = ((goal > 0.97) & (found > goal)) | ((goal < 0.03) & (found < goal))
        change = np.where(outside, found, goal) - start
        trust = trust_in(np.sqrt((np.where(outside, 0, goal - found) ** 2).mean(axis=(1, 2), dtype=np.float64)))
    moment = np.einsum("cip,cik->cpk", x, change, optimize=True).astype(np.float64)
    errors = np.empty(len(x))
    for unseen in _folds(height // side, width // side):
        seen = ~unseen
        known = np.tensordot(trust[seen], gram[seen], 1), np.tensordot(trust[seen], moment[seen], 1)
        weights_of_rest = _solve(*known, ridge)
        found = np.clip(start[unseen] + x[unseen] @ weights_of_rest, 0, 1)
        errors[unseen] = ((found - goal[unseen]) ** 2).mean(axis=(1, 2))
    return Fit(Recolor(terms, weights), errors, trust)


def _folds(height: int, width: int) -> list[NDArray[np.bool_]]:
    """Masks over height x width cells of what is left out in turn: tiles of about 4 x 4 cells, in up to 6 groups.

    Neighbours go together, because the tokenizer errs in the same direction over several cells.
    """
    tile = 4 if height * width >= 64 else 1
    down, across = max(1, round(height / tile)), max(1, round(width / tile))
    rows, columns = np.mgrid[:height, :width]
    tiles = (rows * down // height) * across + columns * across // width
    folds = (np.random.default_rng(0).permutation(down * across) % FOLDS)[tiles].ravel()
    return [folds == fold for fold in range(min(FOLDS, down * across))]


def _ridge(terms: tuple[Term, ...], features: int, cast: bool) -> NDArray[np.float64]:
    """What speaks against weights [features, 3], as a quadratic form over all of them, channel by channel."""
    scales = np.concatenate([np.full(WIDTHS[term.group], term.scale) for term in terms])
    assert len(scales) == features
    ridge = np.diag(np.tile(NOISE**2 * VALUES_A_CELL / scales**2, 3))
    if cast:
        return ridge
    colour = np.eye(3) - LIGHTNESS  # from (r, g, b) to its differences from the lightness
    start = 0
    for term in terms:
        for alike in ALIKE[term.group]:
            sums = np.zeros(features)
            sums[start + np.array(alike)] = 1
            ridge += NO_CAST * np.kron(colour.T @ colour, np.outer(sums, sums))
        start += WIDTHS[term.group]
    return ridge


def _solve(gram: NDArray[np.floating], moment: NDArray[np.floating], ridge: NDArray[np.float64]) -> Plane:
    """The weights [features, 3] of least squares: ``gram`` [features, features] or one for each channel."""
    features = len(moment)
    left = ridge.copy()
    for channel, own in enumerate(np.broadcast_to(gram, (3, features, features))):
        rows = np.s_[channel * features : (channel + 1) * features]
        left[rows, rows] += own
    return np.linalg.solve(left, moment.T.ravel()).reshape(3, features).T.astype(np.float32)


def trust_in(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Geman-McClure weights of cells by their root mean square errors: 1 for none, 1/4 at 1.5 times the median."""
    usual = max(1.5 * float(np.median(errors)), 0.01)
    return 1 / (1 + (errors / usual) ** 2) ** 2


def robust_mean(errors: NDArray[np.float64], usual: float) -> float:
    """Mean over cells of squared errors, each counting at most 1, in units of the ``usual`` one."""
    return float((errors / (errors + 4 * usual + 1e-6)).mean())


def choose_recolor(
    before: Plane, after: Plane, ladder: Sequence[tuple[Term, ...]] = LADDER, cast: bool = True
) -> Fit | None:
    """The simplest formula that explains ``after`` about as well as any (float32[h, w, 3]); None: nothing changed."""
    before, after = shrink(before, 2), shrink(after, 2)
    fits = [fit_recolor(before, after, terms, cast) for terms in ladder]
    same = cell_errors(before - after, CELL // 2) ** 2
    usual = min(float(np.median(errors)) for errors in (same, *(fit.errors for fit in fits)))
    best, least = None, robust_mean(same, usual)
    for fit in fits:
        error = robust_mean(fit.errors, usual)
        worth = WORTH_ANY if best is None else WORTH_PLACE if fit.recolor.placed > best.recolor.placed else WORTH
        if error < worth * least:
            best, least = fit, error
    return best


@dataclass(frozen=True, eq=False)
class Tone:
    """How a picture's colours depend on its lightness (see `Recolor`).

    ``chroma`` is how far from grey that makes them, ``rest`` [h * w, 3] what it doesn't explain.
    """

    coefficients: NDArray[np.float32]
    chroma: float
    rest: Plane


def tone_of(picture: Plane, steps: int = 5) -> Tone:
    """The tone of a picture by robust regression over its pixels."""
    lightness = (picture @ LIGHTNESS).astype(np.float64)
    off = (picture - lightness[..., None]).reshape(-1, 3)
    x = np.stack([lightness.ravel() ** power for power in range(TONE_DEGREE + 1)], axis=1)
    trust = np.ones(len(x))
    for _ in range(steps):
        weighted = x * trust[:, None]
        coefficients = np.linalg.solve(weighted.T @ x + TONE_RIDGE * np.eye(x.shape[1]), weighted.T @ off)
        errors = ((off - x @ coefficients) ** 2).sum(1)
        trust = 1 / (1 + errors / max(4 * float(np.median(errors)), 1e-4)) ** 2
    found = x @ coefficients
    chroma = float(np.sqrt((found**2).sum(1).mean()))
    return Tone(coefficients.astype(np.float32), chroma, (off - found).astype(np.float32))


def find_tone(photo: Plane, before: Plane, after: Plane, only: str | None = None) -> NDArray[np.float32] | None:
    """The tone that all colours collapse into between ``before`` and ``after``; None if they keep their differences.

    ``photo`` is the photo itself, small. Colours collapse where a difference between two of the same lightness becomes
    none, while differences of lightness stay; and where there was no colour to begin with. A tone that is neutral but
    for noise is exactly grey. ``only`` "grey" or "tone" says that nothing else can have happened.
    """
    old, new = tone_of(before), tone_of(after)
    grey = np.zeros((1, 3), np.float32)
    if only is not None:
        return grey if only == "grey" else new.coefficients
    if np.ptp(photo, axis=-1).max() <= NEUTRAL_PHOTO:
        return grey if new.chroma < NEUTRAL else new.coefficients
    left = float((old.rest * new.rest).sum() / max((old.rest**2).sum(), 1e-9))
    dark, pale = before @ LIGHTNESS, after @ LIGHTNESS
    slope = float(((dark - dark.mean()) * pale).sum() / max(((dark - dark.mean()) ** 2).sum(), 1e-9))
    colourful = float((old.rest**2).sum(1).mean()) > COLOURFUL**2
    if not colourful or abs(slope) < 0.6 or abs(left) > COLLAPSED * abs(slope):
        return None
    return grey if new.chroma < NEUTRAL else new.coefficients


def softness(photo: Plane, shown: Plane) -> float:
    """The blur (sigma in pixels) that makes the photo [h, w, 3] most like what the model shows of it."""
    return min(
        (float(((gauss(photo, sigma) - shown) ** 2).mean()), sigma) for sigma in (0, 0.6, 0.9, 1.2, 1.6, 2, 2.5)
    )[1]


def refine_recolor(fit: Fit, sharp: Plane, before: Plane, after: Plane, cast: bool = True, steps: int = 4) -> Recolor:
    """Fit again, now asking that the recoloured photo looks like ``after`` once it is as soft as the model's pictures.

    A square, a hinge or a clip of soft colours isn't the soft square, hinge or clip: without this a stronger contrast
    comes out too weak. Linear terms still lead from ``before``, whatever the tokenizer loses. ``sharp`` is the photo at
    twice the small pictures' sides, float32[2h, 2w, 3].
    """
    assert fit.recolor.weights is not None
    terms, weights = fit.recolor.terms, fit.recolor.weights
    sigma = softness(shrink(sharp, 2), before)

    def soft(planes: Plane) -> Plane:
        return shrink(gauss(shrink(planes, 2), sigma), 2)

    shown, goal = shrink(before, 2), cells(shrink(after, 2), CELL // 2)
    sharp_features, soft_photo = features_of(sharp, terms), soft(sharp)
    lost = features_of(shown, terms) - features_of(soft_photo, terms)
    all_soft = soft(sharp_features)
    ridge, trust = _ridge(terms, sharp_features.shape[-1], cast), fit.trust
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
            trusted = (xs * trust[:, None, None]).astype(np.float32)
            grams.append(np.einsum("cip,ciq->pq", trusted, xs, optimize=True))
            moments.append(np.einsum("cip,cik->pk", trusted, rest, optimize=True))
            parts.append((xs, goal[..., own] - rest))
        weights = _solve(np.stack(grams), np.concatenate(moments, axis=1), ridge)
        columns = [known + xs @ weights[:, i : i + 1] for i, (xs, known) in enumerate(parts)]
        found = np.concatenate(columns, axis=2)
        trust = trust_in(np.sqrt(((found - goal) ** 2).mean(axis=(1, 2), dtype=np.float64)))
    return Recolor(terms, weights)
