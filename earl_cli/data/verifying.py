"""Whether a token store is as it should be: its files, every row, and how they add up.

Checked in whole columns, a shard at a time: what is kept of a row is its number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from earl_cli.data.inspecting import KEYS_AND_TEXTS, NAMED, Numbers, missing_shards, numbers_of, spans
from earl_cli.data.store import MANIFEST, SCHEMA, Store, read_rejects, read_shard, shard_number, shard_path
from earl_cli.errors import InputError

Mask: TypeAlias = NDArray[np.bool_]
_REJECTS = re.compile(r"(shard-\d{6,})\.rejects\.jsonl")


@dataclass(frozen=True)
class Problem:
    """What is wrong, and in which file or folder."""

    where: str
    what: str


def verify(store: Store, on_rows: Callable[[int], None] = lambda _rows: None) -> list[Problem]:
    """All that is wrong with a store; it stops neither at the first problem nor at a file that can't be read.

    ``on_rows`` is told of the rows of every shard and every list of rejects once they are checked.
    """
    problems = list(_verify_names(store))
    numbers = _RowNumbers()
    unreadable = 0
    pairs = rejects = 0
    for shard in store.shards:
        found, rows = _verify_shard(shard, store.manifest.codes)
        problems += [Problem(str(shard), what) for what in found]
        if rows is None:
            unreadable += 1
            continue
        numbers.add(shard, numbers_of(rows.drop_null()))
        pairs += len(rows)
        on_rows(len(rows))
    for path in _lists_of_rejects(store.folder):
        try:
            left_out = _rejected_rows(path)
        except InputError as error:
            problems.append(Problem(str(path), error.what))
            unreadable += 1
            continue
        numbers.add(path, left_out)
        rejects += len(left_out)
        on_rows(len(left_out))
    problems += numbers.repeated()
    planned, there = store.manifest.rows, pairs + rejects
    if there > planned or (there < planned and not unreadable and not store.missing):
        what = f"{planned} rows were planned, but there are {pairs} pairs and {rejects} rejects"
        problems.append(Problem(str(store.folder / MANIFEST), what))
    return problems


def _verify_names(store: Store) -> Iterator[Problem]:
    """Files that are missing, or that nothing accounts for."""
    if missing := missing_shards(store):
        yield Problem(str(store.folder), missing)
    for shard in store.shards:
        number = shard_number(shard)
        if number >= store.manifest.shards:
            yield Problem(str(shard), f"unexpected: the store has {store.manifest.shards} shards, counted from 0")
        elif shard != shard_path(store.folder, number):
            yield Problem(str(shard), f"unexpected: shard {number} is called {shard_path(store.folder, number).name}")
    there = {shard.stem for shard in store.shards}
    for path in _lists_of_rejects(store.folder):
        if path.name.split(".")[0] not in there:
            yield Problem(str(path), "rejects of a shard that is not there")


def _verify_shard(shard: Path, codes: int) -> tuple[list[str], pa.ChunkedArray | None]:
    """What is wrong with a shard, and its rows' numbers; None if they can't be read."""
    try:
        table = read_shard(shard)
        columns = pq.read_schema(shard)
    except InputError as error:
        return [error.what], None
    except (pa.ArrowException, OSError, ValueError) as error:
        return [f"this shard is damaged: {error}"], None
    absent = [name for name in SCHEMA.names if name not in columns.names]
    found = [f"the column {name} is missing" for name in absent]
    found += [f"the column {name} doesn't belong here" for name in columns.names if name not in SCHEMA.names]
    for field in SCHEMA:
        if field.name in columns.names and columns.field(field.name).type != field.type:
            found.append(f"the column {field.name} is of type {columns.field(field.name).type}, not {field.type}")
    if not absent:
        found += _verify_rows(table, codes)
    return found, None if "row" in absent else table["row"]


def _verify_rows(table: pa.Table, codes: int) -> Iterator[str]:
    for what, wrong in _row_checks(table, codes):
        rows = np.flatnonzero(wrong)
        if len(rows):
            named = table["row"].take(pa.array(rows[:NAMED])).to_pylist()
            names = ["(no number)" if row is None else str(row) for row in named]
            more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            yield f"{what}: row{'s' if len(rows) > 1 else ''} {', '.join(names)}{more}"


def _row_checks(table: pa.Table, codes: int) -> Iterator[tuple[str, Mask]]:
    """A fault in words, and which rows of the table have it."""
    null = {name: _mask(table[name].is_null()) for name in SCHEMA.names}
    thoughts = table["thoughts"].combine_chunks().cast(KEYS_AND_TEXTS)
    texts, owners = thoughts.flatten().field("value"), np.asarray(pc.list_parent_indices(thoughts))
    null["thoughts"] |= _any_within(_mask(texts.is_null()), owners, table.num_rows)
    for side in ("source", "target"):
        column = table[side].combine_chunks()
        elements, owners = column.flatten(), np.asarray(pc.list_parent_indices(column))
        null[side] |= _any_within(_mask(elements.is_null()), owners, table.num_rows)
        heights, widths = (numbers_of(table[f"{side}_{length}"]) for length in ("height", "width"))
        known = ~(null[side] | null[f"{side}_height"] | null[f"{side}_width"])
        empty = (heights == 0) | (widths == 0)
        yield f"the grid of the {side} is empty", known & empty
        wrong_count = numbers_of(pc.list_value_length(column)) != heights * widths
        yield f"the codes of the {side} don't fill its grid", known & ~empty & wrong_count
        unknown = np.asarray(elements.fill_null(0)) >= codes
        what = f"codes of the {side} are {codes} or higher, which the codebook doesn't have"
        yield what, _any_within(unknown, owners, table.num_rows)
    for name, wrong in null.items():
        yield f"{name} has no value (null)", wrong
    yield "the instruction is empty", _mask(pc.equal(pc.utf8_trim_whitespace(table["instruction"]), ""))
    yield "the row's number is negative", _mask(pc.less(table["row"], 0))


def _lists_of_rejects(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _REJECTS.fullmatch(path.name))


def _rejected_rows(path: Path) -> Numbers:
    rejects = read_rejects(path.with_name(f"{path.name.split('.')[0]}.parquet"))
    return np.array([reject.row for reject in rejects], np.int64)


class _RowNumbers:
    """The numbers of all rows, to find those that are there more than once."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.parts: list[Numbers] = []

    def add(self, file: Path, rows: Numbers) -> None:
        self.files.append(file)
        self.parts.append(rows)

    def repeated(self) -> Iterator[Problem]:
        """A problem for each two files that share rows, or one file that has some twice, named in the later one."""
        rows = np.concatenate([np.zeros(0, np.int64), *self.parts])
        owners = np.repeat(np.arange(len(self.files)), [len(part) for part in self.parts])
        order = np.argsort(rows, kind="stable")
        rows, owners = rows[order], owners[order]
        again = np.flatnonzero(rows[1:] == rows[:-1])
        if not len(again):
            return
        files = np.stack([owners[again + 1], owners[again]])
        for later, earlier in np.unique(files, axis=1).T.tolist():
            shared = np.unique(rows[again][(files[0] == later) & (files[1] == earlier)])
            verb = "rows {} are" if len(shared) > 1 else "row {} is"
            place = "here more than once" if later == earlier else f"here and in {self.files[earlier].name}"
            yield Problem(str(self.files[later]), f"{verb.format(spans(shared.tolist()))} {place}")


def _mask(column: pa.Array | pa.ChunkedArray) -> Mask:
    return np.asarray(column.fill_null(False)).astype(bool)


def _any_within(elements: Mask, owners: NDArray[Any], rows: int) -> Mask:
    """Which of the rows own an element that is true."""
    found = np.zeros(rows, bool)
    found[owners[elements]] = True
    return found
