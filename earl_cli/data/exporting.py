"""A token store in one file for other programs: Parquet, or JSON lines. Shard by shard, so that memory stays flat."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from earl_cli.data.inspecting import KEYS_AND_TEXTS
from earl_cli.data.store import SCHEMA, Store, TokenizedPair, pairs_of
from earl_cli.files import remove_asides, whole_file

ROWS_AT_ONCE = 256
_THOUGHTS = SCHEMA.get_field_index("thoughts")
PARQUET_SCHEMA = SCHEMA.set(_THOUGHTS, pa.field("thoughts", KEYS_AND_TEXTS))
"""As a shard's, but the chain of thought is a list of pairs: the datasets library knows no maps."""


def export_parquet(store: Store, output: Path, on_rows: Callable[[int], None]) -> None:
    """All rows as one Parquet file of `PARQUET_SCHEMA`, a row group for each shard.

    ``datasets.load_dataset("parquet", data_files=...)`` reads it. ``on_rows`` is told of every shard's rows. Raises
    InputError for a shard that can't be read; the file is there whole or not at all.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_asides(output)
    with whole_file(output) as aside, pq.ParquetWriter(aside, PARQUET_SCHEMA, compression="zstd") as writer:
        for table in store.tables():
            if table.num_rows:
                thoughts = table["thoughts"].cast(KEYS_AND_TEXTS)
                rows = table.set_column(_THOUGHTS, PARQUET_SCHEMA.field("thoughts"), thoughts)
                writer.write_table(rows, row_group_size=table.num_rows)
            on_rows(table.num_rows)


def export_jsonl(store: Store, output: Path, on_rows: Callable[[int], None]) -> None:
    """All rows as JSON, one object a line: row, id, instruction, source, target, thoughts, source_hash.

    ``source`` and ``target`` are codes as lists of rows, [h][w]. ``on_rows`` is told of rows as they are written.
    Raises InputError for a shard that can't be read and for codes that don't fill their grid; the file is there whole
    or not at all.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_asides(output)
    with whole_file(output) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for table in store.tables():
            for part in table.to_batches(max_chunksize=ROWS_AT_ONCE):
                file.writelines(_line(pair) for pair in pairs_of(pa.Table.from_batches([part])))
                on_rows(part.num_rows)


def _line(pair: TokenizedPair) -> str:
    content = {
        "row": pair.row,
        "id": pair.id,
        "instruction": pair.instruction,
        "source": pair.source.tolist(),
        "target": pair.target.tolist(),
        "thoughts": dict(pair.thoughts),
        "source_hash": pair.source_hash,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
