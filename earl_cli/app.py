"""The command line ``earl``: a command is registered by name, and imported only to run or to show its own help.

Every failure ends here: one message on stderr, a documented exit code, and no traceback without ``--debug``.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn, TextIO

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from earl_cli import version as earl_version
from earl_cli.console import NARROW, console, is_closed
from earl_cli.errors import EarlError, UsageError, explain

COMMANDS = {
    "edit": "Edit photos by an instruction in plain words.",
    "serve": "Serve a web page and an HTTP endpoint that edit photos.",
    "tokenize": "Turn image pairs with instructions into a token store.",
    "tokenize inspect": "Show what a token store contains; decode a sample of it to a page.",
    "tokenize verify": "Check every shard and row of token stores.",
    "tokenize merge": "Merge several token stores into one.",
    "tokenize export": "Write a token store as published .pth files, as one Parquet file, or as JSON lines.",
    "tokenize import": "Import published .pth data into a token store, without running pickled code.",
    "sft": "Fine-tune a model on token stores.",
    "sft plot": "Plot the metrics of fine-tuning runs.",
    "rl": "Improve a model by reinforcement learning.",
    "rl plot": "Plot the metrics of reinforcement learning runs.",
    "eval": "Evaluate models on benchmarks and write a report.",
    "eval list": "List the named benchmarks and editors.",
    "eval score": "Score finished edits again, for instance by another judge.",
    "eval compare": "Compare two editors sample by sample.",
    "eval report": "Write a page and tables of any results.",
    "judge": "Serve, try and check the judge model that scores edits.",
    "judge serve": "Serve the judge with vLLM and the published settings.",
    "judge score": "Score one edit, with the judge's reasons.",
    "judge check": "Send a judge one small request and check that its reply can be parsed.",
    "config": "Show the config keys of the trainings.",
    "config keys": "List the config keys of earl sft and earl rl.",
    "doctor": "Check this installation, its devices and its model.",
}

EXIT_CODES = {
    0: "done",
    1: "unexpected failure; --debug shows where",
    2: "an option or argument that can't be used",
    3: "an image, table or text that can't be read",
    4: "a model that can't be loaded",
    5: "a device that is missing, broken or too small",
    6: "an optional package is missing",
    7: "some of several inputs failed, the others are done",
    8: "a result that can't be written",
    130: "stopped by Ctrl-C",
    141: "the output was closed before its end",
    143: "stopped by SIGTERM",
}
STOPPED, PIPE_CLOSED, TERMINATED = 130, 141, 143

_GLOBAL_OPTIONS = ("--json", "--quiet", "--debug")

_MODULES = {
    "tokenize import": "tokenize.import_",
    **dict.fromkeys((f"tokenize {word}" for word in ("inspect", "verify", "merge", "export")), "tokenize.stores"),
    **dict.fromkeys((f"eval {word}" for word in ("score", "compare", "report")), "eval.results"),
}
"""Where in `earl_cli.commands` a command is that isn't in the module or package of its first word."""

OPTION_ALIASES = {
    "tokenize": {"--CoT-keys": "--cot-keys", "--output-path": "--output", "--random-seed": "--seed"},
    "tokenize import": {"--output-path": "--output"},
    "tokenize merge": {"--output-path": "--output"},
    "tokenize export": {"--output-path": "--output"},
    "sft": {"--save-layout": "--save-format"},
    "sft plot": {"--figure": "--metric"},
    "rl": {"--judge": "--judge-model"},
    "rl plot": {"--figure": "--metric"},
}
"""Published and older spellings of options. They work as the option they stand for, and no help shows them."""

_received: list[int] = []
"""Exit codes of the stop signals that this process has received."""


