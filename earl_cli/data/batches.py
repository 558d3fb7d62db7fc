"""From stores to training batches: every row is laid out by `tokens.layout`, every text is tokenized once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from earl_cli.data.store import Store, check_codebook
from earl_cli.errors import InputError
from earl_cli.tokens.layout import Example, Layout, thoughts_text

IGNORED = -100


@dataclass(frozen=True, eq=False)
class ExampleData(Dataset[Example]):
    """The rows of some stores as training sequences, in the order of ``rows`` (indices into all rows together)."""

    table: pa.Table
    layout: Layout
    thought_keys: tuple[str, ...]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        thoughts = thoughts_text(dict(self._column("thoughts")[row].as_py()), self.thought_keys)
        return self.layout.example(
            self._codes("source", row),
            self._column("instruction")[row].as_py(),
            self._codes("target", row),
            thoughts or None,
        )

    def id(self, index: int) -> str:
        return str(self._column("id")[self.rows[index]].as_py())

    def _codes(self, name: str, row: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
        height, width = (self._column(f"{name}_{side}")[row].as_py() for side in ("height", "width"))
        return np.asarray(self._column(name)[row].values).reshape(height, width)

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, pa.ChunkedArray]:
        return {name: self.table.column(name) for name in self.table.column_names}


def example_data(stores: Sequence[Store], layout: Layout, thought_keys: Sequence[str] = ()) -> ExampleData:
    """All rows of the stores. Raises InputError for an empty, unfinished or foreign store."""
    for store in stores:
        check_codebook(store, layout.vocabulary.codes)
        if not store.complete:
            raise InputError(
                "this store is not finished", where=str(store.folder), hint="run the same earl tokenize again"
            )
    table = pa.concat_tables([store.table() for store in stores]).combine_chunks()
    if table.num_rows == 0:
        places = ", ".join(str(store.folder) for store in stores)
        raise InputError("there is not a single pair to train on", where=places)
    return ExampleData(table, layout, tuple(thought_keys), range(table.num_rows))


def collate(examples: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """A batch: ``input_ids`` and ``labels``, both int64[B, longest].

    Padding stands on the right: under causal attention no token sees it, so no mask is needed and positions count the
    real tokens. Labels are the ids themselves from ``loss_from`` on, and -100 before and on the padding.
    """
    longest = max(len(example.ids) for example in examples)
    ids = np.full((len(examples), longest), pad, dtype=np.int64)
    labels = np.full((len(examples), longest), IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        labels[row, example.loss_from : len(example.ids)] = example.ids[example.loss_from :]
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
