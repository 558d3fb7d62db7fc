"""Read a config: a file in Jsonnet, JSON or YAML, then single values from the command line, then validation.

Environment variables whose names begin with ``APP__`` reach Jsonnet, as ``std.extVar('APP__DATA_DIR')``.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from earl_cli.errors import UsageError

Config = TypeVar("Config", bound=BaseModel)

EXTERNAL = "APP__"
_PUBLISHED = ("APP__DATA_DIR", "APP__BASE_EXP_DIR", "APP__REWARD_FUNCTION_API_BASE", "APP__RUN_NAME")


@dataclass(frozen=True)
class Resolved(Generic[Config]):
    """A config, and for every value that isn't a default where it came from."""

    config: Config
    origins: Mapping[str, str]


def load_config(
    kind: type[Config],
    name: str | None,
    sets: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Config:
    """As `resolve`, without the origins."""
    return resolve(kind, name, sets, given).config


def resolve(
    kind: type[Config],
    name: str | None,
    sets: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Resolved[Config]:
    """The config of this kind: its defaults, then the file or recipe ``name``, ``given``, and ``key=value`` sets.

    Raises UsageError for a file that can't be read, an unknown key (with the nearest known one), and a wrong value.
    """
    values: dict[str, Any] = read_config(name) if name else {}
    origins = dict.fromkeys(values, str(name))
    flags = {key: value for key, value in (given or {}).items() if value is not None}
    values |= flags
    origins |= {key: f"--{key.replace('_', '-')}" for key in flags}
    for item in sets:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {item!r} is not of the form key=value")
        values[key] = _plain(text)
        origins[key] = "--set"
    known = list(kind.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise UsageError(
                f"unknown key {key!r}",
                where=origins[key],
                hint=f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}",
            )
    try:
        return Resolved(kind(**values), origins)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        missing = first["type"] == "missing"
        what = f"{key or 'config'}: {first['msg'].removeprefix('Value error, ')}"
        hint = f"give --{key.replace('_', '-')}, or set it in a config" if missing else f"it is {first['input']!r}"
        raise UsageError(what, where=origins.get(key.split(".")[0], name), hint=hint if key else None) from None


def read_config(name: str) -> dict[str, Any]:
    """The values in a config file (by its suffix), or in the recipe of that name that ships with the package."""
    path = Path(name)
    if not path.is_file():
        recipe = Path(str(resources.files("earl_cli.recipes"))) / f"{name}.jsonnet"
        if not recipe.is_file():
            raise UsageError("no such config file or recipe", where=name, hint=f"recipes are {', '.join(recipes())}")
        path = recipe
    try:
        values = _read(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"the config can't be read: {str(error).strip().splitlines()[0]}", where=str(path)) from None
    if not isinstance(values, dict):
        raise UsageError("a config must be an object with keys and values", where=str(path))
    return values


def recipes() -> list[str]:
    """Names of the recipes in the package, such as ``embedded/sft``."""
    root = Path(str(resources.files("earl_cli.recipes")))
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.jsonnet"))


def _read(path: Path) -> Any:
    if path.suffix in {".jsonnet", ".libsonnet"}:
        return _evaluate(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix in {".yaml", ".yml"}:
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None
    return json.loads(text)


def _evaluate(path: Path) -> Any:
    import rjsonnet

    given = {name: value for name, value in os.environ.items() if name.startswith(EXTERNAL)}
    try:
        return json.loads(rjsonnet.evaluate_file(str(path), ext_vars=given))
    except RuntimeError as error:
        missing = re.match(r"external variable is not defined: (\S+)", str(error))
        if missing is None:
            raise
        name = missing[1]
        what, hint = f"the environment variable {name} is not set", f"export {name}=…"
        if not name.startswith(EXTERNAL):
            near = difflib.get_close_matches(name, {*_PUBLISHED, *given}, 1)
            what = f"no variable {name} reaches a config: their names begin with {EXTERNAL}"
            hint = f"did you mean {near[0]!r}?" if near else f"call it {EXTERNAL}{name}"
        raise UsageError(what, where=str(path), hint=hint) from None


def _plain(text: str) -> Any:
    """A value from the command line: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
