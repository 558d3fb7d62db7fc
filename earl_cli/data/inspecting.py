"""What a token store holds: counted shard by shard and in whole columns, so that memory stays flat.

What is kept of each row is a few numbers; a million rows take seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from earl_cli.data.store import Manifest, Store, TokenizedPair, pairs_of, read_shard
from earl_cli.files import is_aside

Numbers: TypeAlias = NDArray[np.int64]

KEYS_AND_TEXTS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
"""The chain of thought of a row as a list, for what can't work with maps."""
NAMED = 5
"""Rows or shards that a message names before it only counts them."""
_HASH_START = 16
_NO_HASHES = np.empty(0, f"S{_HASH_START}")
_COUNTED = ("instruction", "source_height", "source_width", "target_height", "target_width", "thoughts", "source_hash")


@dataclass(frozen=True)
class Spread:
    """How numbers are spread; all are 0 where ``count`` is."""

    count: int
    minimum: int
    median: float
    mean: float
    maximum: int


@dataclass(frozen=True)
class Summary:
    """What a store holds.

    ``rows`` were planned, ``pairs`` are there, ``rejected`` were left out, by kind. Grids are "height*width" in codes,
    the commonest first. ``characters`` and ``words`` are an instruction's. ``thoughts`` says for each key of the chain
    of thought how many characters its texts have. ``image_tokens`` counts the codes of both pictures of a pair,
    ``sources`` the different source files. ``leftovers`` are files of a killed process, or of one that is at work.
    """

    folder: Path
    rows: int
    pairs: int
    rejected: Mapping[str, int]
    shards: int
    missing: Sequence[int]
    source_grids: Mapping[str, int]
    target_grids: Mapping[str, int]
    characters: Spread
    words: Spread
    thoughts: Mapping[str, Spread]
    image_tokens: Spread
    sources: int
    bytes: int
    leftovers: Sequence[str]
    manifest: Manifest

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return {**asdict(self), "folder": str(self.folder)}


def summary(store: Store) -> Summary:
    """Count what the store holds. Raises InputError for a shard or a list of rejects that can't be read."""
    counts = _Counts()
    for table in store.tables(_COUNTED):
        counts.add(table)
    image_tokens = _spread(counts.image_tokens)
    return Summary(
        folder=store.folder,
        rows=store.manifest.rows,
        pairs=image_tokens.count,
        rejected=_by_count(Counter(reject.kind for reject in store.rejects())),
        shards=len(store.shards),
        missing=store.missing,
        source_grids=_grid_names(counts.grids["source"]),
        target_grids=_grid_names(counts.grids["target"]),
        characters=_spread(counts.characters),
        words=_spread(counts.words),
        thoughts={key: _spread(counts.thoughts[key]) for key in sorted(counts.thoughts)},
        image_tokens=image_tokens,
        sources=len(np.unique(np.concatenate([_NO_HASHES, *counts.hashes]))),
        bytes=sum(_sizes(store.folder)),
        leftovers=sorted(path.name for path in store.folder.iterdir() if is_aside(path)),
        manifest=store.manifest,
    )


def pair_count(store: Store) -> int:
    """How many pairs are in the shards that are there. Raises InputError for one that can't be read."""
    return sum(table.num_rows for table in store.tables(["row"]))


def sample(store: Store, count: int, seed: int) -> list[TokenizedPair]:
    """``count`` pairs by chance (all, if there are no more), in the store's order; one shard is in memory at a time."""
    ends = np.cumsum([0, *(table.num_rows for table in store.tables(["row"]))])
    total = int(ends[-1])
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    found: list[TokenizedPair] = []
    for shard, start, end in zip(store.shards, ends[:-1], ends[1:], strict=True):
        within = chosen[(chosen >= start) & (chosen < end)] - start
        if len(within):
            found += pairs_of(read_shard(shard).take(within))
    return found


def missing_shards(store: Store) -> str:
    """Which shards are missing, in words; empty if none is."""
    missing = store.missing
    if not missing:
        return ""
    verb = "shard {} is missing" if len(missing) == 1 else "shards {} are missing"
    return f"{verb.format(spans(missing))} (of {store.manifest.shards})"


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers in words: 3, 5 to 9 and 12; after the first few only how many more there are."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    named = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:NAMED]]
    more = sum(last - first + 1 for first, last in runs[NAMED:])
    parts = [*named, f"{more} more"] if more else named
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def numbers_of(column: pa.Array | pa.ChunkedArray) -> Numbers:
    """A column of whole numbers as int64; null is 0."""
    return np.asarray(column.fill_null(0)).astype(np.int64)


class _Counts:
    """What is kept of the tables that went by."""

    def __init__(self) -> None:
        self.grids: dict[str, Counter[tuple[int, int]]] = {"source": Counter(), "target": Counter()}
        self.characters: list[Numbers] = []
        self.words: list[Numbers] = []
        self.image_tokens: list[Numbers] = []
        self.thoughts: dict[str, list[Numbers]] = {}
        self.hashes: list[NDArray[np.bytes_]] = []

    def add(self, table: pa.Table) -> None:
        instructions = table["instruction"].combine_chunks()
        self.characters.append(numbers_of(pc.utf8_length(instructions)))
        self.words.append(_word_counts(instructions))
        tokens = np.zeros(table.num_rows, np.int64)
        for side, counter in self.grids.items():
            grid = np.stack([numbers_of(table[f"{side}_height"]), numbers_of(table[f"{side}_width"])])
            kinds, counts = np.unique(grid, axis=1, return_counts=True)
            counter.update({(h, w): count for (h, w), count in zip(kinds.T.tolist(), counts.tolist(), strict=True)})
            tokens += grid.prod(axis=0)
        self.image_tokens.append(tokens)
        keys, texts = table["thoughts"].combine_chunks().cast(KEYS_AND_TEXTS).flatten().flatten()
        for key in pc.unique(keys).to_pylist():
            lengths = pc.utf8_length(texts.filter(pc.equal(keys, key)))
            self.thoughts.setdefault(key, []).append(numbers_of(lengths))
        starts = pc.utf8_slice_codeunits(table["source_hash"].combine_chunks(), 0, _HASH_START)
        known = pc.unique(starts.filter(pc.not_equal(starts, ""))).cast(pa.binary())
        self.hashes.append(np.array(known.to_pylist(), _NO_HASHES.dtype))


def _word_counts(texts: pa.Array) -> Numbers:
    trimmed = pc.utf8_trim_whitespace(texts)
    words = numbers_of(pc.list_value_length(pc.utf8_split_whitespace(trimmed)))
    words[np.asarray(pc.equal(trimmed, "").fill_null(True)).astype(bool)] = 0
    return words


def _spread(parts: Sequence[Numbers]) -> Spread:
    values = np.concatenate([np.zeros(0, np.int64), *parts])
    if not len(values):
        return Spread(0, 0, 0.0, 0.0, 0)
    return Spread(len(values), int(values.min()), float(np.median(values)), float(values.mean()), int(values.max()))


def _by_count(counter: Mapping[Any, int]) -> dict[Any, int]:
    return dict(sorted(counter.items(), key=lambda entry: (-entry[1], entry[0])))


def _grid_names(counter: Mapping[tuple[int, int], int]) -> dict[str, int]:
    return {f"{height}*{width}": count for (height, width), count in _by_count(counter).items()}


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process may just have renamed it
            yield path.stat().st_size
