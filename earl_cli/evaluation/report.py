"""The report of an evaluation: one HTML file with tables, charts and a gallery, that needs nothing beside it.

It has no network: style, script and pictures are in it, and its policy allows no others. Without its script the tables
and pictures are all there; the script sorts, filters and compares.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

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
from earl_cli.evaluation.gallery import HEADLINE, GallerySample, ImageStore, gallery, samples_of, text
from earl_cli.evaluation.results import COLUMNS, EvalRun
from earl_cli.evaluation.statistics import Estimate, columns_of
from earl_cli.evaluation.tables import (
    ABSENT,
    NOTE,
    Table,
    TableRow,
    counted,
    floor_last,
    heading,
    label,
    number,
    tables_of,
)
from earl_cli.images.html_gallery import head, write_page

COLORS = 6
"""Editors have this many colors, and then the same again."""
REPEATED = ' class="repeated"'


def report(runs: Sequence[EvalRun], title: str, entries_per_run: int = 200) -> str:
    """The page as HTML. Of a run with more edits than ``entries_per_run`` an even spread of samples is shown."""
    style, script = (
        resources.files(__package__).joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    album = ImageStore()
    samples = samples_of(runs, entries_per_run, album)
    tables = tables_of(runs)
    colors = _colors(runs)
    lines = [
        *head(title, policy, style),
        "<body>",
        *_header(runs, title),
        "<main>",
        *_summary(tables, colors),
        *_charts(tables, colors),
        *_gallery(runs, samples, album),
        "</main>",
        album.shared(),
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def write_report(path: Path, html: str) -> None:
    """Write the page, whole or not at all, also over an older page; OutputError where something else has its name."""
    write_page(path, html)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode('utf-8')).digest()).decode('ascii')}'"


def _colors(runs: Sequence[EvalRun]) -> dict[str, str]:
    """A class for each editor's name, the same on all benchmarks; the floor is gray."""
    groups = by_benchmark(runs).values()
    named = [each for some in groups for each in zip(editor_names(some), some, strict=True)]
    names = dict.fromkeys(name for name, run in named if not is_floor(run))
    floors = dict.fromkeys((name for name, run in named if is_floor(run)), "gray")
    return {name: f"c{i % COLORS}" for i, name in enumerate(names)} | floors


def _header(runs: Sequence[EvalRun], title: str) -> Iterator[str]:
    groups = by_benchmark(runs)
    editors = dict.fromkeys(run.editor or "editor" for run in floor_last(runs))
    judges = dict.fromkeys(flat(run.scoring).get("judge.model", "") for run in runs)
    seeds = sorted({seed for run in runs for seed in seeds_of(run)})
    facts = [
        _many(len(groups), "benchmark"),
        f"{_many(len(editors), 'editor')}: {', '.join(editors)}",
        *[f"judged by {joined(list(filter(None, judges)))}" for _ in [0] if any(judges)],
        f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}",
        _many(sum(len(run.lines) for run in runs), "edit"),
    ]
    yield "<header>"
    yield f"<h1>{text(title)}</h1>"
    yield f'<p class="lead">{" <span>·</span> ".join(map(text, facts))}</p>'
    yield '<nav aria-label="Parts of this page"><a href="#summary">Summary</a> <a href="#tasks">Tasks</a> '
    yield '<a href="#gallery">Gallery</a></nav>'
    reasons = comparability(runs)
    if reasons:
        yield '<aside class="warning" role="note" aria-label="Warning"><h2>Not comparable as they stand</h2><ul>'
        yield from (f"<li>{text(reason)}</li>" for reason in reasons)
        yield "</ul></aside>"
    yield '<details class="about"><summary>What was run</summary>'
    for some in groups.values():
        yield from _about(floor_last(some))
    yield "</details></header>"


