"""Results as tables: one for each benchmark with a row an editor, then by source, task and seed.

The tables are the same wherever they are shown: as Markdown and as LaTeX here, and on the report's page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from earl_cli.evaluation.comparing import (
    TIMES,
    benchmark_title,
    by_benchmark,
    comparability,
    editor_names,
    flat,
    is_floor,
    seeds_of,
)
from earl_cli.evaluation.results import COLUMNS, EvalRun
from earl_cli.evaluation.statistics import DIMENSIONS, Estimate, MetricGroup, cluster, columns_of, summarize

ABSENT = "–"
UNITS = {"psnr": "dB"}
NOTE = "± is half of the mean's 95 % interval, from a bootstrap over source images."
BOLD_NOTE = "Bold: the best mean; an editor that returns the source unchanged (floor) is never bold."
MISSING_NOTE = (
    "Missing values are in no mean; an invalid edit (one without an image) has the scores that the protocol gives it."
)


@dataclass(frozen=True)
class TableRow:
    """One editor's metrics for some lines: all of them, or those that the group's key names.

    ``floor`` marks the editor that returns the source unchanged; ``best`` names the columns where no mean is better;
    ``samples`` counts distinct samples, ``images`` their distinct source images.
    """

    editor: str
    floor: bool
    group: MetricGroup
    samples: int
    images: int
    best: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Table:
    """Rows that may be compared; ``by`` is one of statistics' dimensions, ``notes`` say how they were computed."""

    benchmark: str
    title: str
    by: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def extra(self) -> list[str]:
        """What else is counted: samples, source images, edits if there are several seeds, missing and invalid ones."""
        edits = ["edits"] if len(self.seeds) > 1 else []
        names = ["samples", "source images", *edits] if self.by == "all" else edits or ["samples"]
        if any(missing_of(row.group) for row in self.rows):
            names.append("missing")
        if any(row.group.invalid for row in self.rows):
            names.append("invalid")
        return names


def tables_of(runs: Sequence[EvalRun]) -> list[Table]:
    """All tables, benchmark by benchmark, each in the order of statistics' dimensions."""
    return [table for some in by_benchmark(runs).values() for table in _tables(some)]


def markdown(runs: Sequence[EvalRun]) -> str:
    """The summary for a README: why not to compare if so, then every table with its footnotes."""
    blocks = ["\n".join(f"> **Not comparable.** {_md(each)}" for each in comparability(runs))]
    for table in tables_of(runs):
        blocks.append(f"{'##' if table.by == 'all' else '###'} {_md(_caption(table))}")
        head = [_md(each) for each in _head(table)]
        marks = ["---", *(["---"] * (table.by != "all")), *["---:"] * (len(table.columns) + len(table.extra))]
        rows = [_cells(table, row, _md, "**{}**", "_{}_ (floor)") for row in table.rows]
        blocks.append("\n".join(f"| {' | '.join(each)} |" for each in [head, marks, *rows]))
        blocks.append("\n".join(f"- {_md(note)}" for note in table.notes))
    return "\n\n".join(filter(None, blocks)) + "\n"


def latex(runs: Sequence[EvalRun]) -> str:
    r"""The summary for a paper: a ``table`` for each of the tables; needs ``\usepackage{booktabs}``."""
    blocks = ["\n".join(f"% Not comparable: {_one_line(each)}" for each in comparability(runs))]
    for table in tables_of(runs):
        names = 1 + (table.by != "all")
        aligned = "l" * names + "r" * (len(table.columns) + len(table.extra))
        rows = [_cells(table, row, _tex, r"\textbf{{{}}}", r"\textit{{{}}} (floor)") for row in table.rows]
        lines = [
            r"\begin{table}[t]",
            r"\centering",
            r"\small",
            rf"\caption{{{_tex(_caption(table))}}}",
            rf"\begin{{tabular}}{{{aligned}}}",
            r"\toprule",
            " & ".join(_tex(each) for each in _head(table)) + r" \\",
            r"\midrule",
        ]
        for before, row, cells in zip((None, *table.rows), table.rows, rows, strict=False):
            if before and before.group.key != row.group.key:
                lines.append(r"\addlinespace")
            lines.append(" & ".join(cells) + r" \\")
        notes = [rf"\par\smallskip\footnotesize {_tex(note)}" for note in table.notes]
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"]))
    return "\n\n".join(filter(None, blocks)) + "\n"


def floor_last(runs: Sequence[EvalRun]) -> list[EvalRun]:
    return sorted(runs, key=is_floor)


def heading(column: str) -> tuple[str, str, str]:
    """A column's title, an arrow to where better values are, and its unit or its best value ("of 10")."""
    about = COLUMNS[column]
    bound = f"of {about.top:g}" if about.top and about.higher_is_better else ""
    return about.title, "↑" if about.higher_is_better else "↓", UNITS.get(column, bound)


def number(column: str, value: float) -> str:
    return ABSENT if math.isnan(value) else f"{value:.{COLUMNS[column].digits}f}"


def with_interval(column: str, estimate: Estimate | None) -> str:
    """``mean ± half of the interval``, the mean alone where there is no interval."""
    if estimate is None or not estimate.is_known:
        return ABSENT
    if not estimate.has_interval:
        return number(column, estimate.mean)
    return f"{number(column, estimate.mean)} ± {number(column, (estimate.high - estimate.low) / 2)}"


