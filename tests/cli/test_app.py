"""The shell around the commands: what it imports, what it says, and how every failure ends."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from earl_cli import app
from earl_cli.console import console
from earl_cli.errors import (
    DeviceError,
    EarlError,
    InputError,
    MissingExtraError,
    OutputError,
    PartialFailureError,
    UsageError,
    explain,
)

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "datasets",
    "PIL",
    "pyarrow",
    "pydantic",
    "tokenizers",
    "safetensors",
    "matplotlib",
    "rich",
}


HELPS = [["--help"], ["--version"], *([*name.split(), "--help"] for name in app.COMMANDS)]
SHOWS_HELPS = """
import json, sys
from earl_cli.app import run
start = {name for name in sys.modules if name.startswith("earl_cli")}
for args in json.loads(sys.argv[1]):
    assert run(args) == 0
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
    for name in [name for name in sys.modules if name.startswith("earl_cli") and name not in start]:
        del sys.modules[name]  # the next help imports its own modules again
"""


@pytest.fixture(scope="module")
def imported() -> list[set[str]]:
    """The modules that are there after each of `HELPS`, one after the other in a new process."""
    command = [sys.executable, "-c", SHOWS_HELPS, json.dumps(HELPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [set(json.loads(line)) for line in done.stderr.splitlines()]


@pytest.mark.parametrize("number", range(len(HELPS)), ids=[" ".join(args) for args in HELPS])
def test_help_imports_nothing_heavy(imported: list[set[str]], number: int) -> None:
    args, modules = HELPS[number], imported[number]
    by_typer = {"pydantic"} if args[0] in app.COMMANDS else set()  # Typer converts a command's values with it
    assert modules & HEAVY <= by_typer
    own = {name for name in modules if name.startswith("earl_cli.")}
    allowed = {"app", "console", "errors", "commands"}
    if args[0] in app.COMMANDS:
        allowed |= {f"commands.{name}" for name in ("_options", "_training", "eval.options")} | {
            "config",
            "config.sampling",
        }
        allowed |= {f"commands.edit.{name}" for name in ("files", "run", "targets")}
        allowed |= {f"commands.{args[0]}", app.module_of(" ".join(args[:-1])).removeprefix("earl_cli.")}
    assert own <= {f"earl_cli.{name}" for name in allowed}


def test_help_comes_at_once() -> None:
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "earl_cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # processor time: what others do on the machine is out
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) <= 0.3


def test_help_lists_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--help"]) == 0
    text = capsys.readouterr().out
    for name in app.COMMANDS:
        assert (f"\n  {name} " in text) == (" " not in name)
    for code, meaning in app.EXIT_CODES.items():
        assert f"{code}  {meaning}" in text


def test_help_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], *(name.split() for name in app.COMMANDS)):
        assert app.run([*args, "--help"]) == 0
        text = capsys.readouterr().out
        assert "..." not in text.partition("Commands:")[2]
        assert not re.search(r"\[\[|\.\.\.[}\]]", text.splitlines()[0].replace('"', ""))


def test_a_command_lists_those_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["tokenize", "--help"]) == 0
    text = capsys.readouterr().out
    for name, meaning in app.COMMANDS.items():
        assert (f"  {name}: {meaning}" in text) == name.startswith("tokenize ")
    assert app.run(["tokenize", "inspect", "--help"]) == 0
    assert "Usage: earl tokenize inspect " in capsys.readouterr().out


def test_every_error_class_has_a_documented_exit_code() -> None:
    classes = EarlError.__subclasses__()
    assert classes
    assert {error.exit_code for error in classes} <= set(app.EXIT_CODES)


def test_no_arguments_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([]) == 0
    assert "Usage: earl" in capsys.readouterr().out


def test_version_is_the_package_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--version"]) == 0
    declared = Path(app.__file__).parents[1] / "pyproject.toml"
    assert f'version = "{capsys.readouterr().out.split()[1]}"' in declared.read_text()


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("edti a.png x", "there is no command 'edti'", "did you mean 'earl edit'?"),
        ("EDIT a.png x", "there is no command 'EDIT'", "did you mean 'earl edit'?"),
        ("inspect store", "there is no command 'inspect'", "did you mean 'earl tokenize inspect'?"),
        ("tokenize inspet store", "there is no command 'tokenize inspet'", "did you mean 'earl tokenize inspect'?"),
        ("eval List", "there is no command 'eval List'", "did you mean 'earl eval list'?"),
        ("train", "there is no command 'train'", "did you mean 'earl sft'?"),
        ("help", "there is no command 'help'", "did you mean 'earl --help'?"),
        ("x" * 5000, f"there is no command '{'x' * 80}'", "earl --help lists the commands"),
        ("gibberish", "there is no command 'gibberish'", "earl --help lists the commands"),
        ("photo.jpg snowy", "there is no command 'photo.jpg'", 'earl edit photo.jpg "make it snowy" edits a photo'),
        ("edit --Seed 3", "earl edit has no option --Seed", "did you mean --seed?"),
        ("edit --top_k 3", "earl edit has no option --top_k", "did you mean --top-k?"),
        ("edit --varients 3", "earl edit has no option --varients", "did you mean --variants?"),
        ("doctor -q", "earl doctor has no option -q", "did you mean --quiet?"),
        ("sft --learning-rate 1", "earl sft has no option --learning-rate", "--set learning_rate=VALUE"),
        (
            "rl --validation_examples 1",
            "earl rl has no option --validation_examples",
            "--set validation_examples=VALUE",
        ),
        ("sft --learning-rat 1", "earl sft has no option --learning-rat", "--set learning_rate=VALUE"),
        ("--model x edit", "earl has no option --model", "options of a command come after its name"),
        ("serve --gibberish", "earl serve has no option --gibberish", "earl serve --help lists what there is"),
        ("sft --config", "Option '--config' requires an argument.", "earl sft --help lists what there is"),
        ("eval list --json=1", "Option '--json' does not take a value.", "earl eval list --help lists"),
        ("serve --engine x", "Invalid value for '--engine': 'x' is not one of", "earl serve --help lists"),
    ],
)
def test_what_is_mistyped_is_guessed(
    line: str,
    what: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").touch()
    assert app.run(line.split()) == 2
    result = capsys.readouterr().err.splitlines()
    assert result[0].startswith(f"error: {what}")
    assert result[1].startswith("hint: ")
    assert hint in result[1]
    assert len(result) == 2


def test_a_folder_called_like_a_command_below_is_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inspekt").mkdir()
    assert app.run(["tokenize", "inspekt", "-o", "store"]) == 3
    assert "inspekt: there is no data" in capsys.readouterr().err


def test_brackets_of_help_are_rendered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(app, "_renders_help", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    assert app.run(["sft", "--help"]) == 0
    rendered = capsys.readouterr().out
    assert "ORG/NAME[@REV]" in rendered
    assert "╭" in rendered


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        pytest.param(
            "sft -c embedded/sft --data nowhere -o out",
            3,
            "nowhere: there is no such token store",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "sft -c embedded/sft --data Edits.sh -o out",
            3,
            "Edits.sh: not a token store: it is a file",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "rl -c embedded/rl --data pairs -o out",
            3,
            "pairs: not a token store: it has no manifest.json",
            marks=pytest.mark.slow,
        ),
        ("sft -c embedded/rl --data pairs -o out", 2, "embedded/rl: unknown key 'assistant_prefill'"),
        ("sft -c Edits.sh", 2, "Edits.sh: this is not a text file"),
        ("tokenize Edits.sh -o out", 3, "Edits.sh: data of this kind can't be read"),
        ("tokenize pairs -o Edits.sh", 8, "Edits.sh: this is a file, and a token store is a folder"),
        ("tokenize inspect Edits.sh", 3, "Edits.sh: not a token store: it is a file"),
        ("sft plot Edits.sh -o out.png", 3, "Edits.sh: this is no log of a run"),
        ("eval report Edits.sh -o out", 3, "Edits.sh: the results can't be read: this is no text"),
        ("eval -b Edits.sh -o out", 3, "Edits.sh: data of this kind can't be read"),
        ("eval --rubrics Edits.sh -o out", 2, "Edits.sh: the rubrics can't be read: this is no text in UTF-8"),
        ("serve --port 0 --model Edits.sh", 4, "Edits.sh: this is a file; a model is a folder"),
        ("serve --port 0 --model pairs", 4, "pairs: this is an empty folder, not a language model"),
        ("tokenize inspect pairs --html x.html --model pairs", 3, "pairs: not a token store"),
    ],
)
def test_a_file_of_another_kind_is_named(
    line: str,
    code: int,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Edits.sh").write_bytes(bytes(range(256)))
    Path("pairs").mkdir()
    assert app.run(line.split()) == code
    result = capsys.readouterr()
    assert f"error: {what}" in result.err
    assert "Traceback" not in result.err
    assert sorted(path.name for path in Path().iterdir()) == ["Edits.sh", "pairs"]


@pytest.mark.parametrize("before", [True, False])
def test_global_options_stand_before_or_after_the_command(before: bool, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["edit", "missing.png", "make it snowy"]
    assert app.run(["--json", *command] if before else [*command, "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["where"] == "missing.png"
    assert document["error"]["exit_code"] == 3


def test_json_reports_a_wrong_option_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["edit", "--nonsense", "--json"]) == 2
    captured = capsys.readouterr()
    assert "--nonsense" in json.loads(captured.out)["error"]["what"]
    assert "--nonsense" in captured.err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    app.run(["edit", "missing.png", "make it snowy", "--debug"])
    assert "Traceback" in capsys.readouterr().err
    app.run(["edit", "missing.png", "make it snowy"])
    assert "Traceback" not in capsys.readouterr().err


def test_quiet_still_shows_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["edit", "missing.png", "make it snowy", "--quiet"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "missing.png" in captured.err


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("failure", "kind", "expected"),
    [
        (InputError("broken", where="a.png"), InputError, "broken"),
        (OSError(errno.ENOSPC, "No space left on device", "out.png"), OutputError, "disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "out.png"), OutputError, "quota"),
        (OSError(errno.EROFS, "Read-only file system", "out.png"), OutputError, "can only be read"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.png/b"), EarlError, "is a file, not a folder"),
        (PermissionError(errno.EACCES, "Permission denied", "new.png"), OutputError, "no permission to write here"),
        (PermissionError(errno.EACCES, "Permission denied", "nowhere/a.png"), InputError, "to look into this folder"),
        (MemoryError(), DeviceError, "memory"),
        (OutOfMemoryError("CUDA out of memory"), DeviceError, "memory"),
        (
            ModuleNotFoundError("No module named 'openai'", name="openai.types"),
            MissingExtraError,
            "package openai isn't",
        ),
        (ModuleNotFoundError("none", name="earl_cli.nothing"), EarlError, "unexpected ModuleNotFoundError: none"),
        (ZeroDivisionError("division by zero\nmore"), EarlError, "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_every_failure_becomes_one_message(failure: Exception, kind: type[EarlError], expected: str) -> None:
    error = explain(failure)
    assert type(error) is kind
    assert expected in error.what
    assert "\n" not in error.what


@pytest.mark.parametrize(("number", "room"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EROFS, False)])
def test_only_a_full_disk_has_the_hint_to_make_room(number: int, room: bool) -> None:
    hint = str(explain(OSError(number, "", "out.png")).hint)
    assert ("make room" in hint, "another place" in hint) == (room, True)


def test_partial_failure_and_usage_have_their_codes() -> None:
    assert (UsageError.exit_code, PartialFailureError.exit_code) == (2, 7)


@pytest.mark.parametrize(
    ("words", "number", "completed"),
    [("earl e", "1", {"edit", "eval"}), ("earl edti --se", "2", set()), ("earl tokenize inspet st", "3", set())],
)
def test_completion_says_nothing_of_what_is_mistyped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, number: str, completed: set[str]
) -> None:
    monkeypatch.setenv("_EARL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", number)
    with pytest.raises(SystemExit) as ended:
        app.run([])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert (set(shown.out.split()), shown.err) == (completed, "")


def test_a_reader_that_goes_away_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "earl_cli", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == app.PIPE_CLOSED
    assert done.stderr == ""


COMMAND = """
import signal, time
import earl_cli.app as a
def build_app():
{body}
a.build_app = build_app
a.main()
"""
WAITS = """
    print("up", flush=True)
    time.sleep(60)