def _about(runs: Sequence[EvalRun]) -> Iterator[str]:
    columns = []
    for run in runs:
        counts = {"edits": str(len(run.lines)), "seeds": ", ".join(map(str, seeds_of(run)))}
        columns.append(counts | flat(run.about) | flat({"scoring": run.scoring} if run.scoring else {}, TIMES))
    title = text(benchmark_title(runs))
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{title}: what was run">'
    yield f'<table class="about"><caption>{title}</caption><thead><tr><td></td>'
    yield from (f'<th scope="col">{text(name)}</th>' for name in editor_names(runs))
    yield "</tr></thead><tbody>"
    for key in dict.fromkeys(key for column in columns for key in column):
        cells = "".join(f"<td>{text(column.get(key, ABSENT))}</td>" for column in columns)
        yield f'<tr><th scope="row">{text(key.replace(".", " ").replace("_", " "))}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _summary(tables: Sequence[Table], colors: dict[str, str]) -> Iterator[str]:
    yield '<section id="summary" aria-labelledby="summary-title"><h2 id="summary-title">Summary</h2>'
    if not tables:
        yield '<p class="quiet">There are no results.</p>'
    for table in tables:
        of_all = table.by == "all"
        name = table.title if of_all else f"By {table.by.replace(' x ', ' and ')}"
        if not of_all:
            yield f'<details class="more"><summary>{text(table.title)}: {text(name[:1].lower() + name[1:])}</summary>'
        yield from _table(table, name, colors)
        if of_all and table.notes:
            yield f'<ul class="notes">{"".join(f"<li>{text(_note(note))}</li>" for note in table.notes)}</ul>'
        if not of_all:
            yield "</details>"
    yield "</section>"


def _note(note: str) -> str:
    return "Under each mean is its 95 % interval, from a bootstrap over source pictures." if note == NOTE else note


def _table(table: Table, name: str, colors: dict[str, str]) -> Iterator[str]:
    grouped = table.by != "all"
    scales = {column: _scale([row.group.columns.get(column) for row in table.rows]) for column in table.columns}
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{text(table.title)}: {text(name)}">'
    yield f'<table class="sortable"><caption>{text(name)}</caption><thead><tr>'
    if grouped:
        yield f'<th scope="col" data-sort="text">{text(table.by.replace(" x ", " × "))}</th>'
    yield '<th scope="col" data-sort="text">editor</th>'
    for column in table.columns:
        title, arrow, unit = heading(column)
        better = "high" if COLUMNS[column].higher_is_better else "low"
        of = f" <small>{unit}</small>" if unit else ""
        yield (
            f'<th scope="col" data-sort="{better}">{text(title)} <i title="{better}er is better">{arrow}</i>{of}</th>'
        )
    for each in table.extra:
        most = " <small>of a figure, at most</small>" if each == "missing" else ""
        yield f'<th scope="col" data-sort="high">{each}{most}</th>'
    yield "</tr></thead><tbody>"
    for row in table.rows:
        yield '<tr class="floor">' if row.floor else "<tr>"
        if grouped:
            yield f'<th scope="row">{text(label(row.group))}</th>'
        swatch = f'<span class="swatch {colors.get(row.editor, "gray")}"></span>'
        floor = " <small>floor</small>" if row.floor else ""
        yield f'<th scope="row">{swatch}{text(row.editor)}{floor}</th>'
        yield from (_cell(row, column, scales[column]) for column in table.columns)
        yield from (f'<td class="count" data-value="{count}">{count}</td>' for count in _counts(table, row))
        yield "</tr>"
    yield "</tbody></table></div>"


def _counts(table: Table, row: TableRow) -> list[str]:
    """The cells of a table's ``extra`` columns; which figure lacks how many is said beside its mean."""
    most = str(max((estimate.missing for estimate in row.group.columns.values()), default=0))
    return [most if each == "missing" else counted(row, each) for each in table.extra]


def _cell(row: TableRow, column: str, scale: tuple[float, float]) -> str:
    estimate = row.group.columns.get(column)
    if estimate is None or math.isnan(estimate.mean):
        return f'<td class="none">{ABSENT}{_absent(estimate)}</td>'
    best = ' class="best"' if column in row.best else ""
    mean = number(column, estimate.mean)
    shown = f"{_interval(estimate, scale)}<small>{_range(column, estimate)}</small>"
    return f'<td{best} data-value="{estimate.mean:.6g}"><span class="mean">{mean}</span>{shown}{_absent(estimate)}</td>'


