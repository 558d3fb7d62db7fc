"""Which columns of a row hold source, instruction and target, what a usable row is, and presets for published data."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
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
"""Rows that are looked at where the type of a column doesn't tell what it holds."""
MAX_LISTED = 40
MAX_LIST_LENGTH = 10_000
"""Characters of a cell that may spell a list: Python takes a hundred times their memory to read them."""
_RUN_TOGETHER = re.compile(r"""['"]\s+['"]""")  # as numpy prints lists, which Python reads as one text
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
        """All that are named, once each."""
        named = (self.source, self.target, self.instruction, self.id, *self.thoughts)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "thoughts": list(self.thoughts)}


@dataclass(frozen=True)
class EditExample:
    """One edit: two pictures as the data has them (bytes, paths, …), the request, and the thinking's texts by key."""

    row: int
    id: str
    where: str
    source: Any
    target: Any
    instruction: str
    thoughts: Mapping[str, str]


def find_columns(wanted: ExampleColumns, source: Source, *, reason: str = "") -> ExampleColumns:
    """``wanted`` with every column named as ``source`` has it; ``reason`` is why these are wanted, for the message.

    Raises InputError, with all that are missing, the usual names and the columns that are there.
    """
    missing: list[tuple[str, str]] = []

    def find(flag: str, named: str | None, usual: Sequence[str] = (), holds: CellKind = "text") -> str | None:
        name = matching_column(named, source) if named else column_by_common_name(source, usual, holds)
        if name is None:
            nothing = f"no column for {flag} under a usual name ({', '.join(usual)})"
            missing.append((flag, f"no column {named!r}" if named else nothing))
        return name

    found = ExampleColumns(
        find("--original-image-key", wanted.source, SOURCE_NAMES, "picture"),
        find("--edited-image", wanted.target, TARGET_NAMES, "picture"),
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
    """How ``source`` spells the column, None if it has none; what a nested one holds isn't always known beforehand."""
    forms = {unicodedata.normalize("NFC", column): column for column in source.columns}
    spelled = unicodedata.normalize("NFC", name)
    if spelled in forms:
        return forms[spelled]
    nested = any(source.columns.get(outer) == "unknown" for outer, _ in nested_splits(name))
    return name if nested else None


def column_by_common_name(source: Source, usual: Sequence[str], holds: CellKind | None = None) -> str | None:
    """The first column under one of the ``usual`` names that holds pictures or texts, or anything; None if none does.

    A column whose type says so comes before those whose type leaves it open; among these, a sample of the rows tells.
    """
    names = _matching_names(source, usual, holds)
    if holds is None:
        return next(iter(names), None)
    certain = [name for name in names if source.columns[name] == holds]
    unclear = [name for name in names if source.columns[name] == "unknown"]
    if certain or len(unclear) < 2:
        return next(iter(certain or unclear), None)
    values = _sample_values(source, unclear)
    for name in unclear:
        pictures = sum(looks_like_image(value, source.base) for value in values[name])
        if 2 * (pictures if holds == "picture" else len(values[name]) - pictures) > len(values[name]):
            return name
    return unclear[0]


def describe_columns(source: Source) -> str:
    """The columns for a message; of those with pictures it says so."""
    named = [f"{name} (pictures)" if holds == "picture" else name for name, holds in source.columns.items()]
    return listed(named, MAX_LISTED) or "none"


def _matching_names(source: Source, usual: Sequence[str], holds: CellKind | None) -> list[str]:
    """The columns under these names, however spelled; of pictures also what is called their file, path or URL."""
    plain = {column: _normalized(column) for column in source.columns}
    found: list[str] = []
    for name in usual:
        found += [column for column in plain if column == name]
        found += [column for column in plain if plain[column] == name]
        if holds == "picture":
            found += [column for column in plain if _FILE.sub("", plain[column]) == name]
    return list(dict.fromkeys(found))


def _normalized(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().casefold()) if name != "__key__" else name


def _sample_values(source: Source, columns: Sequence[str]) -> dict[str, list[Any]]:
    """What these columns hold in some rows from anywhere, where they hold anything."""
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for rows in RowOrder(source.bounds, seed=0, limit=SAMPLED_ROWS).chunks(0, SAMPLED_ROWS):
        for row in source.read(rows, columns):
            if isinstance(row, Row):
                for name, value in row.values.items():
                    values[name] += [value] if value not in (None, "") else []
    return values


def read_example(row: Row, columns: ExampleColumns) -> EditExample:
    """The pair in a row; ``columns`` are all named. Raises BadRowError if something is missing or no text."""
    assert columns.source and columns.target and columns.instruction
    instruction = read_instruction(row, columns.instruction)
    for name in (columns.source, columns.target):
        if row.values.get(name) is None:
            raise BadRowError("picture", f"there is no {name}", where=row.where)
    texts = {key: _as_text(row.values[key]) for key in columns.thoughts if row.values.get(key) is not None}
    thoughts = {key: _checked_text(text, row) for key, text in texts.items()}
    source, target = row.values[columns.source], row.values[columns.target]
    return EditExample(row.number, row_id(row, columns), row.where, source, target, instruction, thoughts)


def read_instruction(row: Row, column: str) -> str:
    """The row's request, of several the first. Raises BadRowError if there is none, or no text."""
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
        raise BadRowError("text", "there is half a character in it, as in a text cut off", where=row.where)
    return text


def _parse_list(text: str) -> str | list[Any]:
    """The list that a cell of a table spells, in JSON or as Python prints it; else the text itself."""
    if len(text) <= MAX_LIST_LENGTH and text.strip().startswith("[") and not _RUN_TOGETHER.search(text):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(text.strip())
            if isinstance(found, list) and all(isinstance(each, str) for each in found):
                return found
    return text


def row_id(row: Row, columns: ExampleColumns) -> str:
    """What the data calls this row, or its number, counted from 1."""
    name = row.values.get(columns.id) if columns.id else None
    return storable(str(name)) if name is not None else f"{row.number + 1:08d}"


def storable(text: str) -> str:
    """JSON can hold half of a surrogate pair, which no UTF-8 can: it becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(value: Any, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"


@dataclass(frozen=True)
class Preset:
    """What a preset sets: where the data are and which columns hold what; every flag that is given wins over it.

    ``place`` None: the set isn't on the Hub as pairs; a copy of one's own has to be named.
    """

    place: str | None
    columns: ExampleColumns
    split: str | None = "train"


_PAIRS = ExampleColumns("source_image", "edited_image", "edit_instruction")  # as the paper's own copies name them

PRESETS = {
    "omniedit": Preset(
        "TIGER-Lab/OmniEdit-Filtered-1.2M",
        ExampleColumns("src_img", "edited_img", "edited_prompt_list", "omni_edit_id"),
    ),
    "magic_brush": Preset("osunlp/MagicBrush", ExampleColumns("source_img", "target_img", "instruction")),
    "human-edit": Preset("BryanW/HumanEdit", ExampleColumns("INPUT_IMG", "OUTPUT_IMG", "EDITING_INSTRUCTION")),
    "aurora_ag": Preset(None, _PAIRS, split=None),
    "aurora_kubric": Preset(None, _PAIRS, split=None),
    "ss2": Preset(None, _PAIRS, split=None),
    "vismin": Preset(None, _PAIRS, split=None),
}


def find_preset(name: str) -> Preset:
    """Raises UsageError, listing the presets, for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}", where="--preset", hint=f"there are {', '.join(PRESETS)}")
    return PRESETS[name]