class LazyGroup(TyperGroup):
    """Lists the commands of ``COMMANDS``; a command's module is imported when its own arguments are to be parsed.

    A name of two words, such as ``tokenize inspect``, is the function ``tokenize_inspect``; ``tokenize`` remains a
    command of its own.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """As in Typer, with the placeholder replaced by the real command, which takes the global options as well."""
        if not ctx.resilient_parsing:  # shell completion shows no errors
            _check_command(args)
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, placeholder, rest
        if rest and f"{name} {rest[0]}" in COMMANDS:
            name, rest = f"{name} {rest[0]}", rest[1:]
        command = command_of(name, self.rich_markup_mode)
        if self.rich_markup_mode is not None:  # rich would take brackets, such as [@REV], for markup
            params: list[Any] = command.params
            for param in params:
                param.help = param.help and param.help.replace("[", r"\[")
        command.params += [param for param in self.params if param.opts[0] in _GLOBAL_OPTIONS]
        return name, command, _without_aliases(name, rest)

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """As in Typer; a closed pipe, for instance of `earl --help | head`, ends the program quietly."""
        with _quiet_end():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        """As in Typer; a closed pipe ends the program quietly."""
        with _quiet_end():
            return super().invoke(ctx)


def module_of(name: str) -> str:
    """The module that has the function of a command, such as `edit` or `tokenize inspect`."""
    return f"earl_cli.commands.{_MODULES.get(name, name.split(maxsplit=1)[0])}"


def command_of(name: str, markup: Literal["markdown", "rich"] | None = None) -> Any:
    """The command of this name with its options and arguments; imports its module."""
    more = [f"{other}: {text}" for other, text in COMMANDS.items() if other.startswith(f"{name} ")]
    single = typer.Typer(add_completion=False, rich_markup_mode=markup)
    function = getattr(import_module(module_of(name)), name.replace(" ", "_"))
    single.command(name, epilog=_paragraph("More", more))(function)
    return typer.main.get_command(single)


def _without_aliases(name: str, args: Sequence[str]) -> list[str]:
    """The arguments of a command with its `OPTION_ALIASES` replaced; what follows ``--`` stays as it is."""
    aliases = OPTION_ALIASES.get(name, {})
    end = args.index("--") if "--" in args else len(args)
    words = [word.partition("=") for word in args[:end]]
    return ["".join((aliases.get(option, option), *value)) for option, *value in words] + [*args[end:]]


def _check_command(args: Sequence[str]) -> None:
    """Raise UsageError for a command that isn't there, with the one that may be meant."""
    name, word = args[0], args[1] if len(args) > 1 else ""
    below = any(other.startswith(f"{name} ") for other in COMMANDS)
    if name in COMMANDS and not (below and word.isalpha() and f"{name} {word}" not in COMMANDS):
        return
    from earl_cli.mistyped import meant_below, unknown_command

    if name not in COMMANDS:
        raise unknown_command(name, COMMANDS)
    if meant_below(name, word, COMMANDS):
        raise unknown_command(f"{name} {word}", COMMANDS)


@contextmanager
def _quiet_end() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(_discard_stdout()) from None


def _discard_stdout() -> int:
    """The exit code after a closed pipe; what is still buffered for stdout is dropped."""
    _discard(sys.stdout)
    return PIPE_CLOSED


