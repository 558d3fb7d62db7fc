"""Metrics of a run by name, with confidence intervals, and differences of two editors on the same samples.

Samples of one source image are not independent, so the bootstrap resamples source images. `summary` is the JSON form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earl_cli.evaluation.results import COLUMNS, PUBLISHED, EvalRun, ScoredResult

RESAMPLES = 10_000
LEVEL = 0.95
MIN_IMAGES = 5
"""Source images that an interval needs: a bootstrap over fewer is too narrow."""
MAX_EXACT = 13  # source images up to which all sign changes are tried
DIMENSIONS = ("all", "source", "task", "source x task", "seed")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, the population's standard deviation as published, and a 95 % interval of the mean.

    ``count`` values are in it, ``missing`` ones are not. NaN where there are too few values, or for the interval fewer
    than `MIN_IMAGES` source images.
    """

    mean: float
    std: float
    low: float
    high: float
    count: int
    missing: int

    @property
    def is_known(self) -> bool:
        """Whether there is a mean."""
        return not math.isnan(self.mean)

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)


@dataclass(frozen=True)
class MetricGroup:
    """Metrics of some of a run's lines: those with ``key`` in the dimension ``by``, one of `DIMENSIONS`.

    ``invalid`` lines have no edited image; they have the scores that the protocol gives them.
    """

    by: str
    key: str
    samples: int
    invalid: int
    columns: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def most_missing(self) -> int:
        """How many values the column lacks that lacks most."""
        return max((estimate.missing for estimate in self.columns.values()), default=0)


@dataclass(frozen=True)
class Difference:
    """Editor B against editor A on the samples that both have, seeds of a sample averaged.

    ``low`` to ``high`` is the 95 % interval of ``difference`` = mean_b - mean_a; ``p`` is that of a two-sided sign-flip
    test over source images, of which there are ``pictures``; ``wins`` counts the samples where B is better, by the
    column's own direction.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int
    pictures: int


def estimate(values: Sequence[float | None] | Floats, clusters: Sequence[str]) -> Estimate:
    """The mean of the values that are there, with the interval from a bootstrap of whole clusters."""
    column = np.asarray([math.nan if value is None else value for value in values], dtype=np.float64)
    return _estimates(column[:, None], clusters, [int(np.isnan(column).sum())])[0]


def summarize(run: EvalRun) -> list[MetricGroup]:
    """All of a run's lines, then by source, task, both and seed where there is more than one of them."""
    groups = [_group("all", "all", run.lines)]
    for by in DIMENSIONS[1:]:
        parts: dict[str, list[ScoredResult]] = {}
        for line in run.lines:
            parts.setdefault(_key(line, by), []).append(line)
        of_both = by == "source x task" and not all(
            len({_key(line, each) for line in run.lines}) > 1 for each in DIMENSIONS[1:3]
        )
        if len(parts) > 1 and not of_both:
            groups += [_group(by, key, parts[key]) for key in sorted(parts, key=_natural)]
    return groups


def columns_of(runs: Sequence[EvalRun]) -> list[str]:
    """The names of `COLUMNS` that any line has, or misses, in their order."""
    there = {name for run in runs for line in run.lines for name in (*line.scores, *line.missing)}
    return [name for name in COLUMNS if name in there]


def compare(a: EvalRun, b: EvalRun, column: str) -> Difference | None:
    """B against A in one column of `COLUMNS`, None if no sample has it in both."""
    before, after = _by_sample(a, column), _by_sample(b, column)
    shared = sorted(set(before) & set(after))
    if not shared:
        return None
    group = {line.result.number: cluster(line) for line in a.lines}
    pairs = np.asarray([(before[number], after[number]) for number in shared])
    change = pairs[:, 1] - pairs[:, 0]
    clusters = [group[number] for number in shared]
    spread = estimate(change, clusters)
    better = change if COLUMNS[column].higher_is_better else -change
    means = pairs.mean(axis=0)
    return Difference(
        mean_a=float(means[0]),
        mean_b=float(means[1]),
        difference=spread.mean,
        low=spread.low,
        high=spread.high,
        p=sign_flip_p(change, clusters),
        wins=int((better > 0).sum()),
        ties=int((better == 0).sum()),
        losses=int((better < 0).sum()),
        pictures=len(set(clusters)),
    )


def sign_flip_p(change: Floats, clusters: Sequence[str]) -> float:
    """Two-sided p of a mean of paired differences: how often random signs of whole clusters give as much or more.

    All signs are tried for up to `MAX_EXACT` clusters; else `RESAMPLES` random ones, with (hits + 1) / (resamples + 1).
    """
    totals = _totals(change[:, None], clusters)[0][:, 0]
    count = len(totals)
    if count <= MAX_EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (RESAMPLES, count))
    reached = np.abs(signs @ totals) >= abs(totals.sum()) * (1 - 1e-12)
    hits, tried = int(reached.sum()), len(signs)
    return hits / tried if count <= MAX_EXACT else (hits + 1) / (tried + 1)


