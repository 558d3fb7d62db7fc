"""A long run on a terminal: its progress, its latest metrics and their history; plain lines elsewhere.

rich lays it out and keeps it in place, at any size of the terminal. Other lines go above it, and its last state stays.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from earl_cli.console import Pace, console, duration, printable, speed

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions, ConsoleRenderable, RenderResult
    from rich.segment import Segment
    from rich.text import Text

WIDEST = 100  # columns; a narrower terminal later on wraps less
NARROWEST_PLOT = 8  # columns
WIDE = 80  # columns from which on there is room for a metric's range
HEIGHTS = ((3, True), (2, True), (1, True), (1, False))  # rows of a plot and whether blank lines part the blocks
KEPT = 1024  # points of a history
BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*%#"


def decimal(value: float) -> str:
    """Four digits: 2.101, 12.35, 0.0123, 12,345, 1.50e-05."""
    if 0 < abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def scientific(value: float) -> str:
    """As learning rates are written: 2.00e-05."""
    return f"{value:.2e}"


def whole(value: float) -> str:
    """Without decimals: 12,345."""
    return f"{value:,.0f}"


def gigabytes(value: float) -> str:
    """Of a number of bytes: 41.2 GB."""
    return f"{value / 1e9:.1f} GB"


@dataclass(frozen=True)
class MetricPanel:
    """A metric of a run: its key, its name for people, how it is written, and whether its history is plotted."""

    key: str
    name: str = ""
    form: Callable[[float], str] = decimal
    plotted: bool = False

    @property
    def title(self) -> str:
        """The name, or the key with spaces."""
        return self.name or self.key.replace("_", " ")


class LiveTask(Protocol):
    """A running task that is shown."""

    def update(self, done: int, total: int, metrics: Mapping[str, float], note: str = "") -> None:
        """So many steps of so many are done, with these metrics and this remark; others stay as they were.

        The first update says what was done before; the speed and the time left are those of what comes after.
        """


@contextmanager
def dashboard(title: str, panels: Sequence[MetricPanel], *, unit: str = "steps") -> Iterator[LiveTask]:
    """Show a run with those of its metrics that have a panel, in this order.

    Off a terminal it is a line on stderr for each update with metrics, and nothing with ``quiet``.
    """
    if not console.is_live:
        yield _Lines(title, panels, unit)
        return
    with console.display() as screen:
        board = _Board(title, panels, unit)
        with _live(screen, board):
            yield board


class _Lines:
    """The board as a log: a short line for each update that brings metrics whose history would be plotted."""

    def __init__(self, title: str, panels: Sequence[MetricPanel], unit: str) -> None:
        self.title, self.panels, self.unit = _one_line(title), [each for each in panels if each.plotted], unit
        self.pace = Pace()

    def update(self, done: int, total: int, metrics: Mapping[str, float], note: str = "") -> None:  # noqa: ARG002
        self.pace.update(done)
        known = [f"{each.title} {each.form(metrics[each.key])}" for each in self.panels if each.key in metrics]
        left = self.pace.left(total)
        time = f", {duration(left)} left" if left is not None and done < total else ""
        if known:
            console.note(f"{self.title}: {done}/{total} {self.unit}{time}: {', '.join(known)}")


class MetricHistory:
    """A metric's values by step, in bounded memory: when there are too many, neighbours become their mean."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.low, self.high = math.inf, -math.inf
        self._each = 1
        self._pending: list[tuple[float, float]] = []

    def add(self, step: float, value: float) -> None:
        """The value at the next step."""
        if math.isfinite(value):
            self.low, self.high = min(self.low, value), max(self.high, value)
        self._pending.append((step, value))
        if len(self._pending) == self._each:
            self.points.append(_mean(self._pending))
            self._pending = []
        if len(self.points) == KEPT:
            self.points = [_mean(self.points[i : i + 2]) for i in range(0, KEPT, 2)]
            self._each *= 2

    def columns(self, count: int, first: float, last: float) -> list[float | None]:
        """The mean in each of ``count`` equal parts of the steps from ``first`` to ``last``.

        A part without values has that of the part before, or None; one value that is no number makes the mean none.
        """
        parts: list[list[float]] = [[] for _ in range(count)]
        for step, value in self.points:
            place = int((step - first) / (last - first) * count) if last > first else 0
            parts[min(max(place, 0), count - 1)].append(value)
        found: list[float | None] = []
        for part in parts:
            found.append(sum(part) / len(part) if part else found[-1] if found else None)
        return found


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return points[0][0], sum(value for _, value in points) / len(points)