def missing_of(group: MetricGroup) -> dict[int, list[str]]:
    """Titles of the columns that lack values, by how many they lack."""
    counts: dict[int, list[str]] = {}
    for name, estimate in group.columns.items():
        if estimate.missing:
            counts.setdefault(estimate.missing, []).append(COLUMNS[name].title)
    return counts


def counted(row: TableRow, name: str) -> str:
    """A cell of one of a table's ``extra`` columns."""
    if name == "missing":
        counts = missing_of(row.group)
        if len(counts) == 1 and len(*counts.values()) == len(row.group.columns):
            return str(*counts)
        return "; ".join(f"{count} in {_some(titles)}" for count, titles in counts.items()) or "0"
    values = {"samples": row.samples, "source images": row.images, "edits": row.group.samples}
    return str(values.get(name, row.group.invalid))


def _tables(runs: Sequence[EvalRun]) -> Iterator[Table]:
    names = dict(zip(map(id, runs), editor_names(runs), strict=True))
    ordered = floor_last(runs)
    columns, title = tuple(columns_of(runs)), benchmark_title(runs)
    seeds = tuple(sorted({seed for run in runs for seed in seeds_of(run)}))
    found = [(run, group) for run in ordered if run.lines for group in summarize(run)]
    for by in DIMENSIONS:
        groups = [(run, group) for run, group in found if group.by == by]
        keys = dict.fromkeys(group.key for _, group in groups)
        rows: list[TableRow] = []
        for key in keys:
            rows += _rows([(run, group) for run, group in groups if group.key == key], columns, names)
        if rows:
            notes = _notes(ordered, names, rows) if by == "all" else ()
            yield Table(runs[0].benchmark, title, by, columns, tuple(rows), seeds, notes)


def _rows(
    groups: Sequence[tuple[EvalRun, MetricGroup]], columns: Sequence[str], names: Mapping[int, str]
) -> Iterator[TableRow]:
    rivals = [group for run, group in groups if not is_floor(run)]
    best: dict[str, str] = {}
    for column in columns:
        means = [group.columns[column].mean for group in rivals if column in group.columns]
        means = [mean for mean in means if not math.isnan(mean)]
        if len(means) > 1:
            best[column] = number(column, max(means) if COLUMNS[column].higher_is_better else min(means))
    for run, group in groups:
        shown = {column: number(column, estimate.mean) for column, estimate in group.columns.items()}
        won = () if is_floor(run) else [column for column in best if shown.get(column) == best[column]]
        all_of_it = group.by == "all"
        samples = len({line.result.number for line in run.lines}) if all_of_it else group.samples
        images = len({cluster(line) for line in run.lines}) if all_of_it else 0
        yield TableRow(names[id(run)], is_floor(run), group, samples, images, frozenset(won))


def _notes(runs: Sequence[EvalRun], names: Mapping[int, str], rows: Sequence[TableRow]) -> tuple[str, ...]:
    notes = [NOTE] if any(row.group.columns for row in rows) else ["Nothing was scored."]
    notes += [BOLD_NOTE] if any(row.best for row in rows) else []
    notes += [MISSING_NOTE] if any(missing_of(row.group) or row.group.invalid for row in rows) else []
    groups: dict[str, list[str]] = {}
    for run in runs:
        settings = flat(run.scoring, TIMES)
        text = "; ".join(f"{key.replace('.', ' ')}: {value}" for key, value in settings.items())
        groups.setdefault(text, []).append(names[id(run)])
    for text, some in groups.items():
        who = f" ({', '.join(some)})" if len(groups) > 1 else ""
        notes += [f"Scored with{who} {text}."] if text else []
    return tuple(notes)


def _some(titles: Sequence[str]) -> str:
    return f"{titles[0]} and {len(titles) - 1} more" if len(titles) > 2 else " and ".join(titles)


def _caption(table: Table) -> str:
    by = "" if table.by == "all" else f", by {table.by.replace(' x ', ' and ')}"
    several = f", seeds {', '.join(map(str, table.seeds))}" if len(table.seeds) > 1 and table.by == "all" else ""
    return f"{table.title}{by}{several}"


def _head(table: Table) -> list[str]:
    columns = []
    for column in table.columns:
        title, arrow, unit = heading(column)
        columns.append(f"{title} {arrow}" + (f" ({unit})" if unit else ""))
    return [*([table.by.replace(" x ", " × ")] if table.by != "all" else []), "editor", *columns, *table.extra]


def _cells(table: Table, row: TableRow, escape: Callable[[str], str], bold: str, floor: str) -> list[str]:
    name = escape(row.editor)
    cells = [escape(label(row.group))] if table.by != "all" else []
    cells.append(floor.format(name) if row.floor else name)
    for column in table.columns:
        text = escape(with_interval(column, row.group.columns.get(column)))
        cells.append(bold.format(text) if column in row.best else text)
    return cells + [escape(counted(row, each)) for each in table.extra]


def label(group: MetricGroup) -> str:
    """A group's key as tables show it."""
    key = group.key.replace(" x ", " × ", 1) if group.by == "source x task" else group.key
    return key.strip() or "(none)"


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text).split())


def _md(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", _one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    ABSENT: "--",
} | {each: f"\\{each}" for each in "&%$#_{}"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(each, each) for each in _one_line(text))
