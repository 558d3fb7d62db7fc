"""Several data sets mixed in given proportions, as the published training does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earl_cli.errors import UsageError


@dataclass(frozen=True, eq=False)
class Mixture:
    """``rows`` int64[n] number the rows of all sets one after another, in the order of an epoch.

    ``counts`` says how many of them are of each set, ``coefficients`` how often a set occurs in an epoch.
    """

    rows: NDArray[np.int64]
    counts: tuple[int, ...]
    coefficients: tuple[float, ...]


def mix(sizes: Sequence[int], coefficients: Sequence[float] | None, seed: int) -> Mixture:
    """One epoch of sets with ``sizes`` rows.

    A set with the coefficient c contributes int(c) whole copies and a random sample of int(n · frac(c)) of its rows.
    Without coefficients every set is up-sampled to the largest, c = max n / n. Then all is shuffled once. Raises
    UsageError if nothing is left.
    """
    generator = np.random.default_rng(seed)
    largest = max(sizes)
    chosen = tuple(coefficients) if coefficients is not None else tuple(largest / size for size in sizes)
    parts = []
    for start, size, coefficient in zip(np.cumsum([0, *sizes]), sizes, chosen, strict=False):
        whole = int(coefficient)
        rest = int(size * (coefficient - whole)) if coefficients is not None else largest - whole * size
        sample = generator.choice(size, rest, replace=False)
        parts.append(start + np.concatenate([*[np.arange(size)] * whole, sample]).astype(np.int64))
    rows = generator.permutation(np.concatenate(parts))
    if len(rows) == 0:
        raise UsageError("the coefficients leave not a single pair", where="coefficients", hint="raise them")
    return Mixture(rows, tuple(map(len, parts)), chosen)


def sample_rows(sizes: Sequence[int], budget: int, seed: int) -> Mixture:
    """For validation: an equal share of ``budget`` rows of each set, at least one, drawn at random and in order.

    The same rows for the same seed; of a set, those that are drawn don't depend on the others.
    """
    share = max(1, budget // len(sizes))
    starts = np.cumsum([0, *sizes])
    parts = []
    for start, size in zip(starts, sizes, strict=False):
        drawn = np.random.default_rng(seed).choice(size, min(size, share), replace=False)
        parts.append(start + np.sort(drawn).astype(np.int64))
    counts = tuple(map(len, parts))
    return Mixture(
        np.concatenate(parts), counts, tuple(count / size for count, size in zip(counts, sizes, strict=True))
    )