def bars(values: Sequence[float | None], rows: int, blocks: str = BLOCKS) -> list[str]:
    """Values as columns of blocks, so many rows high; x where a value is no number.

    The scale ends at the 90th percentile if there are many, so that one high value doesn't flatten the others.
    """
    finite = sorted(value for value in values if value is not None and math.isfinite(value))
    low = finite[0] if finite else 0.0
    high = finite[int(0.9 * (len(finite) - 1))] if len(finite) >= 20 else finite[-1] if finite else 0.0
    high = high if high > low else finite[-1] if finite else 0.0
    most = rows * (len(blocks) - 1)

    def filled(value: float) -> int:
        share = min(1.0, (value - low) / (high - low)) if high > low else 0.5
        return max(1, round(share * most))

    def cell(value: float | None, row: int) -> str:
        if value is None:
            return " "
        if not math.isfinite(value):
            return " " if row else "x"
        return blocks[min(max(filled(value) - row * (len(blocks) - 1), 0), len(blocks) - 1)]

    return ["".join(cell(value, row) for value in values) for row in reversed(range(rows))]


class _Board:
    """What there is to show, as a renderable of rich."""

    def __init__(self, title: str, panels: Sequence[MetricPanel], unit: str) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn

        self.title, self.panels, self.unit = _one_line(title), panels, unit
        self.pace = Pace()
        self.progress = Progress(BarColumn(None), TaskProgressColumn(), expand=True)
        self.bar = self.progress.add_task("", total=1)
        self.total = 0
        self.note = ""
        self.first: int | None = None
        self.latest: dict[str, float] = {}
        self.histories = {each.key: MetricHistory() for each in panels if each.plotted}
        self.lengths: list[int] = []
        self.width = 0
        self.lock = Lock()  # rich renders in a thread of its own

    def update(self, done: int, total: int, metrics: Mapping[str, float], note: str = "") -> None:
        with self.lock:
            self.pace.update(done)
            self.progress.update(self.bar, completed=done, total=total)
            self.total, self.note = total, _one_line(note) or self.note
            self.first = done if self.first is None else self.first
            self.latest.update(metrics)
            for key, history in self.histories.items():
                if key in metrics:
                    history.add(done, metrics[key])

    def surplus(self, width: int) -> int:
        """How many more rows the lines take if the terminal has become narrower and wrapped them."""
        return sum((length - 1) // width for length in self.lengths if length) if 0 < width < self.width else 0

    # -- rendering -----------------------------------------------------------------------------------------------

    def __rich_console__(self, screen: RichConsole, options: ConsoleOptions) -> RenderResult:
        """As tall as the terminal allows: plots of several rows in half of it, else of one row in all but one line."""
        from rich.segment import Segment

        self.width = options.max_width
        options = options.update(width=min(options.max_width, WIDEST), height=None)
        with self.lock:
            for rows, gaps in HEIGHTS:
                lines = self._lines(screen, options, rows, gaps)
                if len(lines) <= (screen.height - 1 if rows == 1 else screen.height // 2):
                    break
        shown = lines[: max(1, screen.height - 1)]
        self.lengths = [Segment.get_line_length(line) for line in shown]
        for line in shown:
            yield from line
            yield Segment.line()

    def _lines(self, screen: RichConsole, options: ConsoleOptions, rows: int, gaps: bool) -> list[list[Segment]]:
        from rich.columns import Columns
        from rich.console import Group
        from rich.text import Text

        known = [each for each in self.panels if each.key in self.latest]
        plotted = [each for each in known if each.plotted]
        facts = [self._fact(each) for each in known if not each.plotted]
        times = Columns(self._times(), padding=(0, 3))
        blocks: list[list[ConsoleRenderable]] = [
            [self._text(options, self.title, "bold"), self.progress.make_tasks_table(self.progress.tasks), times],
            [self._plots(plotted, options, rows)] if plotted else [],
            [Columns(facts, padding=(0, 3))] if facts else [],
            [self._text(options, self.note, "dim")] if self.note else [],
        ]
        parts = [part for block in blocks if block for part in ([Text(), *block] if gaps else block)]
        return screen.render_lines(Group(*parts), options, pad=False)

    def _text(self, options: ConsoleOptions, text: str, style: str) -> Text:
        from rich.text import Text

        return Text(text, style, no_wrap=True, overflow="crop" if options.ascii_only else "ellipsis")

    def _times(self) -> list[Text]:
        from rich.text import Text

        done, total = self.pace.done, self.total
        left = self.pace.left(total)
        parts = [f"{done:,.0f} of {total:,} {self.unit}".rstrip() if self.first is not None else "starting"]
        parts += [f"{duration(self.pace.elapsed)} so far"]
        parts += [f"{duration(left)} left"] if left is not None and done < total else []
        parts += [speed(self.pace.rate, self.unit)] if self.pace.rate else []
        return [Text(part, no_wrap=True) for part in parts]

    def _plots(self, panels: Sequence[MetricPanel], options: ConsoleOptions, rows: int) -> ConsoleRenderable:
        """A row for each metric: name, latest value and range, and its history beside them."""
        from rich.table import Column, Table
        from rich.text import Text

        width = options.max_width
        has_plot = width >= 5 * NARROWEST_PLOT
        columns = [Column(no_wrap=True, overflow="crop", max_width=max(width // 3, 4)), Column(justify="right")]
        columns += [Column(no_wrap=True, overflow="crop", ratio=1, style="cyan")] if has_plot else []
        columns += [Column(style="dim")] if has_plot and width >= WIDE and rows == 1 else []
        table = Table.grid(*columns, padding=(0, 2, 0, 0), expand=has_plot)
        for each in panels:
            history, value = self.histories[each.key], self.latest[each.key]
            name, latest = self._text(options, each.title, ""), Text(f"{each.form(value):>8}", _style(value))
            low, high = each.form(history.low), each.form(history.high)
            extent = Text(f"{low} to {high}" if history.low < history.high else "", "dim")
            plot = _Plot(history, self.first or 0, self.pace.done, rows)
            cells: list[ConsoleRenderable] = [
                name,
                Text("\n").join([latest, extent] if rows > 1 else [latest]),
                plot,
                extent,
            ]
            table.add_row(*cells[: len(columns)])
            if rows > 1 and each is not panels[-1]:
                table.add_row()
        return table

    def _fact(self, panel: MetricPanel) -> Text:
        from rich.text import Text

        value = self.latest[panel.key]
        return Text.assemble((f"{panel.title} ", "dim"), (panel.form(value), _style(value)), no_wrap=True)


@dataclass(frozen=True)
class _Plot:
    """A history as blocks, as wide as there is room and as there are points."""

    history: MetricHistory
    first: float
    last: float
    rows: int

    def __rich_console__(self, screen: RichConsole, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        count = min(options.max_width, len(self.history.points))
        values = self.history.columns(count, self.first, self.last)
        yield Text("\n".join(bars(values, self.rows, ASCII_BLOCKS if options.ascii_only else BLOCKS)))


def _style(value: float) -> str:
    return "bold" if math.isfinite(value) else "bold red"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


@contextmanager
def _live(screen: RichConsole, board: _Board) -> Iterator[None]:
    from rich.control import Control
    from rich.live import Live
    from rich.segment import ControlType

    class Display(Live):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            """As in rich; also removes the rows that a terminal added by wrapping when it became narrower."""
            surplus = board.surplus(self.console.width)
            line = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
            start = [Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *line * surplus)]
            return [*(start if surplus else []), *super().process_renderables(renderables)]

    shared = sys.stdout.isatty()  # else lines for stdout would land in the board's stream
    with Display(board, console=screen, redirect_stdout=shared):
        yield
