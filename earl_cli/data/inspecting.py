"""What a token store holds (`summary`), and whether it is valid (`verify`): files, rows, totals.

Shards are read one at a time and by columns: a million rows take seconds, and memory stays constant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from earl_cli.data.store import (
    MANIFEST,
    SCHEMA,
    Manifest,
    Store,
    TokenizedExample,
    examples_of,
    read_rejects,
    read_shard,
    shard_number,
    shard_path,
)
from earl_cli.errors import InputError
from earl_cli.files import is_partial

Numbers: TypeAlias = NDArray[np.int64]

THOUGHTS_LIST = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
"""The chain of thought of a row as a list, for libraries without maps."""
MAX_NAMED = 5
"""Rows or shards that a message names; the rest is counted."""
_HASH_START = 16
_NO_HASHES = np.empty(0, f"S{_HASH_START}")
_COUNTED = ("instruction", "source_height", "source_width", "target_height", "target_width", "thoughts", "source_hash")
Mask: TypeAlias = NDArray[np.bool_]
_REJECTS = re.compile(r"(shard-\d{6,})\.rejects\.jsonl")


@dataclass(frozen=True)
class Distribution:
    """Of integers; all fields are 0 if ``count`` is."""

    count: int
    minimum: int
    median: float
    mean: float
    maximum: int


@dataclass(frozen=True)
class Summary:
    """The contents of a store.

    ``rows`` were planned, ``pairs`` (examples) are there, ``rejected`` were left out, by kind. Grids are "height*width"
    in codes, the most common first. ``characters`` and ``words`` are of instructions, ``thoughts`` the characters of
    chains of thought, by key. ``image_tokens`` are the codes of both images of an example, ``sources`` the number of
    different source files. ``leftovers`` are files of killed processes, or of one that is running.
    """

    folder: Path
    rows: int
    pairs: int
    rejected: Mapping[str, int]
    shards: int
    missing: Sequence[int]
    source_grids: Mapping[str, int]
    target_grids: Mapping[str, int]
    characters: Distribution
    words: Distribution
    thoughts: Mapping[str, Distribution]
    image_tokens: Distribution
    sources: int
    bytes: int
    leftovers: Sequence[str]
    manifest: Manifest

    def to_dict(self) -> dict[str, Any]:
        """As JSON-compatible values."""
        return {**asdict(self), "folder": str(self.folder)}


def summary(store: Store) -> Summary:
    """Count what the store holds. Raises InputError for a shard or a list of rejects that can't be read."""
    counts = _Counts()
    for table in store.tables(_COUNTED):
        counts.add(table)
    image_tokens = _distribution(counts.image_tokens)
    return Summary(
        folder=store.folder,
        rows=store.manifest.rows,
        pairs=image_tokens.count,
        rejected=_most_common(Counter(reject.kind for reject in store.rejects())),
        shards=len(store.shards),
        missing=store.missing,
        source_grids=_grid_names(counts.grids["source"]),
        target_grids=_grid_names(counts.grids["target"]),
        characters=_distribution(counts.characters),
        words=_distribution(counts.words),
        thoughts={key: _distribution(counts.thoughts[key]) for key in sorted(counts.thoughts)},
        image_tokens=image_tokens,
        sources=len(np.unique(np.concatenate([_NO_HASHES, *counts.hashes]))),
        bytes=sum(_sizes(store.folder)),
        leftovers=sorted(path.name for path in store.folder.iterdir() if is_partial(path)),
        manifest=store.manifest,
    )


def example_count(store: Store) -> int:
    """The number of examples in the shards that are there. Raises InputError for one that can't be read."""
    return sum(table.num_rows for table in store.tables(["row"]))


def sample_examples(store: Store, count: int, seed: int) -> list[TokenizedExample]:
    """``count`` random examples, or all if there are fewer, in the store's order; one shard is in memory at a time."""
    ends = np.cumsum([0, *(table.num_rows for table in store.tables(["row"]))])
    total = int(ends[-1])
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    found: list[TokenizedExample] = []
    for shard, start, end in zip(store.shards, ends[:-1], ends[1:], strict=True):
        within = chosen[(chosen >= start) & (chosen < end)] - start
        if len(within):
            found += examples_of(read_shard(shard).take(within))
    return found


def describe_missing_shards(store: Store) -> str:
    """A description of the missing shards; empty if there are none."""
    missing = store.missing
    if not missing:
        return ""
    verb = "shard {} is missing" if len(missing) == 1 else "shards {} are missing"
    return f"{verb.format(describe_numbers(missing))} (of {store.manifest.shards})"