def _absent(estimate: Estimate | None) -> str:
    return f'<small class="lacks">{estimate.missing} missing</small>' if estimate and estimate.missing else ""


def _range(column: str, estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return "no interval"
    return f"{number(column, estimate.low)} to {number(column, estimate.high)}"


def _scale(estimates: Sequence[Estimate | None]) -> tuple[float, float]:
    """From the lowest to the highest end of the intervals, with some room."""
    ends = [end for each in estimates if each for end in (each.mean, each.low, each.high) if not math.isnan(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = (high - low) * 0.04 or 0.5
    return low - room, high + room


def _interval(estimate: Estimate, scale: tuple[float, float]) -> str:
    if math.isnan(estimate.low):
        return ""
    mean, low, high = (
        100 * (end - scale[0]) / (scale[1] - scale[0]) for end in (estimate.mean, estimate.low, estimate.high)
    )
    return (
        '<svg class="interval" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="track" x1="0" x2="100" y1="5" y2="5"/>'
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="5" y2="5"/>'
        f'<line class="middle" x1="{mean:.1f}" x2="{mean:.1f}" y1="1" y2="9"/></svg>'
    )


def _charts(tables: Sequence[Table], colors: dict[str, str]) -> Iterator[str]:
    yield '<section id="tasks" aria-labelledby="tasks-title"><h2 id="tasks-title">Tasks</h2>'
    groups: dict[str, list[Table]] = {}
    for table in tables:
        groups.setdefault(table.benchmark, []).append(table)
    charted = {name: _to_chart(some) for name, some in groups.items() if some[0].columns}
    columns = [name for name in COLUMNS if any(name in table.columns for table in charted.values())]
    if not columns:
        yield '<p class="quiet">Nothing was scored.</p></section>'
        return
    yield '<form class="controls" id="chart-controls" hidden>'
    yield _select("chart-benchmark", "Benchmark", [(name, table.title) for name, table in charted.items()])
    yield _select("chart-column", "Figure", [(name, COLUMNS[name].title) for name in columns])
    yield "</form>"
    for name, table in charted.items():
        first = next((each for each in HEADLINE if each in table.columns), table.columns[0])
        for column in table.columns:
            yield from _chart(name, table, column, colors, "" if column == first else " hidden")
    yield '<p class="quiet">Bars are means, whiskers their 95 % intervals.</p></section>'


def _to_chart(tables: Sequence[Table]) -> Table:
    by = {table.by: table for table in tables}
    return next(by[name] for name in ("task", "source", "all") if name in by)


def _chart(benchmark: str, table: Table, column: str, colors: dict[str, str], hidden: str) -> Iterator[str]:
    title, arrow, unit = heading(column)
    rows = [row for row in table.rows if column in row.group.columns]
    top = COLUMNS[column].top or _scale([row.group.columns[column] for row in rows])[1] or 1.0
    by = "" if table.by == "all" else f", by {table.by}"
    caption = f"{table.title}: {title}{by}"
    yield f'<div class="scroll chart" tabindex="0" role="region" aria-label="{text(caption)}" '
    yield f'data-benchmark="{text(benchmark)}" data-column="{column}"{hidden}><table><caption>{text(caption)} '
    end = unit if COLUMNS[column].top else f"bars end at {top:.3g} {unit}"
    yield f"<small><i>{arrow}</i> {text(end.strip())}</small></caption><tbody>"
    before = None
    for row in rows:
        key = label(row.group) if table.by != "all" else ""
        estimate = row.group.columns[column]
        again = key == before
        yield "<tr>" if again else '<tr class="first">'
        if key:
            yield f'<th scope="row"><span{REPEATED if again else ""}>{text(key)}</span></th>'
        yield f'<th scope="row" class="editor">{text(row.editor)}</th>'
        yield f'<td class="bar">{_bar(estimate, top, colors.get(row.editor, "gray"))}</td>'
        yield f'<td><span class="mean">{number(column, estimate.mean)}</span> '
        yield f"<small>{_range(column, estimate) if not math.isnan(estimate.mean) else 'missing'}</small></td></tr>"
        before = key
    yield "</tbody></table></div>"


def _bar(estimate: Estimate, top: float, color: str) -> str:
    if math.isnan(estimate.mean):
        return ""
    mean, low, high = (max(0.0, min(100.0, 100 * end / top)) for end in (estimate.mean, estimate.low, estimate.high))
    whisker = ""
    if not math.isnan(estimate.low):
        whisker = f'<path class="whisker" d="M{low:.1f} 6H{high:.1f}M{low:.1f} 3V9M{high:.1f} 3V9"/>'
    return (
        '<svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{color}" width="{mean:.1f}" height="12"/>{whisker}</svg>'
    )


def _gallery(runs: Sequence[EvalRun], samples: Sequence[GallerySample], album: ImageStore) -> Iterator[str]:
    yield '<section id="gallery" aria-labelledby="gallery-title"><h2 id="gallery-title">Gallery</h2>'
    shown = [{each.edits[0].line.result.number for each in samples if each.benchmark == i} for i in range(len(runs))]
    for numbers, some in zip(shown, by_benchmark(runs).values(), strict=False):
        every = {line.result.number for run in some for line in run.lines}
        title = benchmark_title(some)
        part = f"all {_many(len(every), 'sample')}"
        if len(numbers) < len(every):
            part = f"{len(numbers)} of {len(every)} samples, spread evenly over sources and tasks"
        yield f'<p class="quiet">{text(title)}: {part}.</p>'
    if samples:
        yield from _controls(runs, samples)
        yield '<div id="samples">'
        yield from gallery(runs, samples, album)
        yield "</div>"
    yield "</section>"


def _controls(runs: Sequence[EvalRun], samples: Sequence[GallerySample]) -> Iterator[str]:
    groups = by_benchmark(runs)
    lines = [edit.line for sample in samples for edit in sample.edits]
    editors = dict.fromkeys(name for some in groups.values() for name in editor_names(floor_last(some)))
    titles = [(str(i), benchmark_title(some)) for i, some in enumerate(groups.values())]
    tasks, sources = (sorted({getattr(line.result, name) for line in lines}) for name in ("task", "source"))
    columns = [(name, COLUMNS[name].title) for name in columns_of(runs)]
    yield '<form class="controls" id="filters" hidden aria-label="Filters">'
    if len(titles) > 1:
        yield _select("filter-benchmark", "Benchmark", [("", "all"), *titles])
    if len(tasks) > 1:
        yield _select("filter-task", "Task", [("", "all"), *((f"={each}", each or "(none)") for each in tasks)])
    if len(sources) > 1:
        yield _select("filter-source", "Source", [("", "all"), *((f"={each}", each or "(none)") for each in sources)])
    yield '<label>Instruction or id <input type="search" id="filter-words" autocomplete="off"></label>'
    if columns:
        yield '<div class="together">' + _select("filter-column", "Figure", columns)
        yield '<label>from <input type="number" id="filter-low" step="any" inputmode="decimal"></label>'
        yield '<label>to <input type="number" id="filter-high" step="any" inputmode="decimal"></label></div>'
        orders = [("", "as in the benchmark"), ("down", "figure, highest first"), ("up", "figure, lowest first")]
        yield _select("filter-order", "Order", orders)
    yield '<label class="check"><input type="checkbox" id="filter-failed"> failed or missing only</label>'
    yield '<button type="reset">Reset</button></form>'
    yield '<div class="strip" id="strip" hidden><fieldset id="editors"><legend>Editor</legend>'
    for i, (value, name) in enumerate([("", "all"), *((f"={name}", name) for name in editors)]):
        checked = "" if i else " checked"
        yield f'<label><input type="radio" name="editor" value="{text(value)}"{checked}>'
        yield f"<span>{text(name)}</span></label>"
    yield '</fieldset><p id="count" role="status"></p><p class="keys"><kbd>j</kbd> next <kbd>k</kbd> previous</p></div>'
    yield '<p class="warning" id="absent" role="status" hidden></p>'


def _select(name: str, title: str, options: Sequence[tuple[str, str]]) -> str:
    inside = "".join(f'<option value="{text(value)}">{text(shown)}</option>' for value, shown in options)
    return f'<label>{title} <select id="{name}">{inside}</select></label>'


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
