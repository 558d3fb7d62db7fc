"""Which columns of a row hold source, instruction and target, checks of an example, and presets of published data."""

from __future__ import annotations

import ast
import json
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from earl_cli.console import listed
from earl_cli.data.image_cells import looks_like_image
from earl_cli.data.shard_plan import RowOrder
from earl_cli.data.sources.base import BadRowError, CellKind, Row, Source, nested_splits
from earl_cli.errors import InputError, UsageError

SOURCE_NAMES = (
    "source", "original_image", "source_image", "source_img", "src_img", "input", "input_image", "input_img",
    "input_images", "original", "before", "image", "file_name",
)  # fmt: skip
TARGET_NAMES = (
    "edited", "edited_image", "edited_img", "target", "target_image", "target_img", "output", "output_image",
    "output_img", "output_images", "after",
)  # fmt: skip
INSTRUCTION_NAMES = (
    "instruction", "edit_instruction", "edited_prompt_list", "editing_instruction", "edit_prompt", "prompt",
    "instructions", "edit",
)  # fmt: skip
ID_NAMES = ("id", "edit_id", "idx", "omni_edit_id", "image_id", "img_id", "__key__")
SAMPLED_ROWS = 16
"""Rows that are read to tell what a column holds, where its type doesn't."""
MAX_LISTED = 40
MAX_LIST_LENGTH = 10_000
"""Characters of a cell that is parsed as a list: Python's parser takes a hundred times their memory."""
_RUN_TOGETHER = re.compile(r"""['"]\s+['"]""")  # as numpy prints lists; Python would read one text
_FILE = re.compile(r"_(file_?name|file|path|url)s?$")


@dataclass(frozen=True)
class ExampleColumns:
    """Names of columns; None means the first one with a common name (`column_by_common_name`), for the id also none."""

    source: str | None = None
    target: str | None = None
    instruction: str | None = None
    id: str | None = None
    thoughts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All named columns, without duplicates."""
        named = (self.source, self.target, self.instruction, self.id, *self.thoughts)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "thoughts": list(self.thoughts)}


@dataclass(frozen=True)
class EditExample:
    """One edit: two images as the data hold them (bytes, paths, …), the instruction, and chains of thought by key."""

    row: int
    id: str
    where: str
    source: Any
    target: Any
    instruction: str
    thoughts: Mapping[str, str]


def find_columns(wanted: ExampleColumns, source: Source, *, reason: str = "") -> ExampleColumns:
    """``wanted`` with every column as ``source`` spells it; ``reason``, for the message, is why these are wanted.

    Raises InputError that names all missing columns, the common names and the columns that ``source`` has.
    """
    missing: list[tuple[str, str]] = []

    def find(flag: str, named: str | None, common_names: Sequence[str] = (), holds: CellKind = "text") -> str | None:
        name = matching_column(named, source) if named else column_by_common_name(source, common_names, holds)
        if name is None:
            nothing = f"no column for {flag} under a common name ({', '.join(common_names)})"
            missing.append((flag, f"no column {named!r}" if named else nothing))
        return name

    found = ExampleColumns(
        find("--original-image-key", wanted.source, SOURCE_NAMES, "image"),
        find("--edited-image", wanted.target, TARGET_NAMES, "image"),
        find("--edit-instruction", wanted.instruction, INSTRUCTION_NAMES),
        find("--id-key", wanted.id) if wanted.id else column_by_common_name(source, ID_NAMES),
        tuple(find("--cot-keys", key) or key for key in wanted.thoughts),
    )
    if missing:
        flags, faults = (dict.fromkeys(each) for each in zip(*missing, strict=True))
        hint = f"the columns are {describe_columns(source)}; name the right ones with {', '.join(flags)}"
        raise InputError("; ".join(faults), where=source.name, hint=f"{reason}; {hint}" if reason else hint)
    return found


def matching_column(name: str, source: Source) -> str | None:
    """The column as ``source`` spells it, None if there is none; a nested name may turn out to be missing only in a
    row."""
    forms = {unicodedata.normalize("NFC", column): column for column in source.columns}
    normalized = unicodedata.normalize("NFC", name)
    if normalized in forms:
        return forms[normalized]
    nested = any(source.columns.get(outer) == "unknown" for outer, _ in nested_splits(name))
    return name if nested else None


def column_by_common_name(source: Source, common_names: Sequence[str], holds: CellKind | None = None) -> str | None:
    """The first column with one of these names that holds images or texts, or anything; None if there is none.

    A column whose type says what it holds comes before those whose type doesn't; for these, a sample of rows decides.
    """
    names = _matching_names(source, common_names, holds)
    if holds is None:
        return next(iter(names), None)
    typed = [name for name in names if source.columns[name] == holds]
    untyped = [name for name in names if source.columns[name] == "unknown"]
    if typed or len(untyped) < 2:
        return next(iter(typed or untyped), None)
    values = _sample_values(source, untyped)
    for name in untyped:
        images = sum(looks_like_image(value, source.base) for value in values[name])
        if 2 * (images if holds == "image" else len(values[name]) - images) > len(values[name]):
            return name
    return untyped[0]


def describe_columns(source: Source) -> str:
    """The columns for a message, those of images marked."""
    named = [f"{name} (images)" if holds == "image" else name for name, holds in source.columns.items()]
    return listed(named, MAX_LISTED) or "none"


def _matching_names(source: Source, common_names: Sequence[str], holds: CellKind | None) -> list[str]:
    """The columns with these names, in any spelling; for images also those called their file, path or URL."""
    plain = {column: _normalized(column) for column in source.columns}
    found: list[str] = []
    for name in common_names:
        found += [column for column in plain if column == name]
        found += [column for column in plain if plain[column] == name]
        if holds == "image":
            found += [column for column in plain if _FILE.sub("", plain[column]) == name]
    return list(dict.fromkeys(found))


def _normalized(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().casefold()) if name != "__key__" else name


def _sample_values(source: Source, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The non-empty values of these columns in a random sample of rows."""
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for rows in RowOrder(source.bounds, seed=0, limit=SAMPLED_ROWS).chunks(0, SAMPLED_ROWS):
        for row in source.read(rows, columns):
            if isinstance(row, Row):
                for name, value in row.values.items():
                    values[name] += [value] if value not in (None, "") else []
    return values