def describe_numbers(numbers: Iterable[int]) -> str:
    """Ascending numbers as text, such as "3, 5 to 9 and 12"; after the first few, only their count."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    named = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:MAX_NAMED]]
    more = sum(last - first + 1 for first, last in runs[MAX_NAMED:])
    parts = [*named, f"{more} more"] if more else named
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def as_int64(column: pa.Array | pa.ChunkedArray) -> Numbers:
    """A column of integers as int64; null is 0."""
    return np.asarray(column.fill_null(0)).astype(np.int64)


class _Counts:
    """Counts over the tables that were added."""

    def __init__(self) -> None:
        self.grids: dict[str, Counter[tuple[int, int]]] = {"source": Counter(), "target": Counter()}
        self.characters: list[Numbers] = []
        self.words: list[Numbers] = []
        self.image_tokens: list[Numbers] = []
        self.thoughts: dict[str, list[Numbers]] = {}
        self.hashes: list[NDArray[np.bytes_]] = []

    def add(self, table: pa.Table) -> None:
        instructions = table["instruction"].combine_chunks()
        self.characters.append(as_int64(pc.utf8_length(instructions)))
        self.words.append(_word_counts(instructions))
        tokens = np.zeros(table.num_rows, np.int64)
        for side, counter in self.grids.items():
            grid = np.stack([as_int64(table[f"{side}_height"]), as_int64(table[f"{side}_width"])])
            kinds, counts = np.unique(grid, axis=1, return_counts=True)
            counter.update({(h, w): count for (h, w), count in zip(kinds.T.tolist(), counts.tolist(), strict=True)})
            tokens += grid.prod(axis=0)
        self.image_tokens.append(tokens)
        keys, texts = table["thoughts"].combine_chunks().cast(THOUGHTS_LIST).flatten().flatten()
        for key in pc.unique(keys).to_pylist():
            lengths = pc.utf8_length(texts.filter(pc.equal(keys, key)))
            self.thoughts.setdefault(key, []).append(as_int64(lengths))
        starts = pc.utf8_slice_codeunits(table["source_hash"].combine_chunks(), 0, _HASH_START)
        known = pc.unique(starts.filter(pc.not_equal(starts, ""))).cast(pa.binary())
        self.hashes.append(np.array(known.to_pylist(), _NO_HASHES.dtype))


def _word_counts(texts: pa.Array) -> Numbers:
    trimmed = pc.utf8_trim_whitespace(texts)
    words = as_int64(pc.list_value_length(pc.utf8_split_whitespace(trimmed)))
    words[np.asarray(pc.equal(trimmed, "").fill_null(True)).astype(bool)] = 0
    return words


def _distribution(parts: Sequence[Numbers]) -> Distribution:
    values = np.concatenate([np.zeros(0, np.int64), *parts])
    if not len(values):
        return Distribution(0, 0, 0.0, 0.0, 0)
    return Distribution(
        len(values), int(values.min()), float(np.median(values)), float(values.mean()), int(values.max())
    )


def _most_common(counter: Mapping[Any, int]) -> dict[Any, int]:
    return dict(sorted(counter.items(), key=lambda entry: (-entry[1], entry[0])))


def _grid_names(counter: Mapping[tuple[int, int], int]) -> dict[str, int]:
    return {f"{height}*{width}": count for (height, width), count in _most_common(counter).items()}


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process may just have renamed it
            yield path.stat().st_size


@dataclass(frozen=True)
class Problem:
    """What is wrong, and in which file or folder."""

    where: str
    what: str


def verify(store: Store, on_rows: Callable[[int], None] = lambda _rows: None) -> list[Problem]:
    """All problems of a store; neither a problem nor an unreadable file stops it.

    ``on_rows`` is called with the number of rows of each shard and each list of rejects once they are checked.
    """
    problems = list(_verify_names(store))
    numbers = _RowNumbers()
    unreadable = 0
    examples = rejects = 0
    for shard in store.shards:
        found, rows = _verify_shard(shard, store.manifest.codes)
        problems += [Problem(str(shard), what) for what in found]
        if rows is None:
            unreadable += 1
            continue
        numbers.add(shard, as_int64(rows.drop_null()))
        examples += len(rows)
        on_rows(len(rows))
    for path in _reject_files(store.folder):
        try:
            rejected = _rejected_rows(path)
        except InputError as error:
            problems.append(Problem(str(path), error.what))
            unreadable += 1
            continue
        numbers.add(path, rejected)
        rejects += len(rejected)
        on_rows(len(rejected))
    problems += numbers.repeated()
    planned, there = store.manifest.rows, examples + rejects
    if there > planned or (there < planned and not unreadable and not store.missing):
        what = f"{planned} rows were planned, but there are {examples} examples and {rejects} rejects"
        problems.append(Problem(str(store.folder / MANIFEST), what))
    return problems


def _verify_names(store: Store) -> Iterator[Problem]:
    """Missing and unexpected files."""
    if missing := describe_missing_shards(store):
        yield Problem(str(store.folder), missing)
    for shard in store.shards:
        number = shard_number(shard)
        if number >= store.manifest.shards:
            yield Problem(str(shard), f"unexpected: the store has {store.manifest.shards} shards, counted from 0")
        elif shard != shard_path(store.folder, number):
            yield Problem(str(shard), f"unexpected: shard {number} is called {shard_path(store.folder, number).name}")
    there = {shard.stem for shard in store.shards}
    for path in _reject_files(store.folder):
        if path.name.split(".")[0] not in there:
            yield Problem(str(path), "rejects of a shard that is not there")


def _verify_shard(shard: Path, codes: int) -> tuple[list[str], pa.ChunkedArray | None]:
    """A shard's problems, and its rows' numbers; None if they can't be read."""
    try:
        table = read_shard(shard)
        columns = pq.read_schema(shard)
    except InputError as error:
        return [error.what], None
    except (pa.ArrowException, OSError, ValueError) as error:
        return [f"this shard is damaged: {error}"], None
    missing_columns = [name for name in SCHEMA.names if name not in columns.names]
    found = [f"the column {name} is missing" for name in missing_columns]
    found += [f"the column {name} doesn't belong here" for name in columns.names if name not in SCHEMA.names]
    for field in SCHEMA:
        if field.name in columns.names and columns.field(field.name).type != field.type:
            found.append(f"the column {field.name} is of type {columns.field(field.name).type}, not {field.type}")
    if not missing_columns:
        found += _verify_rows(table, codes)
    return found, None if "row" in missing_columns else table["row"]


