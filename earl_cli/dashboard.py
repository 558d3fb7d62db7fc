"""A long run on a terminal: how far it is, its latest figures and their course so far; plain lines elsewhere.

It is drawn in place, at any size of the terminal. What is said meanwhile goes above it, and its last state stays.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Literal, Protocol

from earl_cli.console import Pace, console, duration, printable, speed

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions, ConsoleRenderable, RenderResult
    from rich.text import Text

WIDEST = 100  # columns; a narrower terminal later on wraps less
TALLEST_COURSE = 3  # rows
SHORTEST_COURSE = 8  # columns
WIDE = 80  # columns from which on there is room for a figure's range
KEPT = 1024  # points of a course
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
    """A figure of a run: the key it comes under, its name for people, how it is written, and if its course is drawn."""

    key: str
    name: str = ""
    form: Callable[[float], str] = decimal
    drawn: bool = False

    @property
    def title(self) -> str:
        """What a person reads: the name, or the key as words."""
        return self.name or self.key.replace("_", " ")


class LiveTask(Protocol):
    """A running task that is shown."""

    def update(self, done: int, total: int, figures: Mapping[str, float], note: str = "") -> None:
        """So many steps of so many are done, with these figures and this remark; others stay as they were.

        The first update says what was done before; the speed and the time left are those of what comes after.
        """


@contextmanager
def dashboard(title: str, figures: Sequence[MetricPanel], *, unit: str = "steps") -> Iterator[LiveTask]:
    """Show a run with those of its figures that are listed, in this order.

    Off a terminal it is a line on stderr for each update with figures, and nothing with ``quiet``.
    """
    if not console.draws:
        yield _Lines(title, figures, unit)
        return
    with console.display() as screen:
        state = _State(title, figures, unit)
        with _live(screen, state):
            yield state


class _Lines:
    """The board as short lines, one for each update that brings figures whose course would be drawn: a log of a run."""

    def __init__(self, title: str, figures: Sequence[MetricPanel], unit: str) -> None:
        self.title, self.figures, self.unit = _one_line(title), [each for each in figures if each.drawn], unit
        self.pace = Pace()

    def update(self, done: int, total: int, figures: Mapping[str, float], note: str = "") -> None:  # noqa: ARG002
        self.pace.update(done)
        known = [f"{each.title} {each.form(figures[each.key])}" for each in self.figures if each.key in figures]
        left = self.pace.left(total)
        time = f", {duration(left)} left" if left is not None and done < total else ""
        if known:
            console.note(f"{self.title}: {done}/{total} {self.unit}{time}: {', '.join(known)}")


class MetricHistory:
    """A figure's values by step, in bounded memory: when there are too many, neighbours become their mean."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.low, self.high = math.inf, -math.inf
        self._each = 1
        self._waiting: list[tuple[float, float]] = []

    def add(self, step: float, value: float) -> None:
        """The value at the next step."""
        if math.isfinite(value):
            self.low, self.high = min(self.low, value), max(self.high, value)
        self._waiting.append((step, value))
        if len(self._waiting) == self._each:
            self.points.append(_mean(self._waiting))
            self._waiting = []
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


