"""A data set in the memory-mapped Arrow files of the package `datasets`: saved to disk, or in its cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from earl_cli.data.sources.base import ALL_SPLITS, BadRowError, CellKind, Row, choose_split
from earl_cli.data.sources.parquet import arrow_columns, to_row, top_level_columns
from earl_cli.errors import InputError, UsageError
from earl_cli.files import loads

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, eq=False)
class SavedSource:
    """The rows of one split; ``dataset`` returns Arrow tables, so that no image is decoded here."""

    name: str
    dataset: Dataset
    fingerprint: str
    base: str | None

    @property
    def columns(self) -> Mapping[str, CellKind]:
        return arrow_columns(self.dataset.features.arrow_schema)

    @property
    def bounds(self) -> NDArray[np.int64]:
        return np.arange(len(self.dataset) + 1)

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """As `Source.read`."""
        for number in rows:
            where = f"{self.name}, row {number + 1}"
            try:
                table = self.dataset[int(number) : int(number) + 1]
                cells = table.select(top_level_columns(columns, table.column_names))
            except (OSError, ValueError, IndexError, pa.ArrowException) as error:
                yield BadRowError("data", f"the row can't be read: {error}", where=where)
            else:
                yield to_row(cells, columns, int(number), where)


def saved_source(name: str, dataset: Dataset, base: str | None) -> SavedSource:
    """A source of a `datasets` data set. Raises InputError if it is empty."""
    if len(dataset) == 0:
        raise InputError("this data set has no rows", where=name)
    return SavedSource(name, dataset.with_format("arrow"), str(dataset._fingerprint), base)


def saved_splits(folder: Path) -> dict[str, Path]:
    """The folders that `datasets` saved here, by split; a data set without splits is called ""."""
    if (folder / "state.json").is_file():
        return {"": folder}
    listed = folder / "dataset_dict.json"
    if listed.is_file():
        try:
            return {str(name): folder / str(name) for name in loads(listed.read_bytes())["splits"]}
        except (ValueError, KeyError, TypeError):
            raise InputError("this list of splits is damaged", where=str(listed)) from None
    return {}


def saved_below(folder: Path) -> dict[str, Path]:
    """Data sets that were saved in folders side by side, as `saved_splits`."""
    parts = (path.parent for path in sorted(folder.glob("*/state.json")))
    return {path.name: path for path in parts if (path / "dataset_info.json").is_file()}


def open_saved(folder: Path, splits: Mapping[str, Path], split: str | None) -> SavedSource:
    """The rows of a split, or of all. Raises InputError if one is damaged, UsageError if it is missing or ambiguous."""
    from datasets import concatenate_datasets, load_from_disk

    alone = "" in splits
    chosen = list(splits) if alone or split == ALL_SPLITS else [choose_split(list(splits), split, str(folder))]
    parts: list[Dataset] = []
    for name in chosen:
        try:
            parts.append(load_from_disk(str(splits[name])))
        except Exception as error:  # whatever a damaged folder trips it into
            raise InputError(f"this saved data set can't be read: {error}", where=str(splits[name])) from None
    if alone and split not in (None, ALL_SPLITS, str(parts[0].split)):
        raise UsageError(f"there is no split {split!r}: this data set has none", where=str(folder))
    return saved_source(folder.resolve().name, concatenate_datasets(parts) if len(parts) > 1 else parts[0], str(folder))
