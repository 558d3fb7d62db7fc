"""What people and programs see: plain lines, tables and progress for people, one JSON document for programs.

On a terminal rich draws; elsewhere everything is plain lines. rich is imported only when something has to be drawn.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from earl_cli.errors import EarlError

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

PLAIN_PROGRESS_SECONDS = 5.0
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Progress(Protocol):
    """A running task: ``advance`` adds finished units; ``update`` sets how many are done, and of how many."""

    def advance(self, units: float = 1) -> None: ...

    def update(self, done: float, total: float | None = None) -> None: ...


class Console:
    """The one console of the process.

    ``json``: exactly one JSON document on stdout, everything for people on stderr.
    ``quiet``: errors only. ``debug``: tracebacks with them.
    ``stdout_is_data``: a picture goes to stdout, so lines for people go to stderr.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Back to the state of a fresh process."""
        self.json = self.quiet = self.debug = self.stdout_is_data = False

    # -- lines ---------------------------------------------------------------------------------------------------

    def say(self, text: str = "") -> None:
        """A line of result."""
        if not self.quiet:
            self._line(text, self._people())

    def note(self, text: str) -> None:
        """A line beside the result: what was chosen, what is running. Always on stderr."""
        if not self.quiet:
            self._line(text, sys.stderr, style="dim")

    def warn(self, text: str) -> None:
        """Something the person should know, that stops nothing. Always on stderr."""
        if not self.quiet:
            self._line(f"warning: {text}", sys.stderr, style="yellow")

    def fail(self, error: EarlError, beside: Mapping[str, Any] | None = None) -> None:
        """The message of an error on stderr, and with ``json`` its document, among what else there is to report."""
        where = f"{error.where}: " if error.where else ""
        self._line(f"error: {where}{error.what}", sys.stderr, style="red")
        if error.hint:
            self._line(f"hint: {error.hint}", sys.stderr)
        self.document({**(beside or {}), "error": error_document(error)})

    def document(self, data: Mapping[str, Any]) -> None:
        """The one JSON document of ``--json``; nothing otherwise."""
        if self.json:
            sys.stdout.write(json.dumps(data, indent=2, default=str) + "\n")
            sys.stdout.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
        """Rows under headings: drawn on a terminal, aligned by spaces elsewhere."""
        if self.quiet:
            return
        stream = self._people()
        if not _is_terminal(stream):
            for line in _aligned(columns, rows, title):
                self._line(line, stream)
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        _rich(stream).print(table)

    # -- progress ------------------------------------------------------------------------------------------------

    @contextmanager
    def progress(self, label: str, total: float | None = None, *, unit: str = "") -> Iterator[Progress]:
        """A bar on a terminal; elsewhere a line on stderr at most every few seconds; nothing with ``quiet``."""
        if self.quiet:
            yield _Silent()
        elif _is_terminal(sys.stderr):
            with _rich_progress(label, total, unit) as task:
                yield task
        else:
            yield _PlainProgress(label, total, unit)

    # -- where to ------------------------------------------------------------------------------------------------

    def _people(self) -> TextIO:
        return sys.stderr if self.json or self.stdout_is_data else sys.stdout

    def _line(self, text: str, stream: TextIO, style: str | None = None) -> None:
        text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)  # a file's name or a model may hold anything
        if _is_terminal(stream) and style:
            _rich(stream).print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=stream, flush=True)


def error_document(error: EarlError) -> dict[str, Any]:
    """An error as JSON-able fields: what, where, hint, exit_code."""
    return {"what": error.what, "where": error.where, "hint": error.hint, "exit_code": error.exit_code}


class _Silent:
    def advance(self, units: float = 1) -> None:
        """Nothing to show."""

    def update(self, done: float, total: float | None = None) -> None:
        """Nothing to show."""


class _PlainProgress:
    """At most one line every ``PLAIN_PROGRESS_SECONDS``, so that a log stays short."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.started = self.shown = time.monotonic()

    def advance(self, units: float = 1) -> None:
        self.update(self.done + units)

    def update(self, done: float, total: float | None = None) -> None:
        self.done = done
        self.total = total if total is not None else self.total
        now = time.monotonic()
        if now - self.shown < PLAIN_PROGRESS_SECONDS:
            return
        self.shown = now
        amount = f"{done:g}/{self.total:g}" if self.total else f"{done:g}"
        share = f" ({done / self.total:.0%})" if self.total else ""
        unit = f" {self.unit}" if self.unit else ""
        print(f"{self.label}: {amount}{unit}{share}, {now - self.started:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def _rich_progress(label: str, total: float | None, unit: str) -> Iterator[Progress]:
    from rich import progress as bars

    columns: list[bars.ProgressColumn] = [bars.SpinnerColumn(), bars.TextColumn("{task.description}", markup=False)]
    columns += [bars.BarColumn(), bars.MofNCompleteColumn(), bars.TextColumn(unit, markup=False)]
    columns += [bars.TimeElapsedColumn(), bars.TimeRemainingColumn()]
    shared = _is_terminal(sys.stdout)  # else lines for stdout would land in the bar's stream
    with bars.Progress(*columns, console=_rich(sys.stderr), transient=True, redirect_stdout=shared) as display:
        task = display.add_task(label, total=total)

        class Drawn:
            def advance(self, units: float = 1) -> None:
                display.advance(task, units)

            def update(self, done: float, total: float | None = None) -> None:
                display.update(task, completed=done, total=total)

        yield Drawn()


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
