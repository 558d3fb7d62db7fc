"""Examples in a local folder: images, and a list with a row for each edit, as JSON, JSON lines, CSV or TSV.

The list is scanned once to find its rows, and rows are then read from their positions, so it may have any size.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from earl_cli.data.sources.base import BadRowError, CellKind, Row, check_no_lfs_pointer, select_columns
from earl_cli.errors import InputError
from earl_cli.files import end_of_value, first_value, loads

JSON, JSON_LINES, TABLES = ".json", (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*JSON_LINES, *TABLES, JSON)
DELIMITERS = (",", "\t", ";", "|")
MAX_CELL_LENGTH = 2**30
SNIFFED_LINES, SNIFFED_BYTES = 100, 2**20
"""What is read of a table, at most, to detect its delimiter."""
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\3\4")
_ELEMENT, _COMMA, _END = (re.compile(each) for each in (r"\s*\[\s*(?!\])(?=\S)", r"\s*,\s*", r"\s*\[?\s*\]\s*"))
_AS_UTF8 = "save it as UTF-8 (in Excel: CSV UTF-8; elsewhere: iconv -t utf-8)"


@dataclass(frozen=True)
class ListFormat:
    """The format of a list: its encoding, the length of its byte order mark, and the delimiter of a table.

    Without a ``delimiter`` it is JSON: an object a line, or one ``array`` of objects.
    """

    encoding: str
    bom_length: int
    delimiter: str | None = None
    array: bool = False


@dataclass(frozen=True, eq=False)
class TextListSource:
    """The rows of a list; ``starts`` int64[n] are their positions in the file in bytes, ``lines`` in lines from 1."""

    name: str
    path: Path
    format: ListFormat
    columns: Mapping[str, CellKind]
    fingerprint: str
    starts: NDArray[np.int64]
    lines: NDArray[np.int64]

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
                    values = self._values(file, number)
                except UnicodeDecodeError:
                    yield BadRowError("row", "not a valid row: not UTF-8 text", where=where, hint=_AS_UTF8)
                except (ValueError, csv.Error) as error:
                    yield BadRowError("row", f"not a valid row: {error}", where=where)
                else:
                    yield Row(int(number), where, select_columns(values, columns))

    def _values(self, file: BinaryIO, number: int) -> dict[str, Any]:
        if self.format.array:
            size = self.starts[number + 1] - self.starts[number] if number + 1 < len(self.starts) else -1
            values, _ = first_value(file.read(size).decode(self.format.encoding))
            return _checked_object(values)
        if self.format.delimiter is None:
            return _json_object(_next_line(file, self.format.encoding).decode(self.format.encoding))
        rows = _reader(_Lines(file, self.format.encoding, "strict"), self.format.delimiter)
        values = next(rows, [])
        if len(values) != len(self.columns):
            raise ValueError(f"{len(values)} fields for {len(self.columns)} columns")
        return dict(zip(self.columns, values, strict=True))


@dataclass(frozen=True, eq=False)
class TextListsSource:
    """The rows of several lists in one folder, one list after another."""

    name: str
    parts: tuple[TextListSource, ...]

    @property
    def columns(self) -> Mapping[str, CellKind]:
        return {name: content for part in self.parts for name, content in part.columns.items()}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(part.fingerprint for part in self.parts).encode()).hexdigest()[:16]

    @property
    def bounds(self) -> NDArray[np.int64]:
        return np.arange(sum(len(part.starts) for part in self.parts) + 1)

    @property
    def base(self) -> str:
        return self.parts[0].base

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """As `Source.read`."""
        start = 0
        for part in self.parts:
            end = start + len(part.starts)
            for row in part.read([row - start for row in rows if start <= row < end], columns):
                yield replace(row, number=row.number + start) if isinstance(row, Row) else row
            start = end


def open_lists(paths: Sequence[Path], name: str) -> TextListSource | TextListsSource:
    """As `open_list`, of several lists in one folder."""
    parts = tuple(open_list(path, name) for path in paths)
    return parts[0] if len(parts) == 1 else TextListsSource(name, parts)


def open_list(path: Path, name: str) -> TextListSource:
    """Scan a list. Raises InputError if it can't be read, has no row, or no valid row."""
    try:
        with path.open("rb") as file:
            format = _detect_format(file, path)
            file.seek(format.bom_length)
            scan = _scan_array if format.array else _scan_lines if format.delimiter is None else _scan_table
            starts, lines, columns = scan(file, format)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"this list can't be read: {error.strerror or error}", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("this list, or its columns' names, is no UTF-8 text", where=str(path), hint=_AS_UTF8) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", where=f"{path}, line {error.lineno}") from None
    except csv.Error as error:
        raise InputError(f"the line with the names of its columns can't be read: {error}", where=str(path)) from None
    if not starts:
        raise InputError("the list of examples is empty", where=str(path))
    if not columns:
        what = "no row of this list can be read"
        raise InputError(what, where=str(path), hint="each row must be a JSON object, in UTF-8")
    repeated = [repr(name) for name, count in Counter(columns).items() if count > 1]
    if repeated:
        what = f"several columns have the same name: {', '.join(repeated)}"
        raise InputError(what, where=str(path), hint="rename or delete all but one")
    contents: dict[str, CellKind] = dict.fromkeys(columns, "unknown")
    return TextListSource(name, path, format, contents, digest.hexdigest()[:16], np.array(starts), np.array(lines))


