"""A run on terminals of several sizes, in a log, and where nothing is to be seen."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from earl_cli import console as module
from earl_cli.console import console
from earl_cli.dashboard import (
    KEPT,
    MetricHistory,
    MetricPanel,
    bars,
    dashboard,
    decimal,
    gigabytes,
    scientific,
    whole,
)

FIGURES = [
    MetricPanel("loss", plotted=True),
    MetricPanel("eval_loss", "validation loss", plotted=True),
    MetricPanel("learning_rate", form=scientific),
    MetricPanel("memory", form=gigabytes),
]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    """stdout and stderr at once, of a size that can change."""

    encoding = "utf-8"

    def __init__(self, width: int = 80, height: int = 24) -> None:
        super().__init__()
        self.width, self.height = width, height
        self.lines: list[str] = [""]
        self.row = 0

    def isatty(self) -> bool:
        return True

    def resize(self, width: int) -> None:
        """As terminals do: what is too long for the new width goes on in the next row, and the cursor stays with it."""
        self.screen()
        del self.lines[self.row + 1 :]
        self.lines = [line[i : i + width] for line in self.lines for i in range(0, max(len(line), 1), width)]
        self.width, self.row = width, len(self.lines) - 1

    def screen(self) -> list[str]:
        """What a person sees, after everything that was written so far."""
        written = self.getvalue()
        self.seek(0)
        self.truncate()
        for code, text in re.findall("(\x1b\\[[?0-9;]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", written):
            if code == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif code.endswith("A"):
                self.row -= int(code[2:-1])
                assert self.row >= 0
            elif code.endswith("K"):
                self.lines[self.row] = ""
            elif text:
                self.lines[self.row] += text
        assert not any("\r" in line for line in self.lines)
        return [line.rstrip() for line in "\n".join(self.lines).rstrip("\n").split("\n")]


@contextmanager
def at(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    def rich(stream: object) -> RichConsole:
        class Sized(RichConsole):
            @property
            def size(self) -> object:
                from rich.console import ConsoleDimensions

                return ConsoleDimensions(terminal.width, terminal.height)

        return Sized(file=terminal, force_terminal=True, color_system=None, _environ={})

    with monkeypatch.context() as patch:
        patch.setattr(module, "_rich", rich)
        patch.setattr(sys, "stderr", terminal)
        patch.setattr(sys, "stdout", terminal)
        yield terminal


def shown(
    monkeypatch: pytest.MonkeyPatch, *updates: tuple[object, ...], width: int = 80, height: int = 14, title: str = "fit"
) -> list[str]:
    with at(Terminal(width, height), monkeypatch) as terminal:
        with dashboard(title, FIGURES) as board:
            for update in updates:
                board.update(*update)  # type: ignore[arg-type]
        return terminal.screen()


# -- on a terminal -----------------------------------------------------------------------------------------------------


def test_the_last_state_stays_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [{"loss": 9 - i, "learning_rate": 2e-5, "memory": 41.24e9, "unlisted": 1.0} for i in range(8)]
    lines = shown(monkeypatch, *((i + 1, 8, metrics) for i, metrics in enumerate(losses)), (8, 8, {"eval_loss": 2.25}))
    assert lines[1] == "fit"
    assert lines[2] == "━" * 75 + " 100%"
    assert lines[3].startswith("8 of 8 steps   0 s so far")
    text = "\n".join(lines)
    assert re.search(r"^loss +2\.000 +█[▁-█]+▁ +2\.000 to 9\.000$", text, re.MULTILINE)
    assert re.search(r"^validation loss +2\.250", text, re.MULTILINE)
    assert "learning rate 2.00e-05   memory 41.2 GB" in text
    assert "unlisted" not in text
    assert text.count("fit") == 1


@pytest.mark.parametrize("height", [3, 6, 10, 24, 60])
@pytest.mark.parametrize("width", [12, 20, 40, 60, 79, 80, 200])
def test_every_size_is_enough(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = [(i, 300, {"loss": 9 / (i + 1), "eval_loss": 3.0, "memory": 1e9}) for i in range(300)]
    lines = shown(monkeypatch, *updates, width=width, height=height, title="a title longer than many a line")
    assert len(lines) < max(height, 2)
    assert max(map(len, lines)) <= min(width, 100)
    if height >= 24 and width >= 20:
        assert any(line.startswith("loss") for line in lines)
        assert any("memory 1.0 GB" in line for line in lines)
    if height == 60 and width >= 60:
        assert sum("█" in line for line in lines) > 1


def test_lines_go_above_the_board_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with at(Terminal(70, 30), monkeypatch) as terminal:
        with dashboard("fit", FIGURES) as board:
            for step in range(5):
                board.update(step, 5, {"loss": 1.0})
                console.note(f"noted at {step}, [b]not markup[/b]")
                console.warn("careful")
                console.say("said")
                print("printed by others")
                console.table(["column"], [["cell"]])
        console.say("afterwards")
        lines = terminal.screen()
    board_starts = lines.index("fit")
    above, below = lines[:board_starts], lines[board_starts:]
    assert [line for line in above if line.startswith("noted")] == [
        f"noted at {step}, [b]not markup[/b]" for step in range(5)
    ]
    for line in ("warning: careful", "said", "printed by others", "cell"):
        assert [each.strip() for each in above].count(line) == 5
    assert below[-1] == "afterwards"
    assert sum("of 5 steps" in line for line in lines) == 1
    assert sum("━" in line for line in lines) == 1


def test_another_progress_stands_below_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with at(Terminal(), monkeypatch) as terminal:
        with dashboard("fit", FIGURES) as board:
            board.update(1, 2, {"loss": 1.0})
            with console.progress("drawing", 3, unit="pairs") as progress:
                progress.advance()
            console.note("drawn")
        lines = terminal.screen()
    assert lines[0] == "drawn"
    assert sum("1 of 2 steps" in line for line in lines) == 1
    assert not any("drawing" in line for line in lines)


@pytest.mark.parametrize("widths", [(60,), (90, 45), (40, 100), (30, 25, 20)])
def test_a_terminal_that_changes_its_width(widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with at(Terminal(100, 40), monkeypatch) as terminal:
        console.say("before")
        with dashboard("fit", FIGURES) as board:
            for step in range(200):
                board.update(step, 400, {"loss": 9 / (step + 1), "learning_rate": 1e-4})
            console.note("first")
            for width in widths:
                terminal.resize(width)
                console.note(f"at {width}")
        lines = terminal.screen()
    notes = [line for line in lines[: lines.index("fit")] if line]
    assert notes == ["before", "first", *(f"at {width}" for width in widths)]
    assert lines.count("fit") == 1
    assert sum("loss" in line for line in lines) == 1


def test_an_interrupt_leaves_the_board_and_a_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    with at(Terminal(), monkeypatch) as terminal:
        with pytest.raises(KeyboardInterrupt), dashboard("fit", FIGURES) as board:
            board.update(1, 2, {"loss": 1.0})
            raise KeyboardInterrupt
        assert sys.stderr is terminal
        assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
        console.note("stopped")
        lines = terminal.screen()
    assert any("1 of 2 steps" in line for line in lines)
    assert lines[-1] == "stopped"


def test_metrics_that_are_no_numbers_are_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [2.0, 1.5, math.nan, math.inf, 1.0]
    updates = [(i, 5, {"loss": loss, "memory": math.nan}) for i, loss in enumerate(losses)]
    lines = shown(monkeypatch, *updates, (5, 5, {"loss": math.nan}))
    (line,) = (line for line in lines if line.startswith("loss"))
    assert re.fullmatch(r"loss +nan +█▄xx▁x +1\.000 to 2\.000", line)
    assert any("memory nan GB" in line for line in lines)
    assert any(re.match("loss +nan", line) for line in shown(monkeypatch, (1, 1, {"loss": math.nan})))


def test_names_and_remarks_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with at(Terminal(50, 24), monkeypatch) as terminal:
        metrics = [MetricPanel("a" * 80, plotted=True), MetricPanel("b" * 80), MetricPanel("c", "[red]literally")]
        with dashboard("evil\x1b[2J\nname " * 9, metrics) as board:
            board.update(1, 2, {each.key: 1.0 for each in metrics}, note="two\nlines\r" * 9)
        lines = terminal.screen()
    assert max(map(len, lines)) <= 50
    assert lines[1].startswith("evil\\x1b[2J name evil")
    assert any(line.startswith("aaa") and "… " in line and "1.000" in line for line in lines)
    assert any("[red]literally 1.000" in line for line in lines)
    assert lines[-1].startswith("two lines two lines")


def test_a_run_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, (1, 1, {"loss": 2.0}))
    assert any(line.startswith("1 of 1 steps") for line in lines)
    assert not any("left" in line or "each" in line or "/s" in line for line in lines)
    assert "starting" in "\n".join(shown(monkeypatch))


def test_what_was_done_before_is_no_speed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with at(Terminal(), monkeypatch) as terminal:
        with dashboard("fit", FIGURES) as board:
            clock.now += 50  # loading a checkpoint
            board.update(900, 1000, {})
            clock.now += 10
            board.update(920, 1000, {})
            clock.now += 4
        lines = terminal.screen()
    assert lines[3] == "920 of 1,000 steps   64 s so far   36 s left   2 steps/s"


def test_a_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    updates = [(i, 9, {"loss": 9.0 - i if i != 4 else math.nan}, "x" * 100) for i in range(9)]
    lines = shown(monkeypatch, *updates)
    assert any(re.match("-+ +89%", line) for line in lines)
    assert any(re.match(r"loss +1\.000  #[^ ]*x[^ ]*\. +1\.000 to 9\.000$", line) for line in lines)
    assert not set("".join(lines)) & set("━─▁█×…")


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def test_in_a_log_every_step_that_is_logged_is_one_short_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """However long a step takes: phases in between, as those of an iteration, are no lines."""
    with dashboard("fit", FIGURES) as board:
        board.update(100, 1000, {}, "starting")
        for step in range(101, 141):
            for phase in ("sampling 10%", "sampling 60%", "reward", "update"):
                clock.now += 10
                board.update(step - 1, 1000, {}, phase)
            board.update(step, 1000, {"loss": 2.5, "memory": 1e9, "tokens_per_second": 1e4})
            if step == 110:
                board.update(step, 1000, {"eval_loss": 2.25})
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 41
    assert lines[0] == "fit: 101/1000 steps, 9 h 59 min left: loss 2.500"
    assert lines[10] == "fit: 110/1000 steps, 9 h 53 min left: validation loss 2.250"
    assert lines[-1] == "fit: 140/1000 steps, 9 h 33 min left: loss 2.500"


def test_quiet_says_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    console.quiet = True
    with dashboard("fit", FIGURES) as board:
        clock.now += 100
        board.update(1, 2, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")
    assert shown(monkeypatch, (1, 2, {"loss": 1.0})) == [""]


def test_json_keeps_stdout_for_the_document(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.json = True
    with dashboard("fit", FIGURES) as board:
        clock.now += 100
        board.update(1, 2, {"loss": 1.0})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fit: 1/2 steps: loss 1.000\n"
    stdout = io.StringIO()
    with at(Terminal(), monkeypatch) as terminal:
        monkeypatch.setattr(sys, "stdout", stdout)
        with dashboard("fit", FIGURES) as board:
            board.update(1, 2, {"loss": 1.0})
            console.say("for people")
            console.document({"steps": 1})
        lines = terminal.screen()
    assert stdout.getvalue() == '{\n  "steps": 1\n}\n'
    assert "for people" in lines
    assert "fit" in lines


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (decimal, 2.10149, "2.101"),
        (decimal, 12.3456, "12.35"),
        (decimal, 999.96, "1000"),
        (decimal, 12345.6, "12,346"),
        (decimal, 0.0123, "0.01230"),
        (decimal, 1.5e-5, "1.50e-05"),
        (decimal, 0, "0.000"),
        (decimal, -3, "-3.000"),
        (decimal, math.nan, "nan"),
        (decimal, -math.inf, "-inf"),
        (scientific, 2e-5, "2.00e-05"),
        (whole, 12400.4, "12,400"),
        (whole, math.nan, "nan"),
        (gigabytes, 41.24e9, "41.2 GB"),
    ],
)
def test_numbers_as_people_write_them(form: object, value: float, text: str) -> None:
    assert form(value) == text  # type: ignore[operator]


def test_blocks_follow_the_values() -> None:
    assert bars([0, 1, 2, 3, 4, 5, 6, 7, 8], 1) == ["▁▁▂▃▄▅▆▇█"]
    assert bars([0, 8, 16], 2) == ["  █", "▁██"]
    assert bars([None, 1.0, 1.0], 1) == [" ▄▄"]
    assert bars([], 1) == [""]
    assert bars([*range(1, 40), 1000], 1)[0][30] > "▄"  # one high value doesn't flatten the rest


floats = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.none() | floats, max_size=50), st.integers(1, 3))
def test_any_values_can_be_plotted(values: list[float | None], rows: int) -> None:
    rendered = bars(values, rows)
    assert [len(row) for row in rendered] == [len(values)] * rows


@given(st.integers(1, 4 * KEPT), st.integers(1, 90))
def test_a_course_keeps_its_shape_in_bounded_memory(count: int, columns: int) -> None:
    course = MetricHistory()
    for step in range(count):
        course.add(step, step)
    assert len(course.points) <= KEPT
    means = [value for value in course.columns(columns, 0, count - 1) if value is not None]
    assert means == sorted(means)
    assert (course.low, course.high) == (0, count - 1)


def test_a_course_holds_between_its_values() -> None:
    course = MetricHistory()
    for step, value in ((0, 5.0), (50, math.nan), (100, 3.0)):
        course.add(step, value)
    found = course.columns(4, 0, 100)
    assert found[:2] == [5.0, 5.0]
    assert found[2] is not None
    assert math.isnan(found[2])
    assert found[3] == 3.0
