"""Output: lines, tables and progress for people, one JSON document for programs.

rich renders on a terminal; elsewhere everything is plain lines. rich is imported only when it renders.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from earl_cli.errors import EarlError, OutputError

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

log = logging.getLogger("earl_cli")
"""Warnings of the modules below the commands. Commands show them as lines; elsewhere the importing program decides."""
log.addHandler(logging.NullHandler())

PLAIN_PROGRESS_SECONDS = 5.0
NARROW = 60  # columns of a terminal that has no room for a bar, times and remarks
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Progress(Protocol):
    """A running task: ``advance`` adds finished units; ``update`` sets finished units, the total, and a remark.

    The first update sets what was finished before the start; it doesn't count in the rate.
    """

    def advance(self, units: float = 1) -> None: ...

    def update(self, done: float, total: float | None = None, note: str = "") -> None: ...


class Console:
    """The one console of the process.

    ``json``: exactly one JSON document on stdout, everything for people on stderr.
    ``quiet``: errors only. ``debug``: tracebacks with them.
    ``stdout_is_data``: an image goes to stdout, so lines for people go to stderr.
    ``lost``: the error of a failed write to stdout. It doesn't stop the work, but decides the exit code.
    Nothing is written to a stream that was closed before the start; failed writes to stderr are ignored.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Back to the state of a fresh process."""
        self.json = self.quiet = self.debug = self.stdout_is_data = False
        self.lost: OutputError | None = None
        self._screen: RichConsole | None = None

    # -- lines ---------------------------------------------------------------------------------------------------

    def say(self, text: str = "") -> None:
        """A line of result."""
        if not self.quiet:
            self._line(text, self._people())

    def block(self, text: str) -> None:
        """Lines of result, verbatim from a model or a judge."""
        if not self.quiet:
            for line in text.splitlines():
                self.plain(printable(line), self._people())

    def note(self, text: str) -> None:
        """A remark: what was chosen, what is running. Always on stderr."""
        if not self.quiet:
            self._line(text, sys.stderr, style="dim")

    def warn(self, text: str) -> None:
        """A warning. Always on stderr."""
        if not self.quiet:
            self._line(f"warning: {text}", sys.stderr, style="yellow")

    @contextmanager
    def shows_log(self) -> Iterator[None]:
        """Meanwhile every warning in `log` is a line of `warn`."""
        handler, propagate = _LogLines(logging.WARNING), log.propagate
        log.addHandler(handler)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.propagate = propagate

    def fail(self, error: EarlError, beside: Mapping[str, Any] | None = None) -> None:
        """The message of an error on stderr; with ``json`` also its document, with the keys of ``beside``."""
        where = f"{error.where}: " if error.where else ""
        self._line(f"error: {where}{error.what}", sys.stderr, style="red")
        if error.hint:
            self._line(f"hint: {error.hint}", sys.stderr)
        self.document({**(beside or {}), "error": error_document(error)})

    def document(self, data: Mapping[str, Any]) -> None:
        """The one JSON document of ``--json``; nothing otherwise."""
        if not self.json:
            return
        try:
            sys.stdout.write(json.dumps(data, indent=2, default=str) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            self.lose(error)

    def lose(self, error: OSError) -> None:
        """Record a failed write to stdout."""
        what = "it is closed" if error.errno == errno.EBADF else f"it can't be written: {error.strerror or error}"
        self.lost = self.lost or OutputError(what, where="stdout")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
        """Rows under headings: rendered by rich on a terminal, aligned by spaces elsewhere."""
        if self.quiet:
            return
        stream = self._people()
        columns, rows = [*map(one_line, columns)], [[*map(one_line, row)] for row in rows]
        if not _is_terminal(stream):
            for line in _aligned(columns, rows, title):
                self._line(line, stream)
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title and Text(one_line(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._rich(stream).print(table)

    # -- progress ------------------------------------------------------------------------------------------------

    @contextmanager
    def progress(self, label: str, total: float | None = None, *, unit: str = "") -> Iterator[Progress]:
        """A bar on a terminal; elsewhere a line on stderr at most every few seconds; nothing with ``quiet``."""
        label = one_line(label)
        if self.quiet:
            yield _NoProgress()
        elif self.is_live:
            with self.display() as screen, _rich_progress(screen, label, total, unit) as task:
                yield task
        else:
            yield _PlainProgress(label, total, unit)

    @property
    def is_live(self) -> bool:
        """Whether progress is rendered: stderr is a terminal, and ``quiet`` is off."""
        return not self.quiet and _is_terminal(sys.stderr)

    @contextmanager
    def display(self) -> Iterator[RichConsole]:
        """rich's console for a live display on stderr; meanwhile lines and tables go above it."""
        outer = self._screen
        self._screen = self._rich(sys.stderr)
        try:
            yield self._screen
        finally:
            self._screen = outer

    # -- where to ------------------------------------------------------------------------------------------------

    def _people(self) -> TextIO:
        return sys.stderr if self.json or self.stdout_is_data else sys.stdout

    def _line(self, text: str, stream: TextIO, style: str | None = None) -> None:
        text = one_line(text)
        if _is_terminal(stream) and (style or self._screen):
            self._rich(stream).print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            self.plain(text, stream)

    def plain(self, line: str, stream: TextIO) -> None:
        """Write a line in one call, as several threads may write."""
        if is_closed(stream):
            return
        try:
            print(f"{line}\n", end="", file=stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            if stream is sys.stdout:
                self.lose(error)

    def _rich(self, stream: TextIO) -> RichConsole:
        return self._screen or _rich(stream)


class _LogLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.warn(record.getMessage())


def error_document(error: EarlError) -> dict[str, Any]:
    """An error as JSON-able fields: what, where, hint, exit_code."""
    return {"what": error.what, "where": error.where, "hint": error.hint, "exit_code": error.exit_code}


def printable(text: str) -> str:
    """The text without control characters, those of direction too: file names and models may contain anything."""

    def escaped(match: re.Match[str]) -> str:
        number = ord(match[0])
        return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"

    return _CONTROL.sub(escaped, text)


def one_line(text: str) -> str:
    """The text with control characters and line ends escaped, so that it stays within its line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def listed(names: Iterable[object], most: int = 8) -> str:
    """The first few of many names, and how many more there are: "a, b, c and 4 more"."""
    words = [str(name) for name in names]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def shortened(text: str, length: int = 60) -> str:
    """The start of a text that may be long, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def is_closed(stream: TextIO) -> bool:
    """Whether the stream was closed before the program started."""
    try:
        os.write(stream.fileno(), b"")
    except OSError as error:
        return error.errno == errno.EBADF
    return False


class Pace:
    """The speed of a task. What the first update sets was finished before: it counts neither as work nor as time."""

    def __init__(self) -> None:
        self.started = self.seen = time.monotonic()
        self.done = 0.0
        self._first: tuple[float, float] | None = None

    def advance(self, units: float) -> None:
        """So many units more are done."""
        self._first = self._first or (0.0, self.started)
        self.update(self.done + units)

    def update(self, done: float) -> None:
        """So many units are done by now."""
        self.done, self.seen = done, time.monotonic()
        self._first = self._first or (done, self.seen)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Units a second up to the last update; 0 if that can't be known yet."""
        before, since = self._first or (0.0, self.seen)
        return max(0.0, (self.done - before) / (self.seen - since)) if self.seen > since else 0.0

    def left(self, total: float) -> float | None:
        """Seconds until ``total`` units are done; None if that can't be known yet."""
        if not self.rate:
            return None
        return max(0.0, (total - self.done) / self.rate - (time.monotonic() - self.seen))


class _NoProgress:
    def advance(self, units: float = 1) -> None:
        """Nothing to show."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Nothing to show."""


class _PlainProgress:
    """At most one line every ``PLAIN_PROGRESS_SECONDS``, so that a log stays short."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.pace = Pace()
        self.shown = self.pace.started

    def advance(self, units: float = 1) -> None:
        self.pace.advance(units)
        self._show("")

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self.total = total if total is not None else self.total
        self.pace.update(done)
        self._show(note)

    def _show(self, note: str) -> None:
        if self.pace.seen - self.shown < PLAIN_PROGRESS_SECONDS:
            return
        self.shown = self.pace.seen
        done, total = self.pace.done, self.total
        amount = f"{done:.12g}/{total:.12g}" if total else f"{done:.12g}"
        share = f" ({done / total:.0%})" if total else ""
        unit = f" {self.unit}" if self.unit else ""
        parts = [f"{self.label}: {amount}{unit}{share}", f"{self.pace.elapsed:.0f} s"]
        if self.pace.rate:
            parts += [speed(self.pace.rate, self.unit)]
        if total and (left := self.pace.left(total)) is not None:
            parts += [f"{duration(left)} left"]
        console.plain(", ".join([*parts, *filter(None, [one_line(note)])]), sys.stderr)


def speed(rate: float, unit: str) -> str:
    """Units a second, or the seconds for each: 3.5 steps/s, 2.4 s each."""
    return f"{rate:.3g} {unit}/s".replace(" /", "/") if rate >= 1 else f"{1 / rate:.3g} s each"


def duration(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 1440 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def _rich_progress(screen: RichConsole, label: str, total: float | None, unit: str) -> Iterator[Progress]:
    from rich import progress as bars
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(speed(task.speed, unit) if task.speed else "", style="progress.data.speed")

    columns: list[bars.ProgressColumn] = [
        bars.TextColumn("{task.description}", markup=False),
        bars.MofNCompleteColumn(),
    ]
    if screen.width >= NARROW:
        columns = [bars.SpinnerColumn(), columns[0], bars.BarColumn(), columns[1], bars.TextColumn(unit, markup=False)]
        columns += [bars.TimeElapsedColumn(), bars.TimeRemainingColumn(), Rate()]
        columns += [bars.TextColumn("{task.fields[note]}", markup=False)]
    shared = _is_terminal(sys.stdout)  # otherwise lines for stdout would go to stderr
    with bars.Progress(*columns, console=screen, transient=True, redirect_stdout=shared) as display:
        task = display.add_task(label, total=total, note="")
        first = True

        class Bar:
            def advance(self, units: float = 1) -> None:
                display.advance(task, units)

            def update(self, done: float, total: float | None = None, note: str = "") -> None:
                nonlocal first
                if first and done:  # units finished before the start don't count in the speed
                    display.reset(task, completed=int(done), total=total)
                first = False
                display.update(task, completed=done, total=total, note=one_line(note))

        yield Bar()


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> Iterator[str]:
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    if title:
        yield title
    for row in [columns, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _rich(stream: TextIO) -> RichConsole:
    from rich.console import Console as RichConsole

    return RichConsole(file=stream)


console = Console()