def cluster(line: ScoredResult) -> str:
    """What a line shares with the other lines of its source image; the sample itself where that isn't known."""
    return line.result.picture or f"sample {line.result.number}"


def _group(by: str, key: str, lines: Sequence[ScoredResult]) -> MetricGroup:
    names = [name for name in COLUMNS if any(name in line.scores or name in line.missing for line in lines)]
    invalid = sum(line.result.edited_image is None for line in lines)
    if not names:
        return MetricGroup(by, key, len(lines), invalid)
    values = np.asarray([[line.scores.get(name, math.nan) for name in names] for line in lines], dtype=np.float64)
    missing = [sum(name in line.missing for line in lines) for name in names]
    found = _estimates(values, [cluster(line) for line in lines], missing)
    return MetricGroup(by, key, len(lines), invalid, dict(zip(names, found, strict=True)))


def _key(line: ScoredResult, by: str) -> str:
    result = line.result
    return {
        "source": result.source,
        "task": result.task,
        "source x task": f"{result.source} x {result.task}",
        "seed": str(result.seed),
    }[by]


def _natural(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isdecimal() else (0, key)


def _by_sample(run: EvalRun, column: str) -> dict[int, float]:
    """The column's mean over the seeds of each sample."""
    found: dict[int, list[float]] = {}
    for line in run.lines:
        if column in line.scores:
            found.setdefault(line.result.number, []).append(line.scores[column])
    return {number: sum(values) / len(values) for number, values in found.items()}


def _estimates(values: Floats, clusters: Sequence[str], missing: Sequence[int]) -> list[Estimate]:
    """Of each column of float64[n, c], NaN where there is no value; ``missing`` int[c] of them should have been there.

    Every column has the same resamples.
    """
    totals, counts = _totals(values, clusters)
    rng = np.random.default_rng(0)
    size = len(totals)
    weights = rng.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ totals) / (weights @ counts)
    estimates = []
    for column in range(values.shape[1]):
        there = values[:, column][~np.isnan(values[:, column])]
        resampled = means[:, column][np.isfinite(means[:, column])]
        images = int((counts[:, column] > 0).sum())
        tail = _tail(images)
        low, high = np.quantile(resampled, (tail, 1 - tail)) if images >= MIN_IMAGES else (math.nan, math.nan)
        mean, std = (float(there.mean()), float(there.std())) if len(there) else (math.nan, math.nan)
        estimates.append(Estimate(mean, std, float(low), float(high), len(there), missing[column]))
    return estimates


def _tail(clusters: int) -> float:
    """The share of resamples beyond each end of an interval, so that one of few clusters isn't too narrow.

    The expanded percentile interval of Hesterberg, "What Teachers Should Know About the Bootstrap" (2015): for a mean
    it is as wide as Student's, whose quantile is by the expansion in 1/n of Abramowitz and Stegun, 26.7.5.
    """
    normal = NormalDist()
    free = max(1, clusters - 1)
    z = normal.inv_cdf((1 + LEVEL) / 2)
    student = (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * free**4)
    )
    return normal.cdf(-math.sqrt((free + 1) / free) * student)


def _totals(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sums and numbers of the values that are there, float64[clusters, c] each."""
    which = np.unique(np.asarray(clusters), return_inverse=True)[1]
    there = ~np.isnan(values)
    totals, counts = (np.zeros((int(which.max()) + 1, values.shape[1])) for _ in range(2))
    np.add.at(totals, which, np.where(there, values, 0.0))
    np.add.at(counts, which, there.astype(np.float64))
    return totals, counts


def summary_document(run: EvalRun) -> dict[str, Any]:
    """What summary.json holds: everything the metrics depend on, then groups of lines by dimension.

    Each metric has mean and std as published, the 95 % interval, and how many values are in it and missing.
    """
    groups = summarize(run)
    return {
        **run.about,
        "scoring": dict(run.scoring),
        "unreadable": len(run.unreadable),
        "overall": group_document(groups[0]),
        **{
            f"by {dimension}": {group.key: group_document(group) for group in groups if group.by == dimension}
            for dimension in DIMENSIONS[1:]
            if any(group.by == dimension for group in groups)
        },
    }


def group_document(group: MetricGroup) -> dict[str, Any]:
    """A group of lines: its size, and its metrics under the published names (VIE_SC, …) where they have one."""
    metrics = {
        name.upper() if name in PUBLISHED else name: finite(asdict(each)) for name, each in group.columns.items()
    }
    return {"edits": group.samples, "not_drawn": group.invalid, "figures": metrics}


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, which knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
