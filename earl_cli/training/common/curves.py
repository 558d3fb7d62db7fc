"""The logs of training runs read back as curves, smoothed; `plots` renders them.

A resumed run logs some steps again; the last entry of a step counts. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from earl_cli.errors import InputError

LOG = "log.jsonl"
RENAMED = {
    "reward": "reward/mean",
    "reward_std": "reward/std",
    "reward_p10": "reward/p10",
    "reward_p50": "reward/p50",
    "reward_p90": "reward/p90",
    "group_std": "reward/group_std",
    "no_signal": "reward/frac_zero_std",
    "missing_rewards": "reward/frac_missing",
    "finished": "completions/frac_valid",
    "completion_tokens": "completions/mean_length",
    "mismatch": "sampler_mismatch",
    "seconds": "time/iteration",
    "validation_reward": "validation/reward/mean",
    "validation_missing": "validation/reward/frac_missing",
}
"""Names under which version 0.1.0 logged these metrics; `metric_name` translates them."""
Goal: TypeAlias = Literal["lowest", "highest"]


@dataclass(frozen=True, eq=False)
class Series:
    """The values of a metric at increasing steps."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunCurves:
    """A run's log: its file, the last step, and every metric in it."""

    name: str
    log: Path
    steps: int
    metrics: Mapping[str, Series]

    @property
    def command(self) -> str | None:
        """The command that wrote the log, sft or rl; None if its metrics don't tell."""
        if self.metrics.keys() & {
            "completions/mean_length",
            "validation/reward/mean",
            "validation/reward/frac_missing",
        }:
            return "rl"
        return "sft" if self.metrics.keys() & {"loss", "eval_loss"} else None

    def last(self, key: str) -> float | None:
        """The last value of a metric."""
        series = self.metrics.get(key)
        return float(series.values[-1]) if series else None

    def best(self, key: str, goal: Goal) -> tuple[int, float] | None:
        """The step with the best value of a metric, and that value; None if there is none."""
        series = self.metrics.get(key)
        if series is None or not np.isfinite(series.values).any():
            return None
        known = np.where(np.isfinite(series.values), series.values, np.nan)
        index = int(np.nanargmin(known) if goal == "lowest" else np.nanargmax(known))
        return int(series.steps[index]), float(known[index])


def metric_name(logged: str) -> str:
    """The present name of a metric, which the log of an old run may hold under another."""
    if logged.startswith("part_"):
        return f"rewards/{logged.removeprefix('part_')}/mean"
    if logged.startswith("seconds_"):
        return f"time/{logged.removeprefix('seconds_')}"
    return RENAMED.get(logged, logged)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_runs(paths: Sequence[Path]) -> list[RunCurves]:
    """The runs in these output folders or log files, with distinct names; InputError as `read_run`."""
    logs = [_log_of(path) for path in paths]
    return [read_run(log, name) for log, name in zip(logs, _names(logs), strict=True)]


def read_run(log: Path, name: str) -> RunCurves:
    """One log. From its first step on, a resumed run's lines replace those that were written before.

    Raises InputError for a log without a metric and, with its number, for a damaged line. The last line may be
    incomplete, as the run may be writing it.
    """
    try:
        content = log.read_bytes()
    except OSError as failure:
        raise InputError(failure.strerror or str(failure), where=str(log)) from failure
    if b"\0" in content.partition(b"\n")[0]:
        raise InputError("this is no log of a run", where=str(log), hint="name a run's output folder, or its log.jsonl")
    by_step: dict[int, dict[str, float]] = {}  # in the order of the steps
    newest = 0
    for step, metrics in _lines(content, log):
        if step < newest:
            by_step = {other: found for other, found in sorted(by_step.items()) if other <= step}
        newest = step
        by_step.setdefault(step, {}).update(metrics)
    keys = dict.fromkeys(key for metrics in by_step.values() for key in metrics)
    if not keys:
        raise InputError("nothing is logged yet", where=str(log), hint="wait for the first steps of the run")
    series = {key: [(step, found[key]) for step, found in by_step.items() if key in found] for key in keys}
    return RunCurves(name, log, newest, {key: _series(points) for key, points in series.items()})


def _series(points: Sequence[tuple[int, float]]) -> Series:
    steps, values = zip(*points, strict=True)
    return Series(np.array(steps, np.int64), np.array(values, np.float64))


def _lines(content: bytes, log: Path) -> Iterator[tuple[int, dict[str, float]]]:
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            step = found.pop("step")
            if type(step) is not int or not 0 <= step < 2**53:
                raise TypeError
            metrics = {metric_name(key): float(value) for key, value in found.items() if _is_number(value)}
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            if number == len(lines):  # incomplete
                return
            hint = "remove this line to plot the others"
            raise InputError(f"line {number} is damaged: {_excerpt(line)}", where=str(log), hint=hint) from None
        yield step, metrics


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _excerpt(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace").strip()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _log_of(path: Path) -> Path:
    if not path.exists():
        raise InputError("there is no such run", where=str(path), hint="name a run's output folder, or its log.jsonl")
    if path.is_dir() and not (path / LOG).exists():
        what = f"there is no {LOG} in this folder"
        raise InputError(what, where=str(path), hint="a run writes it at its first logged step")
    return path / LOG if path.is_dir() else path


def _names(logs: Sequence[Path]) -> list[str]:
    """The names of the folders, with as many parent folders as make them distinct."""
    parts = [_parts(log) for log in logs]
    count = dict.fromkeys(parts, 1)
    while True:
        shown = {part: "/".join(part[-n:]) for part, n in count.items()}
        same = [part for part in count if list(shown.values()).count(shown[part]) > 1 and count[part] < len(part)]
        if not same:
            break
        count |= {part: count[part] + 1 for part in same}
    before = [parts[:i].count(part) for i, part in enumerate(parts)]
    return [shown[part] + (f" ({n + 1})" if n else "") for part, n in zip(parts, before, strict=True)]


def _parts(log: Path) -> tuple[str, ...]:
    whole = log.resolve()
    return (whole.parent if whole.name == LOG else whole.with_suffix("")).parts[1:]


# -- smoothing ---------------------------------------------------------------------------------------------------------


def smoothing_window(count: int) -> int:
    """The default number of values to smooth over: a twentieth of ``count``."""
    return max(1, round(count / 20))


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Smoothing over ``width`` values by local linear fits, in which nearby values weigh most.

    Unlike a running mean it doesn't lag at the steep start of a run or at its end. Non-finite values stay gaps.
    Local linear regression with a triangular kernel: Cleveland, "Robust Locally Weighted Regression", 1979.
    """
    reach = min(width // 2, len(values) - 1)
    if width <= 1 or reach < 1:
        return values
    finite = np.isfinite(values)
    offsets = np.arange(-reach, reach + 1)
    weights = 1 - np.abs(offsets) / (reach + 1)

    def around(what: NDArray[Any], power: int) -> NDArray[np.float64]:
        return np.convolve(what, (weights * offsets**power)[::-1], "full")[reach : reach + len(values)]

    known = np.where(finite, values, 0.0)
    zeroth, first, second = (around(finite.astype(np.float64), power) for power in range(3))
    mean, slope = around(known, 0), around(known, 1)
    spread = zeroth * second - first**2
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = np.where(spread > 1e-9, (mean * second - slope * first) / spread, mean / zeroth)
    return np.where(finite, fitted, np.nan)
