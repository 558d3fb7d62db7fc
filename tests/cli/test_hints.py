"""Messages name options and keys that exist, in the command whose message it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import typer

from earl_cli import app
from earl_cli.commands.rl import OPTIONS
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig

PACKAGE = Path(app.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
SET_KEY = re.compile(r"--set (\w+)=")
WORD = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b")

FOR: dict[str, tuple[str, ...]] = {
    "app": ("edit",),  # every command has the options of the program
    "data": ("tokenize", "tokenize import", "tokenize merge", "tokenize export"),
    "evaluation": ("eval",),
    "generation": ("edit", "serve", "eval"),
    "models/device": ("edit", "serve", "tokenize", "eval", "sft", "rl"),
    "rewards": ("rl",),
    "training": ("sft", "rl"),
    "training/common/plots": ("sft plot", "rl plot"),
    "serving": ("serve",),
}
"""Whose messages a room has; of any other module, those of all commands that import it."""

ELSEWHERE = {
    "commands/doctor": "--device",  # what to tell the other commands
    "data/merging": "--image-area",  # tokenize the data again
    "training/rl/setup": "--image-area",
    "training/sft/run": "--image-area",
    "training/common/distributed": "--nproc_per_node",  # torchrun's
}
NO_KEYS = {"earl_cli", "nproc_per_node", "tensor_parallel_size", "my_rewards"}
VLLM = {"rewards/judge/server": "server_command"}  # the arguments of another program
STYLE = "images/html_gallery"  # custom properties of a style sheet


@cache
def options(command: str) -> set[str]:
    """All that a command takes, with those of the program."""
    program = typer.main.get_command(app.build_app()).params
    found = [*app.command_of(command).params, *program]
    return {option for each in found for option in (*each.opts, *each.secondary_opts)} | {"--help"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every string of a module with its line; an f-string as one, docstrings and other programs' arguments left out."""
    module = path.relative_to(PACKAGE).with_suffix("").as_posix()
    todo: list[ast.AST] = [parsed(path)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef) and VLLM.get(module) == node.name:
            continue
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OPTION_ALIASES":  # options of the past
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(parts)
            todo += [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            todo += ast.iter_child_nodes(node)


def file_of(module: str) -> Path | None:
    path = PACKAGE.parent / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def imports(path: Path) -> frozenset[Path]:
    """The modules of the package that a module imports when it runs, anywhere in it."""
    found: set[Path] = set()
    todo: list[ast.AST] = [parsed(path)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                if file := file_of(name):
                    found.add(file)
        todo += ast.iter_child_nodes(node)
    return frozenset(found)


@cache
def reached(command: str) -> set[Path]:
    first = file_of(app.module_of(command))
    assert first is not None
    found, todo = {first}, [first]
    while todo:
        new = imports(todo.pop()) - found
        found |= new
        todo += new
    return found


def missing(path: Path, option: str) -> list[str]:
    """The commands that may say this and lack the option; none where one of a room's own has it."""
    module = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if ELSEWHERE.get(module) == option:
        return []
    own = FOR.get(module) or FOR.get(module.split("/")[0])
    if own:
        return [] if any(option in options(command) for command in own) else list(own)
    users = [command for command in app.COMMANDS if path in reached(command)]
    if module.startswith(("commands/", "config/")):  # what several commands share may be meant for some of them
        return [] if any(option in options(command) for command in users) else users
    return [command for command in users if option not in options(command)]


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / f"{STYLE}.py"]


def test_every_option_in_a_message_exists() -> None:
    wrong, seen = [], 0
    for path in modules():
        for line, text in texts(path):
            for option in OPTION.findall(text):
                seen += 1
                if lacking := missing(path, option):
                    wrong.append(f"{path.relative_to(PACKAGE)}:{line}: {option} is none of {', '.join(lacking)}")
    assert seen > 200
    assert wrong == []


def keys(path: Path) -> Iterator[tuple[int, str]]:
    """What messages call keys of a config: what is to be set, and in rooms of training all words_with_underscores."""
    for line, text in texts(path):
        yield from ((line, key) for key in SET_KEY.findall(text))
    if path.relative_to(PACKAGE).parts[0] in ("config", "training", "rewards"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                strings = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
                found = (key for text in strings if isinstance(text, str) for key in WORD.findall(text))
                yield from ((node.lineno, key) for key in found if key not in NO_KEYS)


def test_every_key_in_a_message_exists() -> None:
    configs = {"sft": set(SftConfig.model_fields), "rl": set(RlConfig.model_fields)}
    wrong, seen = [], 0
    for path in modules():
        users = [name for name in configs if path in reached(name)]
        for line, key in keys(path):
            seen += 1
            if not any(key in configs[name] for name in users):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line}: {key}")
    assert seen > 30
    assert wrong == []


def test_a_value_given_by_an_option_is_attributed_to_it() -> None:
    assert set(OPTIONS) <= set(RlConfig.model_fields)
    assert set(OPTIONS.values()) <= options("rl")
    for command, config in (("sft", SftConfig), ("rl", RlConfig)):
        own = {option.removeprefix("--").replace("-", "_") for option in options(command)}
        needed = {name for name, field in config.model_fields.items() if field.is_required()}
        assert needed <= own  # an error about a value that is missing names its option