def read_example(row: Row, columns: ExampleColumns) -> EditExample:
    """The example in a row; ``columns`` are all named. Raises BadRowError for a missing value and for one that is no
    text."""
    assert columns.source and columns.target and columns.instruction
    instruction = read_instruction(row, columns.instruction)
    for name in (columns.source, columns.target):
        if row.values.get(name) is None:
            raise BadRowError("image", f"there is no {name}", where=row.where)
    texts = {key: _as_text(row.values[key]) for key in columns.thoughts if row.values.get(key) is not None}
    thoughts = {key: _checked_text(text, row) for key, text in texts.items()}
    source, target = row.values[columns.source], row.values[columns.target]
    return EditExample(row.number, row_id(row, columns), row.where, source, target, instruction, thoughts)


def read_instruction(row: Row, column: str) -> str:
    """The row's instruction, the first one of a list. Raises BadRowError if it is missing or no text."""
    if column not in row.values:
        raise BadRowError("instruction", f"there is no {column}", where=row.where)
    value = row.values[column]
    if isinstance(value, str):
        value = _parse_list(value)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise BadRowError("instruction", f"the instruction is {_short(value)}, not a text", where=row.where)
    return _checked_text(value, row)


def _checked_text(text: str, row: Row) -> str:
    if text != storable(text):
        raise BadRowError("text", "it has a lone surrogate, as a text that was cut off", where=row.where)
    return text


def _parse_list(text: str) -> str | list[Any]:
    """The list that a table's cell holds as JSON or as Python prints it; else the text itself."""
    if len(text) <= MAX_LIST_LENGTH and text.strip().startswith("[") and not _RUN_TOGETHER.search(text):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(text.strip())
            if isinstance(found, list) and all(isinstance(each, str) for each in found):
                return found
    return text


def row_id(row: Row, columns: ExampleColumns) -> str:
    """The row's id in the data, or its number, counted from 1."""
    name = row.values.get(columns.id) if columns.id else None
    return storable(str(name)) if name is not None else f"{row.number + 1:08d}"


def storable(text: str) -> str:
    """The text with question marks for lone surrogates, which JSON can hold and UTF-8 can't."""
    return text.encode("utf-8", "replace").decode()


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(value: Any, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"


@dataclass(frozen=True)
class Preset:
    """A published data set of presets.toml; options that are given override it.

    With ``location`` None the set isn't on the Hub as examples, and a copy has to be named.
    """

    location: str | None
    split: str | None
    columns: ExampleColumns


@cache
def presets() -> Mapping[str, Preset]:
    """The presets of the package by name."""
    tables = tomllib.loads((resources.files("earl_cli.data") / "presets.toml").read_text(encoding="utf-8"))
    return {
        name: Preset(table.get("location"), table.get("split"), ExampleColumns(**table["columns"]))
        for name, table in tables.items()
    }


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises UsageError that lists the presets."""
    if name not in presets():
        raise UsageError(f"no preset {name!r}", where="--preset", hint=f"there are {', '.join(presets())}")
    return presets()[name]
