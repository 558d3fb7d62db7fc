"""Plots of the curves of training runs as small multiples: which metrics of which kind of run, and their style.

Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earl_cli.errors import UsageError
from earl_cli.files import atomic_write
from earl_cli.training.common.curves import Goal, RunCurves, Series, metric_name, smooth, smoothing_window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = {".png": "png", ".svg": "svg"}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")  # Okabe and Ito, 2008
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
INK, GREY, GRID = "#333333", "#808080", "#E4E4E4"
FEW = 40  # up to so many values each gets a marker
MANY = 4  # beyond so many panels there are three columns instead of two
ROUND = [1, 2, 2.5, 5, 10]
STEEP = 20  # from this ratio of the maximum to the median on, a panel has a logarithmic axis


@dataclass(frozen=True)
class MetricPlot:
    """How a metric of the log is plotted: its name, its axis with the unit, whether it is smoothed, and from zero on.

    ``band`` are two metrics, a lower and an upper one, between which the panel is shaded.
    """

    key: str
    name: str
    axis: str
    smoothed: bool = False
    from_zero: bool = False
    band: tuple[str, str] | None = None


@dataclass(frozen=True)
class PlotSheet:
    """The plots of a kind of run: its ``panels``; ``step`` names what a step is.

    ``metric`` is the metric that the run optimizes, ``measure`` its short name, ``validation`` its metric on validation
    data, and ``goal`` its better side.
    """

    command: str
    panels: tuple[MetricPlot, ...]
    step: str
    measure: str
    metric: str
    validation: str
    goal: Goal


SFT = PlotSheet(
    command="sft",
    panels=(
        MetricPlot("loss", "Training loss", "nats per token", smoothed=True),
        MetricPlot("eval_loss", "Validation loss", "nats per token"),
        MetricPlot("learning_rate", "Learning rate", "step size", from_zero=True),
        MetricPlot("grad_norm", "Gradient norm", "L2 norm, before clipping", smoothed=True),
    ),
    step="optimizer step",
    measure="loss",
    metric="loss",
    validation="eval_loss",
    goal="lowest",
)

RL = PlotSheet(
    command="rl",
    panels=(
        MetricPlot("reward/mean", "Reward", "mean", smoothed=True, band=("reward/p10", "reward/p90")),
        MetricPlot("validation/reward/mean", "Validation reward", "mean"),
        MetricPlot("reward/group_std", "Spread within a group", "standard deviation", smoothed=True, from_zero=True),
        MetricPlot("kl", "KL from the reference model", "nats per token", smoothed=True, from_zero=True),
        MetricPlot("entropy", "Entropy", "nats per token", smoothed=True),
        MetricPlot("reward/frac_zero_std", "Groups with equal rewards", "share", smoothed=True, from_zero=True),
        MetricPlot("completions/frac_valid", "Valid edits", "share", smoothed=True),
        MetricPlot("completions/mean_length", "Completion length", "tokens", smoothed=True),
        MetricPlot("reward/frac_missing", "Missing rewards", "share", smoothed=True, from_zero=True),
        MetricPlot("grad_norm", "Gradient norm", "L2 norm, before clipping", smoothed=True),
        MetricPlot("sampler_mismatch", "Sampler mismatch", "difference of log p, nats", smoothed=True),
        MetricPlot("time/iteration", "Iteration time", "seconds per iteration", smoothed=True, from_zero=True),
    ),
    step="iteration",
    measure="reward",
    metric="reward/mean",
    validation="validation/reward/mean",
    goal="highest",
)


def choose_panels(sheet: PlotSheet, runs: Sequence[RunCurves], keys: Sequence[str]) -> PlotSheet:
    """The sheet with the panels of these metrics (old names too), by default with its own panels that some run has.

    Raises UsageError for a metric that no run has.
    """
    logged = dict.fromkeys(key for run in runs for key in run.metrics)
    for name in keys:
        if metric_name(name) not in logged:
            what = f"no run has the metric {name!r}"
            raise UsageError(what, where="--metric", hint=f"there are: {', '.join(logged)}")
    known = {panel.key: panel for panel in sheet.panels}
    own = [panel.key for panel in sheet.panels if panel.key in logged]
    chosen = dict.fromkeys(map(metric_name, keys)) or own or logged
    return replace(
        sheet,
        panels=tuple(
            known.get(key) or MetricPlot(key, re.sub("[/_]", " ", key), "as logged", smoothed=True) for key in chosen
        ),
    )


def write_curves(path: Path, runs: Sequence[RunCurves], sheet: PlotSheet, smoothing: int | None = None) -> None:
    """Plot the runs, a panel for each metric, as PNG or SVG by the suffix, written atomically.

    ``smoothing`` is a number of logged values; None: `smoothing_window`, 1: none. The same logs give the same bytes.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    form = FORMATS[path.suffix.lower()]
    plain = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context({**plain, **STYLE}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have characters that the font lacks
        figure = render(runs, sheet, smoothing)
        FigureCanvasAgg(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            figure.savefig(aside, format=form, metadata={"Date": None} if form == "svg" else None)


STYLE = {
    "font.family": ["DejaVu Sans", "sans-serif"],  # matplotlib's own; the other is for a reader of the SVG
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


def render(runs: Sequence[RunCurves], sheet: PlotSheet, smoothing: int | None) -> Figure:
    """The matplotlib figure: panels in up to three columns, and the legend of the runs below them."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = sheet.panels
    columns = min(2 if len(panels) <= MANY else 3, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = (7.5, 10.4, 13.5)[columns - 1]
    height = 3.1 if columns < 3 else 2.8
    per_row = min(len(runs), 5, max(1, int(width / (0.8 + 0.08 * max(len(_short(run.name)) for run in runs)))))
    size = (width, height * rows + (1.0 if rows == 1 else 0) + 0.22 * math.ceil(len(runs) / per_row) + 0.1)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, hspace=0.04, wspace=0.03))
    steps = [step for run in runs for series in run.metrics.values() for step in (series.steps[0], series.steps[-1])]
    first, last = min(steps), max(steps)
    margin = max(0.02 * (last - first), 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel_axes, panel in zip(axes, panels, strict=False):
        _plot_panel(panel_axes, runs, panel, smoothing)
        panel_axes.set_xlim(first - margin, last + margin)
        panel_axes.set_xlabel(sheet.step)
    for empty in axes[len(panels) :]:
        empty.set_visible(False)
    _add_legend(figure, runs, per_row)
    return figure


def _plot_panel(axes: Axes, runs: Sequence[RunCurves], panel: MetricPlot, smoothing: int | None) -> None:
    plotted = [(i, run) for i, run in enumerate(runs) if panel.key in run.metrics]
    faint = 0.22 * min(1, 3 / len(runs))
    note = ""
    for i, run in plotted:
        series = run.metrics[panel.key]
        count, color = len(series.values), COLORS[i % len(COLORS)]
        width = (smoothing or smoothing_window(count)) if panel.smoothed else 1
        band = [run.metrics[key] for key in panel.band or () if key in run.metrics]
        if len(band) == 2 and np.array_equal(band[0].steps, band[1].steps):
            note = "line: mean, band: 10 % to 90 %"
            low, high = (smooth(edge.values, width) for edge in band)
            axes.fill_between(band[0].steps, low, high, color=color, alpha=0.7 * faint, linewidth=0)
        elif width > 1:
            note = note or "faint: as logged, line: smoothed"
            axes.plot(series.steps, series.values, color=color, alpha=faint, linewidth=0.7, zorder=2)
        marker = "o" if count == 1 or (count <= FEW and not panel.smoothed) else ""
        axes.plot(series.steps, smooth(series.values, width), **_look(i), marker=marker, markersize=3, zorder=3)
    axes.set_title(panel.name, parse_math=False)
    axes.set_title(note, loc="right", fontsize=7.5, fontweight="normal", color=GREY)
    axes.set_ylabel(panel.axis, parse_math=False)
    _scale(axes, [run.metrics[panel.key] for _, run in plotted], panel.from_zero)


def _scale(axes: Axes, plotted: Sequence[Series], from_zero: bool) -> None:
    """Integer ticks for steps; a logarithmic axis for values where a linear one would flatten nearly everything."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=ROUND, integer=True))
    values = np.concatenate([series.values[np.isfinite(series.values)] for series in plotted] or [np.empty(0)])
    if from_zero:
        axes.set_ylim(bottom=0)
    elif len(values) and values.min() > 0 and values.max() > STEEP * np.median(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=ROUND))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.6g}")


def _add_legend(figure: Figure, runs: Sequence[RunCurves], per_row: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_look(i)) for i in range(len(runs))]
    names = [""] * len(runs)
    legend = figure.legend(handles, names, loc="outside lower center", ncols=per_row, frameon=False, handlelength=3.2)
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)  # a name may have any characters
        text.set_text(_short(run.name))


def _look(i: int) -> dict[str, Any]:
    """The line style of the i-th run; colour and dashes each distinguish the runs."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.6}


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