class _State:
    """What there is to show, and how it is drawn."""

    def __init__(self, title: str, figures: Sequence[MetricPanel], unit: str) -> None:
        self.title, self.figures, self.unit = _one_line(title), figures, unit
        self.pace = Pace()
        self.total = 0
        self.note = ""
        self.first: int | None = None
        self.latest: dict[str, float] = {}
        self.courses = {each.key: MetricHistory() for each in figures if each.drawn}
        self.lengths: list[int] = []
        self.width = 0
        self.lock = Lock()  # rich draws in a thread of its own

    def update(self, done: int, total: int, figures: Mapping[str, float], note: str = "") -> None:
        with self.lock:
            self.pace.update(done)
            self.total, self.note = total, _one_line(note) or self.note
            self.first = done if self.first is None else self.first
            self.latest.update(figures)
            for key, course in self.courses.items():
                if key in figures:
                    course.add(done, figures[key])

    # -- drawing -------------------------------------------------------------------------------------------------

    def __rich_console__(self, screen: RichConsole, options: ConsoleOptions) -> RenderResult:
        with self.lock:
            lines = self.lines(options.max_width, screen.height, ascii_only=options.ascii_only)
        self.lengths, self.width = [line.cell_len for line in lines], options.max_width
        yield from lines

    def surplus(self, width: int) -> int:
        """How many more rows the lines take if the terminal has become narrower and wrapped them."""
        return sum((length - 1) // width for length in self.lengths if length) if 0 < width < self.width else 0

    def lines(self, width: int, height: int, *, ascii_only: bool) -> list[Text]:
        """All that is shown, in at most ``width`` columns and ``height`` - 1 rows."""
        from rich.text import Text

        width = min(width, WIDEST)
        known = [each for each in self.figures if each.key in self.latest]
        drawn = [each for each in known if each.drawn]
        head = [Text(self.title, style="bold"), *self._progress(width, ascii_only)]
        facts = _flow([self._fact(each) for each in known if not each.drawn], width)
        tail = [Text(self.note, style="dim")] if self.note else []
        spare = height // 2 - len([*head, *facts, *tail]) - 2
        tall = spare // len(drawn) - 1 if drawn else 0
        parts = [
            head,
            self._courses(drawn, width, min(max(tall, 1), TALLEST_COURSE), ascii_only) if drawn else [],
            facts,
            tail,
        ]
        airy = sum(map(len, parts)) + len(parts) < height
        lines = [line for part in parts if part for line in (*([Text()] if airy else []), *part)]
        for line in lines:
            line.no_wrap = True
            line.truncate(width, overflow=_cut(ascii_only))
        return lines[: max(1, height - 1)]

    def _progress(self, width: int, ascii_only: bool) -> Iterator[Text]:
        from rich.text import Text

        done, total = self.pace.done, self.total
        share = min(1.0, done / total) if total else 0.0
        room = max(0, width - 6)
        full, rest = "#-" if ascii_only else "━─"
        filled = int(share * room)
        style = "bar.finished" if share == 1 else "bar.complete"
        yield Text.assemble((full * filled, style), (rest * (room - filled), "bar.back"), f"{int(share * 100):>5}%")
        parts = [Text(f"{done:,.0f} of {total:,} {self.unit}".rstrip() if self.first is not None else "starting")]
        parts += [Text(f"{duration(self.pace.elapsed)} so far")]
        left = self.pace.left(total)
        parts += [Text(f"{duration(left)} left")] if left is not None and done < total else []
        parts += [Text(speed(self.pace.rate, self.unit))] if self.pace.rate else []
        yield from _flow(parts, width)

    def _courses(self, drawn: Sequence[MetricPanel], width: int, tall: int, ascii_only: bool) -> list[Text]:
        """A block of rows for each figure: name, latest value and range, and its course beside them."""
        from rich.text import Text

        values = max(8 if width >= 40 else 0, *(len(each.form(self.latest[each.key])) for each in drawn))
        most = width // 3 if width // 3 > SHORTEST_COURSE else width - values - 2
        names = min(max(Text(each.title).cell_len for each in drawn), max(most, 1))
        ranges = {each.key: self._range(each) for each in drawn}
        beside = max(map(len, ranges.values())) + 2 if tall == 1 and width >= WIDE else 0
        wide = names + values + 2
        room = width - wide - 2 - beside
        count = min(room, max(len(self.courses[each.key].points) for each in drawn))
        lines = []
        for each in drawn:
            name = Text(each.title)
            name.truncate(names, overflow=_cut(ascii_only), pad=True)
            value = self.latest[each.key]
            left = Text.assemble(name, "  ", (f"{each.form(value):>{values}}", _style(value)))
            if room < SHORTEST_COURSE or count < 1:
                lines.append(left)
                continue
            course = self.courses[each.key].columns(count, self.first or 0, self.pace.done)
            below = Text(f"{ranges[each.key]:>{wide}}" if len(ranges[each.key]) <= wide else " " * wide, style="dim")
            rows = bars(course, tall, ASCII_BLOCKS if ascii_only else BLOCKS)
            for i, row in enumerate(rows):
                start = left if i == 0 else below if i == 1 else Text(" " * wide)
                end = f"{row:<{room}}  {ranges[each.key]}" if beside else row.rstrip()
                lines.append(Text.assemble(start, "  ", (end[:room], "cyan"), (end[room:].rstrip(), "dim")))
            lines += [Text()] if tall > 1 and each is not drawn[-1] else []
        return lines

    def _range(self, figure: MetricPanel) -> str:
        course = self.courses[figure.key]
        return f"{figure.form(course.low)} to {figure.form(course.high)}" if course.low < course.high else ""

    def _fact(self, figure: MetricPanel) -> Text:
        from rich.text import Text

        value = self.latest[figure.key]
        return Text.assemble((f"{figure.title} ", "dim"), (figure.form(value), _style(value)))


def _cut(ascii_only: bool) -> Literal["crop", "ellipsis"]:
    return "crop" if ascii_only else "ellipsis"


def _style(value: float) -> str:
    return "bold" if math.isfinite(value) else "bold red"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _flow(parts: Sequence[Text], width: int) -> list[Text]:
    """The parts side by side, in as many lines as it takes."""
    from rich.text import Text

    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 3 + part.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], "   ", part)
        else:
            lines.append(part)
    return lines


@contextmanager
def _live(screen: RichConsole, state: _State) -> Iterator[None]:
    from rich.control import Control
    from rich.live import Live
    from rich.segment import ControlType

    class Display(Live):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            """As in rich, which doesn't know that a terminal that becomes narrower wraps what is on it."""
            surplus = state.surplus(self.console.width)
            line = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
            start = [Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *line * surplus)]
            return [*(start if surplus else []), *super().process_renderables(renderables)]

    shared = sys.stdout.isatty()  # else lines for stdout would land in the board's stream
    with Display(state, console=screen, redirect_stdout=shared):
        yield
