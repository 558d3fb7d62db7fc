"""Text files in any Unicode encoding, and the values in them: JSON, YAML or TOML.

Errors have a line and a column. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from earl_cli.errors import UsageError
from earl_cli.files import is_too_deep

LARGEST = 1 << 24  # bytes of a file
MOST_TEXT, MOST_VALUES, MOST_DIGITS = 1 << 20, 100_000, 100  # characters and values of a config, digits of an integer
JSON, YAML, TOML = "JSON", "YAML", "TOML"
SUFFIXES = {JSON: (".json",), YAML: (".yaml", ".yml"), TOML: (".toml",)}
_DEEP = "it is nested too deeply"
_DOTTED = re.compile(
    r"(?<![\w-])(?:[\w-]++[\"']?[ \t]*+\.[ \t]*+[\"']?){100}"
)  # possessive, so that it can't backtrack


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises UsageError for a folder, and for a file that can't be read, is larger than `LARGEST`, or is no text.
    """
    where = str(path)
    try:
        if path.is_dir():
            raise UsageError("this is a folder, not a file", where=where)
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"it can't be read: {error.strerror or error}", where=where) from None
    if len(data) > LARGEST:
        raise UsageError(f"it is larger than {LARGEST >> 20} MiB, more than any config or list", where=where)
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = "this is not a text file" if b"\0" in data else f"line {line} is not in UTF-8"
        raise UsageError(what, where=where, hint="save it as text in UTF-8") from None
    if "\0" in text:
        raise UsageError("this is not a text file", where=where, hint="save it as text in UTF-8")
    return text


def parse(text: str, path: Path) -> tuple[Any, str]:
    """The values in a text, and the format that it has.

    The extension, in upper or lower case, says which format is tried first; then the others are. Raises ValueError,
    with line and column, about the format that the extension or the first character announces.
    """
    named = next((kind for kind, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), None)
    braces = text.lstrip()[:1] in ("{", "[")
    promised = named or (JSON if braces else TOML if re.search(r"^\s*[\w.\"-]+\s*=", text, re.M) else YAML)
    others = [kind for kind in (JSON, TOML, YAML) if kind != promised and not (kind == YAML and braces)]
    if len(text) > MOST_TEXT:
        raise ValueError(f"it has {len(text):,} characters, and {MOST_TEXT:,} are the most")
    values, problem = None, None
    try:
        values = _PARSERS[promised](text)
    except (ValueError, RecursionError) as error:
        problem = error if isinstance(error, ValueError) else ValueError(_DEEP)
    if isinstance(values, dict | list):
        return values, promised
    for kind in others:
        try:
            found = _PARSERS[kind](text)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and found:
            return found, kind
    if problem is not None:
        raise problem
    return values, promised


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits: {text[:20]}…")
    return int(text)


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, also for a repeated key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            shown = re.escape(json.dumps(twice, ensure_ascii=False))
            lines = [str(text.count("\n", 0, at.start()) + 1) for at in re.finditer(rf"{shown}\s*:", text)]
            raise ValueError(f"the key {twice!r} is given twice (line {' and '.join(lines)})")
        return values

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise ValueError(_DEEP) from None
    if is_too_deep(value, text, 0, len(text)):
        raise ValueError(_DEEP)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError, with line and column."""
    if _DOTTED.search(text):  # quadratic time and memory in tomllib
        raise ValueError(_DEEP)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    except tomllib.TOMLDecodeError as error:
        lines = text.rstrip().splitlines() or [""]
        message = str(error).replace("(at end of document)", f"(line {len(lines)}, its end)").replace("(at ", "(")
        if "Cannot overwrite" in message and (at := re.search(r"\(line (\d+)", message)):
            key = lines[int(at[1]) - 1].partition("=")[0].strip()
            message = f"the key {key!r} is given twice (line {at[1]})"
        raise ValueError(message) from None
    except ValueError:  # Python's limit on digits
        raise ValueError("a number has thousands of digits") from None


class _Loader(yaml.SafeLoader):
    """YAML in which dates are text and 1e-4 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def _yaml(text: str) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context or "this is not YAML"
        if r"'\t'" in problem:
            problem = "a tab where YAML wants spaces"
        raise ValueError(f"{problem}{_at(error.problem_mark)}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values that a node expands to; ``sizes`` caches them. Raises ValueError for too many."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError(f"an alias refers to a value that contains it{_at(node.start_mark)}")
        return sizes[id(node)]
    sizes[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                name = key.value if isinstance(key, yaml.ScalarNode) else "in brackets"
                raise ValueError(f"the key {name} is not text: put it in quotes{_at(key.start_mark)}")
            if key.value in seen:
                raise ValueError(f"the key {key.value!r} is given twice{_at(key.start_mark)}")
            seen.add(key.value)
            inner.append(value)
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif node.tag == "tag:yaml.org,2002:int" and len(node.value) > MOST_DIGITS:
        raise ValueError(f"a number has {len(node.value)} digits{_at(node.start_mark)}")
    size = 1 + sum(_check(each, sizes) for each in inner)
    if size > MOST_VALUES:
        raise ValueError(f"its aliases expand to more than {MOST_VALUES:,} values{_at(node.start_mark)}")
    sizes[id(node)] = size
    return size


def _at(mark: yaml.Mark | None) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


_PARSERS: dict[str, Callable[[str], Any]] = {JSON: parse_json, YAML: _yaml, TOML: parse_toml}
