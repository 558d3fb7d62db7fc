"""Pairs in a local folder: pictures and a JSON-lines file with a row for each edit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earl_cli.errors import InputError

SOURCE_NAMES = ("source", "original_image", "source_image", "src_img", "input", "image")
TARGET_NAMES = ("edited", "edited_image", "edited_img", "target", "output")
INSTRUCTION_NAMES = ("instruction", "edit_instruction", "edited_prompt_list", "prompt")
ID_NAMES = ("id", "edit_id", "idx")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; None means the first of the usual names that is there."""

    source: str | None = None
    target: str | None = None
    instruction: str | None = None
    id: str | None = None
    thoughts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """One edit: two picture files, what was asked for, and the texts of its chain of thought by key."""

    id: str
    source: Path
    target: Path
    instruction: str
    thoughts: Mapping[str, str]


def read_pairs(place: Path, columns: Columns) -> list[Pair]:
    """The pairs of a folder (its one ``.jsonl`` file) or of a ``.jsonl`` file, in the file's order.

    Picture paths count from the file's folder. Raises InputError for a missing or ambiguous file, a line that is no
    JSON object, a column that isn't there, and an id that occurs twice; the message names the line.
    """
    listing = _listing(place)
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError("not a UTF-8 text file", where=str(listing)) from None
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError("the list of pairs is empty", where=str(listing))
    pairs: list[Pair] = []
    seen: dict[str, int] = {}
    for number, line in rows:
        pair = _pair(_row(line, f"{listing}, line {number}"), number, columns, listing)
        if pair.id in seen:
            raise InputError(
                f"the id {pair.id!r} is already that of line {seen[pair.id]}", where=f"{listing}, line {number}"
            )
        seen[pair.id] = number
        pairs.append(pair)
    return pairs


def _listing(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise InputError("no such file or folder", where=str(place))
    found = sorted(place.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        what = f"several lists of pairs: {names}" if found else "no .jsonl file that lists the pairs"
        raise InputError(what, where=str(place), hint="give the path of the .jsonl file itself")
    return found[0]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", where=where) from None
    if not isinstance(row, dict):
        raise InputError("a row must be a JSON object", where=where)
    return row


def _pair(row: dict[str, Any], number: int, columns: Columns, listing: Path) -> Pair:
    where = f"{listing}, line {number}"

    def value(flag: str, named: str | None, usual: Sequence[str]) -> Any:
        name = named or next((name for name in usual if name in row), None)
        if name is None or name not in row:
            what = f"no column {named!r}" if named else f"no column for the {flag} (one of {', '.join(usual)})"
            raise InputError(what, where=where, hint=f"the columns are {', '.join(row) or 'none'}")
        return row[name]

    instruction = value("instruction", columns.instruction, INSTRUCTION_NAMES)
    if isinstance(instruction, list) and instruction:
        instruction = instruction[0]
    if not isinstance(instruction, str) or not instruction.strip():
        raise InputError(f"the instruction is {instruction!r}, not a text", where=where)
    has_id = columns.id is not None or any(name in row for name in ID_NAMES)
    source = _picture(value("source picture", columns.source, SOURCE_NAMES), listing, where)
    target = _picture(value("edited picture", columns.target, TARGET_NAMES), listing, where)
    thoughts = {key: str(value(key, key, ())) for key in columns.thoughts}
    name = str(value("id", columns.id, ID_NAMES)) if has_id else f"{number:08d}"
    return Pair(name, source, target, instruction, thoughts)


def _picture(value: object, listing: Path, where: str) -> Path:
    if not isinstance(value, str) or not value:
        raise InputError(f"{value!r} is not the path of a picture", where=where)
    return listing.parent / value