"""
SWALLOWS = """
    try:
        print("up", flush=True)
        time.sleep(60)
    except BaseException:
        pass
    raise ValueError("could not determine the shape")  # as torch.tensor says, interrupted in a __len__
"""
CLEANS_UP = """
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        raise OSError(28, "No space left", "/tmp/x")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, app.STOPPED), (signal.SIGTERM, app.TERMINATED)])
@pytest.mark.parametrize("body", [WAITS, SWALLOWS], ids=["waits", "swallows"])
def test_signals_end_with_their_codes(body: str, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert error == ("stopped\n" if number == signal.SIGINT else "")


def test_a_full_disk_is_reported_after_a_signal_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(body=CLEANS_UP)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (8, "error: /tmp/x: the disk is full")


def test_each_run_starts_with_a_fresh_console(capsys: pytest.CaptureFixture[str]) -> None:
    app.run(["--json", "--quiet", "--debug", "--version"])
    app.run(["--version"])
    assert not (console.json or console.quiet or console.debug)


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    table = (Path(app.__file__).parents[1] / "docs" / "COMMANDS.md").read_text(encoding="utf-8")
    for code, meaning in app.EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("--version >&-", 8, "error: stdout: it is closed"),
        ("--help >&-", 8, "error: stdout: it is closed"),
        ("edit --json >&-", 8, "error: stdout: it is closed"),
        ("edit >&- <&-", 2, "error: no image and no instruction"),
        ("edit 2>&-", 2, ""),
        ("edit >&- 2>&-", 2, ""),
        ("edit 2>/dev/full", 2, ""),
        ("--version >/dev/full", 8, "error: stdout: it can't be written: No space left on device"),
        ("edit --json >/dev/full", 2, "error: no image and no instruction"),
    ],
)
def test_closed_and_full_streams_are_one_true_message(line: str, code: int, says: str) -> None:
    script = f'unset PYTHONUNBUFFERED; exec "$0" -m earl_cli {line}'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True, check=False)
    assert (done.returncode, "".join(done.stderr.splitlines()[:1])) == (code, says)
    assert "Traceback" not in done.stderr


