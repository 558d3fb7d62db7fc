"""Training batches from token stores, mixed in given proportions; `tokens.layout` makes the sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from earl_cli.data.published.files import is_published
from earl_cli.data.published.store import open_published, published_table
from earl_cli.data.store import check_codebook, open_store
from earl_cli.errors import InputError, UsageError
from earl_cli.tokens.layout import Example, Grid, SequenceLayout, thoughts_text

IGNORE_INDEX = -100


@dataclass(frozen=True, eq=False)
class DatasetRows:
    """The rows of several data sets one after another; ``names`` and ``sizes`` are those of the sets.

    ``unreadable`` counts the files of each published set that were left out.
    """

    table: pa.Table
    layout: SequenceLayout
    cot_keys: tuple[str, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    unreadable: tuple[int, ...]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def example(self, row: int) -> Example:
        """The training sequence of a row."""
        source, target = (self._codes(name, row) for name in ("source", "target"))
        return self.layout.example(source, self._value("instruction", row), target, self._thoughts(row))

    def id(self, row: int) -> str:
        return str(self._value("id", row))

    def source(self, row: int) -> NDArray[np.uint16]:
        return self._codes("source", row)

    def target(self, row: int) -> NDArray[np.uint16]:
        return self._codes("target", row)

    def instruction(self, row: int) -> str:
        return str(self._value("instruction", row))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row's training sequence, int64[n], computed without building it."""
        texts: dict[str, int] = {}
        grids: dict[tuple[int, int], int] = {}
        sides = [self.table.column(name).to_pylist() for name in SIDES]
        found = np.empty(len(self), dtype=np.int64)
        for row, (instruction, *grid) in enumerate(
            zip(self.table.column("instruction").to_pylist(), *sides, strict=True)
        ):
            if instruction not in texts:
                texts[instruction] = len(self.layout.text.encode(instruction))
            for side in ((grid[0], grid[1]), (grid[2], grid[3])):
                if side not in grids:
                    grids[side] = len(self.layout.opening(Grid(*side))) + Grid(*side).tokens
            found[row] = 2 + texts[instruction] + grids[grid[0], grid[1]] + grids[grid[2], grid[3]]
            if self.cot_keys:
                thoughts = self._thoughts(row)
                found[row] += self.layout.thinking_length(thoughts) if thoughts else 0
        return found

    @cached_property
    def thinking(self) -> int:
        """The number of rows with a chain of thought under the keys."""
        return sum(self._thoughts(row) is not None for row in range(len(self))) if self.cot_keys else 0

    def _thoughts(self, row: int) -> str | None:
        return thoughts_text(dict(self._value("thoughts", row)), self.cot_keys) or None if self.cot_keys else None

    def _codes(self, name: str, row: int) -> NDArray[np.uint16]:
        height, width = (self._value(f"{name}_{side}", row) for side in ("height", "width"))
        return np.asarray(self._columns[name][row].values).reshape(height, width)

    def _value(self, name: str, row: int) -> Any:
        return self._columns[name][row].as_py()

    @cached_property
    def _columns(self) -> dict[str, pa.ChunkedArray]:
        return {name: self.table.column(name) for name in self.table.column_names}


SIDES = ("source_height", "source_width", "target_height", "target_width")


@dataclass(frozen=True, eq=False)
class ExampleData(Dataset[tuple[str, Example]]):
    """Training sequences with their ids; ``order`` int64[n] are indices into ``rows``."""

    rows: DatasetRows
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[str, Example]:
        row = int(self.order[index])
        return self.rows.id(row), self.rows.example(row)


def load_rows(paths: Sequence[Path], layout: SequenceLayout, cot_keys: Sequence[str] = ()) -> DatasetRows:
    """All rows of token stores and of published folders or tarballs, which are read in path.

    Raises InputError for an empty or incomplete store, codes of another codebook, and CoT keys that no row has.
    """
    tables, unreadable = zip(*(_table(path, layout.vocabulary.codes) for path in paths), strict=True)
    for path, table in zip(paths, tables, strict=True):
        if table.num_rows == 0:
            raise InputError("there are no examples in this data", where=str(path))
    table = pa.concat_tables(tables).combine_chunks()
    _check_keys(table, cot_keys, ", ".join(map(str, paths)))
    names = tuple(_name(path.resolve()) for path in paths)
    return DatasetRows(table, layout, tuple(cot_keys), names, tuple(each.num_rows for each in tables), unreadable)