def is_json_list(path: Path) -> bool:
    """Whether a .json holds rows, by its beginning: an array of objects, or a line for each object."""
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES).removeprefix(codecs.BOM_UTF8)
    if re.match(rb"\s*\[\s*\{", head):
        return True
    first, _, others = head.lstrip().partition(b"\n")
    with suppress(ValueError):
        return others.lstrip().startswith(b"{") and isinstance(loads(first), dict)
    return False


def _detect_format(file: BinaryIO, path: Path) -> ListFormat:
    """Raises InputError for compressed text, and for other encodings than UTF-8 and UTF-16 with a byte order mark."""
    check_no_lfs_pointer(path)
    head = file.read(4096)
    if head.startswith(_COMPRESSED):
        raise InputError("this list is compressed", where=str(path), hint="unpack it first")
    if b"\r" in head and b"\n" not in head:
        what = "its lines end in carriage returns alone"
        raise InputError(what, where=str(path), hint="save it with line feeds")
    bom = next((bom for bom in _BYTE_ORDER_MARKS if head.startswith(bom)), b"")
    encoding = _BYTE_ORDER_MARKS.get(bom, "utf-8")
    if encoding == "utf-8" and b"\0" in head:
        raise InputError("this is no UTF-8 text: there are zero bytes in it", where=str(path), hint=_AS_UTF8)
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        text = head[len(bom) :].decode(encoding, "replace").lstrip()
        return ListFormat(encoding, len(bom), array=suffix == JSON and text.startswith("["))
    file.seek(len(bom))
    return ListFormat(encoding, len(bom), _delimiter(file, encoding, TABLES[suffix]))


def _delimiter(file: BinaryIO, encoding: str, usual: str) -> str:
    """The delimiter that splits most of the first lines into as many cells as the first one, at least two; else the
    usual one."""
    lines: list[str] = []
    size = 0
    while len(lines) < SNIFFED_LINES and size < SNIFFED_BYTES and (line := _next_line(file, encoding)):
        size += len(line)
        lines.append(line.decode(encoding, "replace"))

    def fitting(delimiter: str) -> int:
        counts: list[int] = []
        with suppress(csv.Error):
            for cells in filter(None, _reader(iter(lines), delimiter)):
                counts.append(len(cells))  # one by one: lines before a damaged one count
        return counts.count(counts[0]) if counts and counts[0] > 1 else 0

    return max(dict.fromkeys((usual, *DELIMITERS)), key=fitting)