def _discard(stream: TextIO) -> None:
    """Redirect the stream to the null device, so that flushing what it still holds can't fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_version(value: bool) -> None:
    if value:
        print(f"earl {earl_version()}")
        raise typer.Exit


def _set(name: str) -> Any:
    def callback(value: bool) -> None:
        if value:
            setattr(console, name, True)

    return callback


def _option(name: str, text: str) -> Any:
    return typer.Option(f"--{name}", help=text, callback=_set(name), expose_value=False, rich_help_panel="Output")


def _root(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    _json: Annotated[bool, _option("json", "Print one JSON document on stdout.")] = False,
    _quiet: Annotated[bool, _option("quiet", "Print errors only.")] = False,
    _debug: Annotated[bool, _option("debug", "Show tracebacks.")] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def _placeholder() -> None:
    """Listed in place of a command until that is imported."""


def build_app() -> typer.Typer:
    """The Typer app. Nothing but Typer and this module is imported for it; rich renders help on terminals only."""
    codes = [f"{code:>3}  {text}" for code, text in EXIT_CODES.items()]
    app = typer.Typer(
        cls=LazyGroup,
        name="earl",
        help='Edit photos by instruction, and train the models that do it. Try: earl edit photo.jpg "make it snowy"',
        epilog=_paragraph("Exit codes", codes),
        invoke_without_command=True,
        rich_markup_mode="rich" if _renders_help() else None,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_root)
    for name, text in COMMANDS.items():
        app.command(name, help=text, hidden=" " in name)(_placeholder)
    return app


def _renders_help() -> bool:
    return sys.stdout.isatty() and shutil.get_terminal_size().columns >= NARROW


def _paragraph(title: str, lines: Sequence[str]) -> str | None:
    """Lines under a title, for the end of a help page; \\b keeps the line breaks where rich doesn't render."""
    text = "\n".join([f"{title}:", *lines])
    return (text if _renders_help() else f"\b\n{text}") if lines else None


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; messages are on stderr and results on stdout."""
    with _buffered_stdout(), console.shows_log():
        return _run_to_the_end(args)


def _run_to_the_end(args: Sequence[str]) -> int:
    console.reset()
    console.json = "--json" in args  # also for an error about the options themselves
    if console.json and is_closed(sys.stdout):
        console.lose(OSError(errno.EBADF, ""))
        code = 0
    else:
        code = _run(args)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or _discard_stdout()
    except OSError as error:
        if not code:
            console.lose(error)
    if console.lost:
        _discard(sys.stdout)
        console.json = False
        console.fail(console.lost)
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    return code or (console.lost.exit_code if console.lost else 0)


@contextmanager
def _buffered_stdout() -> Iterator[None]:
    """Give stdout a buffer for a while, if PYTHONUNBUFFERED took it away.

    Without a buffer, the rest of a write that a full disk or a closed pipe cut short is lost without an error.
    """
    own = sys.stdout
    raw = getattr(own, "buffer", None)
    if not isinstance(raw, io.RawIOBase):
        yield
        return
    buffered = io.BufferedWriter(raw)
    sys.stdout = text = io.TextIOWrapper(buffered, own.encoding, own.errors, line_buffering=True)
    try:
        yield
    finally:
        sys.stdout = own
        with suppress(OSError):  # already reported
            text.detach()
            buffered.detach()


def _run(args: Sequence[str]) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = typer.main.get_command(build_app()).main(list(args), prog_name="earl", standalone_mode=False)
        if code == STOPPED:
            console.note("stopped")
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        console.note("stopped")
        return STOPPED
    except Exception as failure:  # every failure becomes one message: this is the last line of defence
        if isinstance(failure, OSError) and _is_of_stdout(failure):
            console.lose(failure)
            return 0
        error = _usage(failure, args) if isinstance(failure, TyperException) else explain(failure)
        if console.debug:
            traceback.print_exception(error)
        if _received and type(error) is EarlError:  # a library turned the stop signal into an error of its own
            if _received[-1] == STOPPED:
                console.note("stopped")
            return _received[-1]
        console.fail(error)
        return error.exit_code


def _is_of_stdout(failure: OSError) -> bool:
    """Whether writing help or the version to stdout failed: what is still buffered can't be written either."""
    try:
        sys.stdout.flush()
    except OSError as again:
        return failure.filename is None and failure.errno == again.errno
    return False


def _usage(failure: TyperException, args: Sequence[str]) -> UsageError:
    """Typer's own error about options and arguments, as a UsageError."""
    context = getattr(failure, "ctx", None)
    words = [word for word in args if not word.startswith("-")]
    named = next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), "")
    command = context.command_path if context else f"earl {named}".strip()
    option = getattr(failure, "option_name", None)
    if context is not None and option is not None and hasattr(failure, "possibilities"):
        from earl_cli.mistyped import unknown_option

        return unknown_option(option, command, (each for param in context.command.params for each in param.opts))
    what = failure.format_message().replace("\n\t", " ").replace("Value error, ", "")
    return UsageError(what, hint=f"{command} --help lists what there is")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    _received.append(STOPPED)
    raise KeyboardInterrupt


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    _received.append(TERMINATED)
    raise SystemExit(TERMINATED)


def _keep_closed_streams_closed() -> None:
    """Occupy the descriptors of standard streams that were closed before the start, so that no file gets them.

    stdin is opened for writing and stdout for reading, so that using them fails as a closed stream does. stderr goes to
    the null device: there is no other place for messages.
    """
    ways = (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w"))
    for name, way, mode in ways:
        if getattr(sys, name) is None:
            number = os.open(os.devnull, way)  # the lowest free one, which is the stream's own
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def main() -> NoReturn:
    """The executable ``earl``."""
    _keep_closed_streams_closed()
    signal.signal(signal.SIGTERM, _terminate)  # as an exception, so that temporary files are removed
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # otherwise it is ignored on purpose, as in the background of a script
        signal.signal(signal.SIGINT, _interrupt)
    sys.exit(run(sys.argv[1:]))
