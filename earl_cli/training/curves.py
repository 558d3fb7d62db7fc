"""The curves of training runs: their logs read back, and drawn side by side as small multiples.

A run that was resumed logs some steps again; what was logged last counts. Nothing here needs torch.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from earl_cli.errors import InputError, UsageError
from earl_cli.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = "log.jsonl"
FORMATS = {".png": "png", ".svg": "svg"}
LOSS, VALIDATION_LOSS = "loss", "eval_loss"

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")  # Okabe and Ito, 2008
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
INK, GREY, GRID = "#333333", "#808080", "#E4E4E4"
FEW = 40  # values, each of which gets a dot
ROUND = [1, 2, 2.5, 5, 10]
SHADES = 128  # of a PNG: a handful of colours and the steps between them
STEEP = 20  # from this ratio of the highest to the middle value on, a panel has a logarithmic axis


@dataclass(frozen=True)
class Panel:
    """How a figure of the log is drawn: its name, its axis with the unit, whether it is smoothed, and from zero on."""

    key: str
    name: str
    axis: str
    smoothed: bool = False
    from_zero: bool = False


PANELS = (
    Panel(LOSS, "Training loss", "nats per token", smoothed=True),
    Panel(VALIDATION_LOSS, "Validation loss", "nats per token"),
    Panel("learning_rate", "Learning rate", "size of a step", from_zero=True),
    Panel("grad_norm", "Gradient norm", "L2 norm, before clipping", smoothed=True),
)


@dataclass(frozen=True, eq=False)
class Series:
    """A figure's values at increasing steps."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """A run's log: its file, the last step, and every figure in it."""

    name: str
    log: Path
    steps: int
    figures: Mapping[str, Series]

    @property
    def loss(self) -> float | None:
        """The last training loss."""
        series = self.figures.get(LOSS)
        return float(series.values[-1]) if series else None

    @property
    def best(self) -> tuple[int, float] | None:
        """The step of the lowest validation loss, and that loss."""
        series = self.figures.get(VALIDATION_LOSS)
        if series is None or not np.isfinite(series.values).any():
            return None
        lowest = int(np.nanargmin(np.where(np.isfinite(series.values), series.values, np.nan)))
        return int(series.steps[lowest]), float(series.values[lowest])


# -- reading -----------------------------------------------------------------------------------------------------------


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these output folders or log files, each with a name of its own; InputError as `read_run`."""
    logs = [_log_of(path) for path in paths]
    return [read_run(log, name) for log, name in zip(logs, _names(logs), strict=True)]


def read_run(log: Path, name: str) -> Run:
    """One log, with the lines that a resumed run wrote in place of those it wrote before from that step on.

    Raises InputError for a log without a figure and, with its number, for a damaged line. The last line may be torn:
    somebody is writing it.
    """
    try:
        content = log.read_bytes()
    except OSError as failure:
        raise InputError(failure.strerror or str(failure), where=str(log)) from failure
    by_step: dict[int, dict[str, float]] = {}  # in the order of the steps
    newest = 0
    for step, figures in _lines(content, log):
        if step < newest:
            by_step = {other: found for other, found in sorted(by_step.items()) if other <= step}
        newest = step
        by_step.setdefault(step, {}).update(figures)
    keys = dict.fromkeys(key for figures in by_step.values() for key in figures)
    if not keys:
        raise InputError("nothing is logged yet", where=str(log), hint="wait for the first steps of the run")
    series = {key: [(step, found[key]) for step, found in by_step.items() if key in found] for key in keys}
    return Run(name, log, newest, {key: _series(points) for key, points in series.items()})


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
            figures = {key: float(value) for key, value in found.items() if _is_number(value)}
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            if number == len(lines):  # without its end, so not written whole
                return
            hint = "remove this line, and the others can be drawn"
            raise InputError(f"line {number} is damaged: {_excerpt(line)}", where=str(log), hint=hint) from None
        yield step, figures


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
    """The folders' names, with as much of what is above them as tells them apart."""
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


# -- drawing -----------------------------------------------------------------------------------------------------------


def choose_panels(runs: Sequence[Run], keys: Sequence[str]) -> list[Panel]:
    """The panels of these figures, or of all known ones that some run has. Raises UsageError for one that none has."""
    there = dict.fromkeys(key for run in runs for key in run.figures)
    known = {panel.key: panel for panel in PANELS}
    for key in keys:
        if key not in there:
            what = f"no run has the figure {key!r}"
            raise UsageError(what, where="--figure", hint=f"there are: {', '.join(there)}")
    chosen = dict.fromkeys(keys) if keys else [key for key in known if key in there] or there
    return [known.get(key) or Panel(key, key.replace("_", " "), "as logged", smoothed=True) for key in chosen]


