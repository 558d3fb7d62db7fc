"""The report of an evaluation: one HTML file with tables, charts and a gallery, self-contained.

It has no network: style, script and images are in it, and its policy allows no others. Without its script the tables
and images are all there; the script sorts, filters and compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earl_cli.evaluation import tables as tabular
from earl_cli.evaluation.comparing import (
    TIMES,
    benchmark_title,
    by_benchmark,
    comparability,
    editor_names,
    flat,
    is_floor,
    joined,
    seeds_of,
)
from earl_cli.evaluation.gallery import HEADLINE, GallerySample, ImageStore, samples_of
from earl_cli.evaluation.results import COLUMNS, EvalRun
from earl_cli.evaluation.statistics import Estimate, columns_of
from earl_cli.evaluation.tables import ABSENT, Table, TableRow, floor_last, heading, number, tables_of
from earl_cli.images.html_gallery import render

COLORS = 6
"""Editors have this many colors, and then the same again."""
PAGE_NOTE = "Under each mean is its 95 % interval, from a bootstrap over source images."

Scale = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Chart:
    """Bars of one metric: the rows of ``table`` that have it; a bar of ``top`` is as wide as the chart."""

    table: Table
    column: str
    shown: bool

    @property
    def rows(self) -> list[TableRow]:
        return [row for row in self.table.rows if self.column in row.group.columns]

    @property
    def top(self) -> float:
        return COLUMNS[self.column].top or _scale(self.table, self.column)[1] or 1.0

    @property
    def end(self) -> str:
        """What the right edge stands for."""
        unit = heading(self.column)[2]
        return unit if COLUMNS[self.column].top else f"bars end at {self.top:.3g} {unit}".strip()


def report(runs: Sequence[EvalRun], title: str, entries_per_run: int = 200) -> str:
    """The page as HTML. Of a run with more edits than ``entries_per_run`` an even spread of samples is shown."""
    store = ImageStore()
    samples = samples_of(runs, entries_per_run, store)
    tables = tables_of(runs)
    charts = list(_charts(tables))
    groups = by_benchmark(runs).values()
    return render(
        __package__,
        "report",
        title,
        facts=_facts(runs),
        reasons=comparability(runs),
        benchmarks=[_benchmark(some, samples, i) for i, some in enumerate(groups)],
        tables=tables,
        charts=charts,
        chart_benchmarks=list({chart.table.benchmark: chart.table.title for chart in charts}.items()),
        chart_columns=_titles({chart.column for chart in charts}),
        samples=samples,
        shared=store.shared(),
        filters=_filters(runs, samples),
        columns=_titles(columns_of(runs)),
        editors=dict.fromkeys(name for some in groups for name in editor_names(floor_last(some))),
        colors=_colors(runs),
        column_of=COLUMNS,
        scales_of=lambda table: {column: _scale(table, column) for column in table.columns},
        percents=_percents,
        interval_text=_interval_text,
        heading=heading,
        number=number,
        label=tabular.label,
        counted=tabular.counted,
        absent=ABSENT,
        table_note=tabular.NOTE,
        page_note=PAGE_NOTE,
    )


def _facts(runs: Sequence[EvalRun]) -> Iterator[str]:
    editors = dict.fromkeys(run.editor or "editor" for run in floor_last(runs))
    judges = list(filter(None, dict.fromkeys(flat(run.scoring).get("judge.model", "") for run in runs)))
    seeds = sorted({seed for run in runs for seed in seeds_of(run)})
    yield _many(len(by_benchmark(runs)), "benchmark")
    yield f"{_many(len(editors), 'editor')}: {', '.join(editors)}"
    if judges:
        yield f"judged by {joined(judges)}"
    yield f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
    yield _many(sum(len(run.lines) for run in runs), "edit")


def _benchmark(runs: Sequence[EvalRun], samples: Sequence[GallerySample], index: int) -> dict[str, Any]:
    """Of a benchmark: its title, its editors, how each was run, and the part of its samples that is shown."""
    ordered = floor_last(runs)
    settings = []
    for run in ordered:
        counts = {"edits": str(len(run.lines)), "seeds": ", ".join(map(str, seeds_of(run)))}
        settings.append(counts | flat(run.about) | flat({"scoring": run.scoring} if run.scoring else {}, TIMES))
    every = {line.result.number for run in runs for line in run.lines}
    shown = {sample.first.number for sample in samples if sample.benchmark == index}
    part = f"{len(shown)} of {len(every)} samples, spread evenly over sources and tasks"
    return {
        "title": benchmark_title(runs),
        "editors": editor_names(ordered),
        "settings": [
            (key.replace(".", " ").replace("_", " "), [each.get(key, ABSENT) for each in settings])
            for key in dict.fromkeys(key for each in settings for key in each)
        ],
        "part": part if len(shown) < len(every) else f"all {_many(len(every), 'sample')}",
    }


def _charts(tables: Sequence[Table]) -> Iterator[Chart]:
    """The charts of each benchmark, by task if it has several; the one of the headline metric is shown at first."""
    groups: dict[str, dict[str, Table]] = {}
    for table in tables:
        groups.setdefault(table.benchmark, {})[table.by] = table
    for by in groups.values():
        table = next(by[name] for name in ("task", "source", "all") if name in by)
        first = next((name for name in HEADLINE if name in table.columns), next(iter(table.columns), None))
        yield from (Chart(table, column, column == first) for column in table.columns)


def _filters(runs: Sequence[EvalRun], samples: Sequence[GallerySample]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The menus over the gallery: id, title and options; those that leave no choice aren't shown."""
    titles = [(str(i), benchmark_title(some)) for i, some in enumerate(by_benchmark(runs).values())]
    results = [edit.line.result for sample in samples for edit in sample.edits]
    tasks, sources = ({result.task for result in results}, {result.source for result in results})
    every = ("", "all")
    return [
        ("filter-benchmark", "Benchmark", [every, *titles]),
        ("filter-task", "Task", [every, *((f"={task}", task or "(none)") for task in sorted(tasks))]),
        ("filter-source", "Source", [every, *((f"={source}", source or "(none)") for source in sorted(sources))]),
    ]


def _colors(runs: Sequence[EvalRun]) -> Mapping[str, str]:
    """A class for each editor's name, the same on all benchmarks; the floor is gray."""
    groups = by_benchmark(runs).values()
    named = [each for some in groups for each in zip(editor_names(some), some, strict=True)]
    names = dict.fromkeys(name for name, run in named if not is_floor(run))
    floors = dict.fromkeys((name for name, run in named if is_floor(run)), "gray")
    return {name: f"c{i % COLORS}" for i, name in enumerate(names)} | floors


def _titles(columns: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, COLUMNS[name].title) for name in COLUMNS if name in columns]


def _scale(table: Table, column: str) -> Scale:
    """From the lowest to the highest end of a column's intervals, with some room."""
    estimates = [row.group.columns[column] for row in table.rows if column in row.group.columns]
    ends = [end for each in estimates for end in (each.mean, each.low, each.high) if not math.isnan(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = (high - low) * 0.04 or 0.5
    return low - room, high + room


def _percents(values: Sequence[float], scale: Scale) -> list[str]:
    """Where values lie on a scale, for an SVG that is 100 wide."""
    shares = (100 * (value - scale[0]) / (scale[1] - scale[0]) for value in values)
    return [f"{max(0.0, min(100.0, share)):.1f}" for share in shares]


def _interval_text(column: str, estimate: Estimate) -> str:
    if not estimate.has_interval:
        return "no interval"
    return f"{number(column, estimate.low)} to {number(column, estimate.high)}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
