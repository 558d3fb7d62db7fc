"""A pair of pictures out of a row of data: which column holds what, and what a usable row looks like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from earl_cli.data.sources import BadRowError, Row
from earl_cli.errors import InputError

SOURCE_NAMES = (
    "source", "original_image", "source_image", "source_img", "src_img", "input", "input_image", "INPUT_IMG", "image",
)  # fmt: skip
TARGET_NAMES = (
    "edited", "edited_image", "edited_img", "target", "target_image", "target_img", "output", "output_image",
    "OUTPUT_IMG",
)  # fmt: skip
INSTRUCTION_NAMES = (
    "instruction", "edit_instruction", "edited_prompt_list", "EDITING_INSTRUCTION", "prompt", "edit_prompt",
)  # fmt: skip
ID_NAMES = ("id", "edit_id", "idx", "omni_edit_id", "IMAGE_ID", "img_id", "image_id", "__key__")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; None means the first of the usual names that is there, for the id also none at all."""

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
class Pair:
    """One edit: two pictures as the data has them (bytes, paths, …), the request, and the thinking's texts by key."""

    row: int
    id: str
    where: str
    source: Any
    target: Any
    instruction: str
    thoughts: Mapping[str, str]


def find_columns(wanted: Columns, there: Sequence[str], where: str) -> Columns:
    """``wanted`` with every column named. Raises InputError, with the columns that are there, if one is missing."""

    def find(flag: str, named: str | None, usual: Sequence[str]) -> str:
        name = named or next((name for name in usual if name in there), None)
        if name is None or name not in there:
            what = f"no column {named!r}" if named else f"no column for {flag} under a usual name"
            listed = ", ".join(there) or "none"
            raise InputError(what, where=where, hint=f"the columns are {listed}; name the right one with {flag}")
        return name

    has_id = wanted.id is not None or any(name in there for name in ID_NAMES)
    return Columns(
        find("--original-image-key", wanted.source, SOURCE_NAMES),
        find("--edited-image", wanted.target, TARGET_NAMES),
        find("--edit-instruction", wanted.instruction, INSTRUCTION_NAMES),
        find("--id-key", wanted.id, ID_NAMES) if has_id else None,
        tuple(find("--CoT-keys", key, ()) for key in wanted.thoughts),
    )


def pair_of(row: Row, columns: Columns) -> Pair:
    """The pair in a row; ``columns`` are all named. Raises BadRowError if something is missing or no text."""
    assert columns.source and columns.target and columns.instruction
    instruction = row.values.get(columns.instruction)
    if isinstance(instruction, list | tuple) and instruction:
        instruction = instruction[0]
    if not isinstance(instruction, str) or not instruction.strip():
        raise BadRowError("instruction", f"the instruction is {_short(instruction)}, not a text", where=row.where)
    for name in (columns.source, columns.target):
        if row.values.get(name) is None:
            raise BadRowError("picture", f"there is no {name}", where=row.where)
    return Pair(
        row.number,
        row_id(row, columns),
        row.where,
        row.values[columns.source],
        row.values[columns.target],
        instruction,
        {key: _text(row.values[key]) for key in columns.thoughts if row.values.get(key) not in (None, "")},
    )


def row_id(row: Row, columns: Columns) -> str:
    """What the data calls this row, or its number, counted from 1."""
    name = row.values.get(columns.id) if columns.id else None
    return str(name) if name is not None else f"{row.number + 1:08d}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(value: Any, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