def window(count: int) -> int:
    """Over how many of ``count`` values to smooth if nobody says: a twentieth, which leaves the course of a run."""
    return max(1, round(count / 20))


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """At each place the straight line that fits the ``width`` values around it best, those nearby weighing most.

    Unlike a mean it doesn't lag at a run's steep start or at its end. Values that are no numbers stay gaps.
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


def thin(series: Series, most: int = 1000) -> Series:
    """At most ``2 * most`` of the values, among them the lowest and the highest of every stretch."""
    if len(series.values) <= 2 * most:
        return series
    kept = set()
    for stretch in np.array_split(np.arange(len(series.values)), most):
        values = series.values[stretch]
        if np.isfinite(values).any():
            kept |= {int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])}
    places = np.array(sorted(kept))
    return Series(series.steps[places], series.values[places])


def write_curves(path: Path, runs: Sequence[Run], panels: Sequence[Panel], smoothing: int | None = None) -> None:
    """Draw the runs, a panel for each figure, as PNG or SVG by the suffix, whole or not at all.

    ``smoothing`` is a number of logged values; None: `window`, 1: none. The same logs give the same bytes.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    form = FORMATS[path.suffix.lower()]
    plain = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context({**plain, **STYLE}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have letters that the font lacks
        figure = draw(runs, panels, smoothing)
        canvas = FigureCanvasAgg(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as aside:
            if form == "svg":
                figure.savefig(aside, format=form, metadata={"Date": None})
            else:
                canvas.draw()
                picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
                picture.quantize(SHADES, dither=Image.Dither.NONE).save(aside, form, optimize=True)


STYLE = {
    "font.family": [
        "DejaVu Sans",
        "sans-serif",
    ],  # the first one comes with matplotlib, the other is for an SVG's reader
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#AAAAAA",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#AAAAAA",
    "ytick.color": "#AAAAAA",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "earl",
    "figure.dpi": 140.0,
}


def draw(runs: Sequence[Run], panels: Sequence[Panel], smoothing: int | None) -> Figure:
    """The matplotlib figure: panels in two columns, and below them which line is which run."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    wide = 5.2 * columns if columns > 1 else 7.5
    abreast = min(len(runs), 5, max(1, int(wide / (0.8 + 0.08 * max(len(_short(run.name)) for run in runs)))))
    size = (wide, 3.1 * rows + (1.0 if rows == 1 else 0) + 0.22 * math.ceil(len(runs) / abreast) + 0.1)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, hspace=0.04, wspace=0.03))
    steps = [step for run in runs for series in run.figures.values() for step in (series.steps[0], series.steps[-1])]
    first, last = min(steps), max(steps)
    margin = max(0.02 * (last - first), 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for place, panel in zip(axes, panels, strict=False):
        _draw_panel(place, runs, panel, smoothing)
        place.set_xlim(first - margin, last + margin)
    for empty in axes[len(panels) :]:
        empty.set_visible(False)
    _draw_names(figure, runs, abreast)
    return figure


def _draw_panel(axes: Axes, runs: Sequence[Run], panel: Panel, smoothing: int | None) -> None:
    drawn = [(i, run.figures[panel.key]) for i, run in enumerate(runs) if panel.key in run.figures]
    faint = 0.22 * min(1, 3 / len(runs))
    smoothed = False
    for i, series in drawn:
        count = len(series.values)
        width = (smoothing or window(count)) if panel.smoothed else 1
        if width > 1:
            smoothed, raw = True, thin(series)
            axes.plot(raw.steps, raw.values, color=COLORS[i % len(COLORS)], alpha=faint, linewidth=0.7, zorder=2)
        marker = "o" if count == 1 or (count <= FEW and not panel.smoothed) else ""
        axes.plot(series.steps, smooth(series.values, width), **_look(i), marker=marker, markersize=3, zorder=3)
    axes.set_title(panel.name, parse_math=False)
    if smoothed:
        axes.set_title("faint: as logged, line: smoothed", loc="right", fontsize=7.5, fontweight="normal", color=GREY)
    axes.set_ylabel(panel.axis, parse_math=False)
    axes.set_xlabel("optimizer step")
    _scale(axes, [series for _, series in drawn], panel.from_zero)


def _scale(axes: Axes, drawn: Sequence[Series], from_zero: bool) -> None:
    """Whole steps below; at the side a logarithmic axis where a linear one would flatten nearly everything."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=ROUND, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    values = np.concatenate([series.values[np.isfinite(series.values)] for series in drawn] or [np.empty(0)])
    if from_zero:
        axes.set_ylim(bottom=0)
    elif len(values) and values.min() > 0 and values.max() > STEEP * np.median(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=ROUND))


def number(value: float) -> str:
    """As an axis has it: 1,500, 0.25, 3e-4."""
    if 0 < abs(value) < 0.001:
        digits, exponent = f"{value:.6e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:,.6g}"


def _draw_names(figure: Figure, runs: Sequence[Run], abreast: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_look(i)) for i in range(len(runs))]
    legend = figure.legend(
        handles,
        [str(i) for i in range(len(runs))],
        loc="outside lower center",
        ncols=abreast,
        frameon=False,
        handlelength=3.2,
    )
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)  # a name may have any letters
        text.set_text(_short(run.name))


def _look(i: int) -> dict[str, Any]:
    """Of the i-th run: each has a colour and dashes of its own, so that neither is needed to tell them apart."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.6}


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