EXAMPLES = {
    "--CoT-keys": "plan,objects",
    "--output-path": "out",
    "--random-seed": "7",
    "--save-layout": "original",
    "--figure": "loss",
    "--judge": "a-model",
}
ALIASES = [(command, old, new) for command, table in app.OPTION_ALIASES.items() for old, new in table.items()]


@pytest.mark.parametrize(("command", "old", "new"), ALIASES)
@pytest.mark.parametrize("joined", [False, True])
def test_an_older_spelling_of_an_option_is_the_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, old: str, new: str, joined: bool
) -> None:
    got: list[dict[str, Any]] = []
    whole = app.command_of

    def recording(name: str, *args: Any) -> Any:
        found = whole(name, *args)
        found.callback = lambda **values: got.append(values)
        return found

    monkeypatch.setattr(app, "command_of", recording)
    words = [param.name for param in whole(command).params if param.required and param.param_type_name == "argument"]
    needed = {"tokenize export": ["--format", "pth"]}.get(command, [])
    needed += [] if new == "--output" or not command.startswith("tokenize") else ["-o", "out"]
    for option in (old, new):
        pair = [f"{option}={EXAMPLES[old]}"] if joined else [option, EXAMPLES[old]]
        assert app.run([*command.split(), *words, *needed, *pair]) == 0, capsys.readouterr().err
    assert got[0] == got[1]
    assert app.run([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert new in shown
    assert f"{old} " not in shown


def test_what_follows_two_dashes_is_no_alias() -> None:
    assert app._without_aliases("rl", ["--judge", "a", "--", "--judge", "b"]) == [
        "--judge-model",
        "a",
        "--",
        "--judge",
        "b",
    ]


def test_every_option_is_in_kebab_case() -> None:
    spelled = [option for name in app.COMMANDS for param in app.command_of(name).params for option in param.opts]
    assert len(spelled) > 100
    options = [option for option in spelled if option.startswith("-")]
    assert [option for option in options if not re.fullmatch(r"--[a-z]+(-[a-z]+)*|-[a-z]", option)] == []
