"""What reaches stdout and stderr in each way of talking."""

from __future__ import annotations

import json

import pytest

from earl_cli import console as module
from earl_cli.console import Console
from earl_cli.errors import InputError


def test_results_go_to_stdout_and_remarks_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("result")
    console.note("remark")
    console.warn("careful")
    console.document({"not": "asked for"})
    captured = capsys.readouterr()
    assert captured.out == "result\n"
    assert captured.err == "remark\nwarning: careful\n"


def test_warnings_of_the_library_are_lines_of_a_command_and_of_nothing_else(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with module.console.shows_log():
        module.log.warning("careful: %d", 1)
    assert capsys.readouterr() == ("", "warning: careful: 1\n")
    assert caplog.messages == []  # not a second time, by whatever else listens
    module.log.warning("alone")
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == ["alone"]


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.json = True
    console.say("for people")
    console.table(["a"], [["b"]])
    console.document({"path": "caf\u00e9 \udcff", "n": 1})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"path": "caf\u00e9 \udcff", "n": 1}
    assert "for people" in captured.err


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().say("evil\x1b[2Jname\r.png\n\tnext")
    assert capsys.readouterr().out == "evil\\x1b[2Jname\\x0d.png\\n\\tnext\n"
    Console().block("a judge's\n\twords\x1b[2J")
    assert capsys.readouterr().out == "a judge's\n\twords\\x1b[2J\n"
    Console().say("gnp.\u202eexe\u2066\u200f")
    assert capsys.readouterr().out == "gnp.\\u202eexe\\u2066\\u200f\n"
    Console().fail(InputError("no picture", where="a.png\nerror: lies"))
    assert capsys.readouterr().err == "error: a.png\\nerror: lies: no picture\n"
    Console().fail(InputError("no\nerror: picture", hint="do\nhint: that"))
    assert capsys.readouterr().err == "error: no\\nerror: picture\nhint: do\\nhint: that\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_names_are_never_markup_nor_control(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_is_terminal", lambda _: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    console, name = Console(), "[red]a[/red] [/] [link=x]\x1b[2J\u202e\nb"
    shown = "[red]a[/red] [/] [link=x]\\x1b[2J\\u202e\\nb"
    for speak in (console.say, console.note, console.warn):
        speak(name)
    console.table([name], [[name]], title=name)
    console.fail(InputError(name, where=name, hint=name))
    with console.progress(name, 2, unit=name) as task:
        task.update(1, 2, name)
    result = capsys.readouterr()
    assert (result.out + result.err).count(shown) >= 9
    assert "\x1b[2J" not in result.out + result.err
    assert "\u202e" not in result.out + result.err


def test_quiet_leaves_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.quiet = True
    console.say("a")
    console.note("b")
    console.warn("c")
    console.table(["d"], [["e"]])
    with console.progress("f", 1) as task:
        task.advance()
    console.fail(InputError("unreadable", where="x.png", hint="get another"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: x.png: unreadable\nhint: get another\n"


def test_a_table_is_aligned_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(["name", "size"], [["a", "1"], ["longer", "22"]], title="Files")
    assert capsys.readouterr().out == "Files\nname    size\na       1\nlonger  22\n"


def test_plain_progress_is_rate_limited(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Console().progress("training", 1000, unit="steps") as task:
        for _ in range(1000):
            now[0] += 1 / 64  # 15.6 s in all
            task.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "training: 320/1000 steps (32%), 5 s, 64 steps/s, 11 s left"


def test_progress_keeps_to_one_line_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_is_terminal", lambda _: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what it writes to for a terminal
    for columns, bar in (("100", True), ("30", False)):
        monkeypatch.setenv("COLUMNS", columns)
        with Console().progress("drawing", 2, unit="pictures") as task:
            task.advance()
        screen = capsys.readouterr().err
        assert "drawing" in screen
        assert ("━" in screen) == bar
        assert "\x1b[1A\x1b[2K\x1b[1A" not in screen  # never more than one line to go up


def test_a_terminal_gets_rendered_tables_and_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_is_terminal", lambda _: True)
    console = Console()
    console.table(["name"], [["[bold]not markup"]])
    with console.progress("drawing", 2) as task:
        task.advance()
        task.update(2, 2)
    console.fail(InputError("[red]literally"))
    captured = capsys.readouterr()
    assert "[bold]not markup" in captured.out
    assert "[red]literally" in captured.err