def _verify_rows(table: pa.Table, codes: int) -> Iterator[str]:
    for what, wrong in _row_checks(table, codes):
        rows = np.flatnonzero(wrong)
        if len(rows):
            named = table["row"].take(pa.array(rows[:MAX_NAMED])).to_pylist()
            names = ["(no number)" if row is None else str(row) for row in named]
            more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
            yield f"{what}: row{'s' if len(rows) > 1 else ''} {', '.join(names)}{more}"


def _row_checks(table: pa.Table, codes: int) -> Iterator[tuple[str, Mask]]:
    """A problem, and which rows of the table have it."""
    null = {name: _mask(table[name].is_null()) for name in SCHEMA.names}
    thoughts = table["thoughts"].combine_chunks().cast(THOUGHTS_LIST)
    texts, owners = thoughts.flatten().field("value"), np.asarray(pc.list_parent_indices(thoughts))
    null["thoughts"] |= _any_within(_mask(texts.is_null()), owners, table.num_rows)
    for side in ("source", "target"):
        column = table[side].combine_chunks()
        elements, owners = column.flatten(), np.asarray(pc.list_parent_indices(column))
        null[side] |= _any_within(_mask(elements.is_null()), owners, table.num_rows)
        heights, widths = (as_int64(table[f"{side}_{length}"]) for length in ("height", "width"))
        known = ~(null[side] | null[f"{side}_height"] | null[f"{side}_width"])
        empty = (heights == 0) | (widths == 0)
        yield f"the grid of the {side} is empty", known & empty
        wrong_count = as_int64(pc.list_value_length(column)) != heights * widths
        yield f"the codes of the {side} don't fill its grid", known & ~empty & wrong_count
        unknown = np.asarray(elements.fill_null(0)) >= codes
        what = f"codes of the {side} are {codes} or higher, which the codebook doesn't have"
        yield what, _any_within(unknown, owners, table.num_rows)
    for name, wrong in null.items():
        yield f"{name} has no value (null)", wrong
    yield "the instruction is empty", _mask(pc.equal(pc.utf8_trim_whitespace(table["instruction"]), ""))
    yield "the row's number is negative", _mask(pc.less(table["row"], 0))


def _reject_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _REJECTS.fullmatch(path.name))


def _rejected_rows(path: Path) -> Numbers:
    rejects = read_rejects(path.with_name(f"{path.name.split('.')[0]}.parquet"))
    return np.array([reject.row for reject in rejects], np.int64)


class _RowNumbers:
    """The numbers of all rows, to find duplicates."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.parts: list[Numbers] = []

    def add(self, file: Path, rows: Numbers) -> None:
        self.files.append(file)
        self.parts.append(rows)

    def repeated(self) -> Iterator[Problem]:
        """A problem for each two files that share rows, and for a file with duplicates; reported for the later file."""
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
            yield Problem(str(self.files[later]), f"{verb.format(describe_numbers(shared.tolist()))} {place}")


def _mask(column: pa.Array | pa.ChunkedArray) -> Mask:
    return np.asarray(column.fill_null(False)).astype(bool)


def _any_within(elements: Mask, owners: NDArray[Any], rows: int) -> Mask:
    """Which rows own an element that is true."""
    found = np.zeros(rows, bool)
    found[owners[elements]] = True
    return found
