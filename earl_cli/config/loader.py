"""Load a config: a file in Jsonnet, JSON, YAML or TOML, then keys from the command line, then validation.

Environment variables whose names begin with ``APP__`` reach Jsonnet as ``std.extVar('APP__DATA_DIR')``, and the other
formats as ``${APP__DATA_DIR}``. Data sets are named one by one, or listed in a file of their own.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from earl_cli.config.formats import SUFFIXES, parse, parse_json, read_text
from earl_cli.config.jsonnet import evaluate, missing_variables, variables
from earl_cli.config.keys import aliases_of, nearest_key, present_names
from earl_cli.console import console
from earl_cli.errors import InputError, UsageError
from earl_cli.files import loads

ConfigT = TypeVar("ConfigT", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Resolved(Generic[ConfigT]):
    """A config, and the origin of every value that isn't a default."""

    config: ConfigT
    origins: Mapping[str, str]


def load_config(
    kind: type[ConfigT],
    name: str | None,
    sets: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> ConfigT:
    """As `resolve`, without the origins."""
    return resolve(kind, name, sets, given).config


def resolve(
    kind: type[ConfigT],
    name: str | None,
    sets: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
) -> Resolved[ConfigT]:
    """The config of this kind: its defaults, then the file or recipe ``name``, ``given``, and ``key=value`` sets.

    ``options`` names the option of each key in ``given`` that isn't called as its key is. Raises UsageError for a file
    that can't be read, an unknown key (with the nearest known one), a key by two of its names, and a wrong value.
    """
    values = _present_names(kind, read_config(name, aliases_of(kind)), str(name)) if name else {}
    origins = dict.fromkeys(values, str(name))
    flags = {key: value for key, value in (given or {}).items() if value is not None}
    values |= flags
    origins |= {key: _option(key, options) for key in flags}
    changed = _present_names(kind, dict(map(_assignment, sets)), "--set")
    values |= changed
    origins |= dict.fromkeys(changed, "--set")
    for key in values:
        if key not in kind.model_fields:
            raise UsageError(f"unknown key {key!r}", where=origins[key], hint=_instead(key, kind, origins))
    try:
        return Resolved(kind(**values), origins)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        missing = first["type"] == "missing"
        message = "a value is needed" if missing else first["msg"].removeprefix("Value error, ")
        what = f"{key}: {message}" if key else message
        given_value = reprlib.repr(first["input"])
        hint = f"give {_option(key, options)}, or set it in a config" if missing else f"it is {given_value}"
        raise UsageError(what, where=origins.get(key.split(".")[0], name), hint=hint if key else None) from None


def read_config(name: str, aliases: Mapping[str, str]) -> dict[str, Any]:
    """The values in a config file, or in the recipe of that name that ships with the package.

    A file is Jsonnet where its extension says so, else JSON, YAML or TOML (`formats.parse`). A Jsonnet file that
    imports a recipe may override its keys by their ``aliases``.
    """
    path, known = Path(name), recipes()
    if name in known and not path.is_file():
        path = Path(str(resources.files("earl_cli.recipes"))) / f"{name}.jsonnet"
    elif not path.exists():
        near = difflib.get_close_matches(name.lower().removesuffix(".jsonnet"), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"recipes are {', '.join(known)}"
        raise UsageError("no such config file or recipe", where=name, hint=hint)
    text = read_text(path)
    try:
        values = _values(text, path, aliases) if text.strip() else None
    except ValueError as error:
        raise UsageError(f"the config can't be read: {error}", where=str(path)) from None
    if not isinstance(values, dict):
        kind = "empty" if values is None else "a list" if isinstance(values, list) else "a single value"
        what = f"a config must be an object with keys and values, and this is {kind}"
        raise UsageError(what, where=str(path), hint='such as {"device": "cpu"}')
    return values


def recipes() -> list[str]:
    """Names of the recipes in the package, such as ``embedded/sft``."""
    root = Path(str(resources.files("earl_cli.recipes")))
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.jsonnet"))


def training_configs() -> dict[str, type[BaseModel]]:
    """The config of each training command."""
    from earl_cli.config.rl import RlConfig
    from earl_cli.config.sft import SftConfig

    return {"sft": SftConfig, "rl": RlConfig}


def _instead(key: str, kind: type[BaseModel], origins: Mapping[str, str]) -> str:
    """The hint for a key that this kind of config doesn't have."""
    together = {other for other, origin in origins.items() if origin == origins[key]}
    for command, other in training_configs().items():
        known = other.model_fields.keys() | aliases_of(other).keys()
        if other is not kind and len(together) > 1 and together <= known:
            return f"all keys there are of earl {command}"
    elsewhere = (aliases_of(other).get(key) for other in training_configs().values())  # such as random_seed, for sft
    near = next((name for name in elsewhere if name in kind.model_fields), None) or nearest_key(kind, key)
    return f"did you mean {near!r}?" if near else f"known are {', '.join(kind.model_fields)}"


def _present_names(kind: type[BaseModel], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        return present_names(kind, values)
    except ValueError as error:
        raise UsageError(str(error), where=where) from None


def _assignment(item: str) -> tuple[str, Any]:
    key, sign, text = item.partition("=")
    if not sign or not key:
        raise UsageError(f"--set {item!r} is not of the form key=value")
    return key, _plain(text)


def _option(key: str, options: Mapping[str, str] | None) -> str:
    return (options or {}).get(key, f"--{key.replace('_', '-')}")


def _values(text: str, path: Path, aliases: Mapping[str, str]) -> Any:
    if path.suffix.lower() in {".jsonnet", ".libsonnet"}:
        return evaluate(path, aliases)
    values, kind = parse(text, path)
    if isinstance(values, dict) and path.suffix and path.suffix.lower() not in SUFFIXES[kind]:
        console.note(f"{path} is read as {kind}, by its content")
    return _with_variables(values, text, str(path))


def _with_variables(values: Any, text: str, where: str) -> Any:
    """The values with each ``${APP__NAME}`` replaced by that environment variable, and dates as text."""
    given = variables()
    missing: list[tuple[str, str]] = []

    def filled(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: filled(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner, f"{key}[{number}]") for number, inner in enumerate(value)]
        if isinstance(value, date | time):
            return value.isoformat()
        if not isinstance(value, str):
            return value
        for name in _VARIABLE.findall(value):
            if name not in given:
                line = text.count("\n", 0, text.find(f"${{{name}}}")) + 1
                missing.append((name, f"{key}, line {line}"))
        return _VARIABLE.sub(lambda match: given.get(match[1], ""), value)

    found = filled(values, "")
    if missing:
        raise missing_variables(missing, where)
    return found


def _plain(text: str) -> Any:
    """A value from the command line: JSON where it is JSON, else the text itself."""
    try:
        return loads(text)
    except ValueError:
        return text


_KINDS = 'a JSON list of paths, a JSON object {"name": "path"}, or text with a path on every line'


def read_paths(listed: Path | Sequence[Path] | None) -> tuple[Path, ...]:
    """The data sets of a config's ``train_paths_file`` or ``val_paths_file``: none, a few, or those that a file lists.

    Such a file is a JSON list of paths, a JSON object of paths by name, or text with a path on every line, blank lines
    and lines that begin with # left out; its order counts, and relative paths start at its folder. A published
    ``tokenized_datalist.json``, {"prefix": …, "path_list": […]}, lists the examples of one data set, and names that.
    Raises InputError for a file that is none of these or lists nothing.
    """
    return _in_file(listed) if isinstance(listed, Path) else tuple(listed or ())


def _in_file(file: Path) -> tuple[Path, ...]:
    try:
        text = read_text(file)
    except UsageError as failure:
        what = f"the list of data sets can't be read: {failure.what}"
        raise InputError(what, where=str(file), hint=f"give {_KINDS}") from None
    if text.strip() and (file.suffix.lower() == ".json" or text.lstrip()[0] in "[{"):
        names = _names(_json(text, file), file)
    else:
        lines = (line.strip() for line in text.splitlines())
        names = [line for line in lines if line and not line.startswith("#")]
    if names is None:
        return (file,)
    if not names:
        raise InputError("this file lists no data sets", where=str(file), hint=f"give {_KINDS}")
    return tuple(file.parent / Path(name).expanduser() for name in names)


def _json(text: str, file: Path) -> Any:
    try:
        return parse_json(text)
    except ValueError as failure:
        raise InputError(f"this is not JSON: {failure}", where=str(file), hint=f"give {_KINDS}") from None


def _names(content: Any, file: Path) -> list[str] | None:
    """The paths in a list or an object; None where the file is the list of one data set's examples."""
    if isinstance(content, dict) and "path_list" in content:
        return None
    names = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(names, list):
        raise InputError("this file lists no data sets", where=str(file), hint=f"give {_KINDS}")
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"entry {number} is no path: {json.dumps(name)[:60]}", where=str(file), hint=f"give {_KINDS}"
            )
    return names
