"""Pairs in a local folder: pictures, and a list with a row for each edit, as JSON lines, CSV or TSV.

The list is read once to find its rows, and then a row at a time from its place, so that any size will do.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from earl_cli.data.sources import BadRowError, Row
from earl_cli.errors import InputError

JSON_LINES, TABLES = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*JSON_LINES, *TABLES)
_MARK = b"\xef\xbb\xbf"  # some editors put it before UTF-8 text


@dataclass(frozen=True, eq=False)
class ListingSource:
    """The rows of a list; ``starts`` int64[n] are their places in the file in bytes, ``lines`` in lines from 1."""

    path: Path
    columns: tuple[str, ...]
    fingerprint: str
    starts: NDArray[np.int64]
    lines: NDArray[np.int64]

    @property
    def name(self) -> str:
        return self.path.parent.resolve().name

    @property
    def bounds(self) -> NDArray[np.int64]:
        return np.arange(len(self.starts) + 1)

    @property
    def base(self) -> str:
        return str(self.path.parent)

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """As `Source.read`."""
        with self.path.open("rb") as file:
            for number in rows:
                where = f"{self.path}, line {self.lines[number]}"
                file.seek(self.starts[number])
                try:
                    values = self._values(file)
                except ValueError as error:
                    yield BadRowError("row", f"not a valid row: {error}", where=where)
                else:
                    yield Row(int(number), where, {name: values[name] for name in columns if name in values})

    def _values(self, file: BinaryIO) -> dict[str, Any]:
        if self.path.suffix in JSON_LINES:
            return _json_object(file.readline())
        values = next(_table_rows(file, self.path.suffix))
        if len(values) != len(self.columns):
            raise ValueError(f"{len(values)} fields for {len(self.columns)} columns")
        return dict(zip(self.columns, values, strict=True))


def open_listing(path: Path) -> ListingSource:
    """Raises InputError if the list can't be read, has no row, or no row that can be read."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MARK)) != _MARK:
                file.seek(0)
            starts, lines, columns = _scan(file, path.suffix)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"this list can't be read: {error.strerror or error}", where=str(path)) from None
    if not starts:
        raise InputError("the list of pairs is empty", where=str(path))
    if not columns:
        what = "not one row of this list can be read"
        raise InputError(what, where=str(path), hint="each line must be a JSON object, in UTF-8")
    return ListingSource(path, columns, digest.hexdigest()[:16], np.array(starts), np.array(lines))


def _scan(file: BinaryIO, suffix: str) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Where the rows start, in bytes and lines, and the names of all columns."""
    starts: list[int] = []
    lines: list[int] = []
    columns: dict[str, None] = {}
    if suffix in JSON_LINES:
        place = file.tell()
        for number, line in enumerate(file, 1):
            if line.strip():
                starts.append(place)
                lines.append(number)
                with suppress(ValueError):  # it is a reject when its turn comes
                    columns |= dict.fromkeys(_json_object(line))
            place += len(line)
        return starts, lines, tuple(columns)
    counted = _Lines(file)
    reader = csv.reader(counted, delimiter=TABLES[suffix])
    header = next(_records(reader), [])
    while True:
        start, first = counted.place, counted.number + 1
        try:
            values = next(reader)
        except StopIteration:
            return starts, lines, tuple(header)
        except csv.Error:
            values = ["damaged"]
        if values:
            starts.append(start)
            lines.append(first)


class _Lines:
    """The lines of a file as text, which knows how far it has read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.place, self.number = file, file.tell(), 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        self.place += len(line)
        self.number += 1
        return line.decode("utf-8", "replace")


def _records(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    return (values for values in reader if values)


def _table_rows(file: BinaryIO, suffix: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(_Lines(file), delimiter=TABLES[suffix], strict=True)
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    if not isinstance(values, dict):
        raise ValueError("a row must be a JSON object")
    return values
