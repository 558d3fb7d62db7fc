"""A data set in the memory-mapped Arrow files of the package `datasets`: saved to disk, or in its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from earl_cli.data.sources import BadRowError, Row
from earl_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, eq=False)
class SavedSource:
    """The rows of one split; ``dataset`` gives Arrow tables, so that no picture is decoded here."""

    name: str
    dataset: Dataset
    fingerprint: str
    base: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.dataset.column_names)

    @property
    def bounds(self) -> NDArray[np.int64]:
        return np.arange(len(self.dataset) + 1)

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """As `Source.read`."""
        for number in rows:
            where = f"{self.name}, row {number + 1}"
            try:
                values = self.dataset[int(number) : int(number) + 1].select(list(columns)).to_pylist()[0]
            except (OSError, ValueError, IndexError) as error:
                yield BadRowError("data", f"the row can't be read: {error}", where=where)
            else:
                yield Row(int(number), where, values)


def saved_source(name: str, dataset: Dataset, base: str | None) -> SavedSource:
    """Raises InputError if the split is empty."""
    if len(dataset) == 0:
        raise InputError("this data set has no rows", where=name)
    return SavedSource(name, dataset.with_format("arrow"), str(dataset._fingerprint), base)


def is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote this folder with save_to_disk."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def open_saved(folder: Path, split: str | None) -> SavedSource:
    """Raises InputError if it is damaged, UsageError if it has several splits and none is named."""
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged folder trips it into
        raise InputError(f"this saved data set can't be read: {error}", where=str(folder)) from None
    if isinstance(found, DatasetDict):
        if split not in found:
            listed = ", ".join(found)
            what = f"there is no split {split!r}" if split else "the data set has several splits"
            raise UsageError(what, where=str(folder), hint=f"--split is one of {listed}")
        found = found[split]
    return saved_source(folder.resolve().name, found, str(folder))