def _name(path: Path) -> str:
    """The last part of a path, with its parent if it is the name of a split."""
    return f"{path.parent.name}/{path.name}" if path.name in ("train", "validation") else path.name


def _table(path: Path, codes: int) -> tuple[pa.Table, int]:
    """The rows of one data set, and the number of its files that can't be read."""
    if is_published(path):
        table, rejects = published_table(open_published(path), codes)
        return table, len(rejects)
    store = open_store(path)
    check_codebook(store, codes)
    if not store.complete:
        what = f"this store is incomplete: {len(store.missing)} of {store.manifest.shards} shards are missing"
        raise InputError(what, where=str(path), hint="run the same earl tokenize again")
    return store.table(), 0


def _check_keys(table: pa.Table, keys: Sequence[str], where: str) -> None:
    if not keys:
        return
    available = {key for thoughts in table.column("thoughts").to_pylist() for key, _ in thoughts}
    for key in keys:
        if key not in available:
            listed = ", ".join(sorted(available)) or "none"
            raise InputError(f"no row has a chain of thought {key!r}", where=where, hint=f"the CoT keys are {listed}")


def collate(examples: Sequence[tuple[str, Example]], pad: int) -> dict[str, Any]:
    """A batch: ``input_ids`` and ``labels``, int64[B, longest], and the rows' ``ids``.

    Padding is on the right: under causal attention no token sees it, so no mask is needed and positions count the real
    tokens. Labels are the ids from ``loss_from`` on, and -100 before that and on the padding.
    """
    longest = max(len(example.ids) for _, example in examples)
    ids = np.full((len(examples), longest), pad, dtype=np.int64)
    labels = np.full((len(examples), longest), IGNORE_INDEX, dtype=np.int64)
    for row, (_, example) in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        labels[row, example.loss_from : len(example.ids)] = example.ids[example.loss_from :]
    names = [name for name, _ in examples]
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels), "ids": names}


@dataclass(frozen=True, eq=False)
class Mixture:
    """``rows`` int64[n] are indices into the rows of all sets one after another, in the order of an epoch.

    ``counts`` are the rows from each set, ``coefficients`` how often each set occurs in an epoch.
    """

    rows: NDArray[np.int64]
    counts: tuple[int, ...]
    coefficients: tuple[float, ...]


def mix(sizes: Sequence[int], coefficients: Sequence[float] | None, seed: int) -> Mixture:
    """One epoch of sets with ``sizes`` rows.

    A set with the coefficient c contributes int(c) whole copies and a random sample of int(n · frac(c)) of its rows.
    Without coefficients every set is up-sampled to the largest, c = max n / n. Then all rows are shuffled. Raises
    UsageError if nothing is left.
    """
    generator = np.random.default_rng(seed)
    largest = max(sizes)
    chosen = tuple(coefficients) if coefficients is not None else tuple(largest / size for size in sizes)
    parts = []
    for start, size, coefficient in zip(np.cumsum([0, *sizes]), sizes, chosen, strict=False):
        whole = int(coefficient)
        rest = int(size * (coefficient - whole)) if coefficients is not None else largest - whole * size
        sample = generator.choice(size, rest, replace=False)
        parts.append(start + np.concatenate([*[np.arange(size)] * whole, sample]).astype(np.int64))
    rows = generator.permutation(np.concatenate(parts))
    if len(rows) == 0:
        raise UsageError("the coefficients leave no example", where="coefficients", hint="raise them")
    return Mixture(rows, tuple(map(len, parts)), chosen)


def sample_rows(sizes: Sequence[int], budget: int, seed: int) -> Mixture:
    """For validation: an equal share of ``budget`` rows of each set, at least one, sampled at random, in order.

    The same seed gives the same rows; those of a set don't depend on the other sets.
    """
    share = max(1, budget // len(sizes))
    starts = np.cumsum([0, *sizes])
    parts = []
    for start, size in zip(starts, sizes, strict=False):
        sampled = np.random.default_rng(seed).choice(size, min(size, share), replace=False)
        parts.append(start + np.sort(sampled).astype(np.int64))
    counts = tuple(map(len, parts))
    return Mixture(
        np.concatenate(parts), counts, tuple(count / size for count, size in zip(counts, sizes, strict=True))
    )