def _scan_lines(file: BinaryIO, format: ListFormat) -> tuple[list[int], list[int], list[str]]:
    """The positions of the rows of JSON lines, in bytes and in lines, and the names of all columns."""
    starts: list[int] = []
    lines: list[int] = []
    columns: dict[str, None] = {}
    place, number = file.tell(), 0
    while line := _next_line(file, format.encoding):
        number += 1
        text = line.decode(format.encoding, "replace")
        if text.strip():
            starts.append(place)
            lines.append(number)
            with suppress(ValueError):  # it becomes a reject when it is read
                columns |= dict.fromkeys(_json_object(text))
        place += len(line)
    return starts, lines, list(columns)


def _scan_array(file: BinaryIO, format: ListFormat) -> tuple[list[int], list[int], list[str]]:
    """As `_scan_lines`, of an array. Raises json.JSONDecodeError where it breaks off: the rest can't be read."""
    text = file.read().decode(format.encoding)
    starts: list[int] = []
    lines: list[int] = []
    columns: dict[str, None] = {}
    at, place, line = 0, format.bom_length, 1
    element = _ELEMENT.match(text)
    while element is not None:
        place += len(text[at : element.end()].encode(format.encoding))
        line += text.count("\n", at, element.end())
        at = element.end()
        starts.append(place)
        lines.append(line)
        try:
            values, end = first_value(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError:
            values, end = None, end_of_value(text, at)
        with suppress(ValueError):  # it becomes a reject when it is read
            columns |= dict.fromkeys(_checked_object(values))
        place += len(text[at:end].encode(format.encoding))
        line += text.count("\n", at, end)
        at = end
        element = _COMMA.match(text, at)
    if not _END.fullmatch(text, at):
        stray = len(text) - len(text[at:].lstrip())
        raise json.JSONDecodeError("neither a comma nor the end of the array", text, stray)
    return starts, lines, list(columns)


def _scan_table(file: BinaryIO, format: ListFormat) -> tuple[list[int], list[int], list[str]]:
    """As `_scan_lines`, of a table. A quote that is never closed affects its own line only, not those after it."""
    assert format.delimiter is not None
    starts: list[int] = []
    lines: list[int] = []
    header: list[str] = []
    text = _Lines(file, format.encoding, "strict")
    rows = _reader(text, format.delimiter)
    while not header:
        header = [name.strip() for name in next(rows, ["no row"])]
    text.errors = "replace"  # a row that isn't text becomes a reject when it is read
    while True:
        start, before = text.place, text.number
        try:
            values = next(rows)
        except StopIteration:
            return starts, lines, header
        except csv.Error:
            values = ["damaged"]
        if not values:
            continue
        starts.append(start)
        lines.append(before + 1)
        if len(values) != len(header) and text.number > before + 1:
            text.seek_after_line(start, before)
            rows = _reader(text, format.delimiter)


class _Lines:
    """The lines of a file as text, with the position after the last one."""

    def __init__(self, file: BinaryIO, encoding: str, errors: str) -> None:
        self.file, self.encoding, self.errors, self.place, self.number = file, encoding, errors, file.tell(), 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = _next_line(self.file, self.encoding)
        if not line:
            raise StopIteration
        self.place += len(line)
        self.number += 1
        return line.decode(self.encoding, self.errors)

    def seek_after_line(self, place: int, number: int) -> None:
        self.file.seek(place)
        self.place = place + len(_next_line(self.file, self.encoding))
        self.number = number + 1


def _next_line(file: BinaryIO, encoding: str) -> bytes:
    """The next line with its end. In UTF-16, the byte of a line feed may be part of another character."""
    line = file.readline()
    if encoding == "utf-8":
        return line
    end = "\n".encode(encoding)
    while line and (len(line) % 2 or not line.endswith(end)):
        more = file.read(1) if len(line) % 2 else file.readline()
        if not more:
            break
        line += more
    return line


def _reader(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_CELL_LENGTH)  # a cell may be an image
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _json_object(line: str) -> dict[str, Any]:
    try:
        values = loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg}") from None
    return _checked_object(values)


def _checked_object(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError("a row must be a JSON object")
    return values
