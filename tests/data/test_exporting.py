"""What is exported reads back, by the libraries that people would read it with, as what is in the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from stores import PER_SHARD, REJECTED, ROWS, SHARDS, write_store

from earl_cli.data.merging import export_jsonl, export_parquet
from earl_cli.data.store import Store, TokenizedExample, examples_of, open_store, shard_path, write_shard
from earl_cli.errors import InputError

Export = Callable[[Store, Path, Callable[[int], None]], None]
BOTH = pytest.mark.parametrize("export", [export_parquet, export_jsonl])


def test_parquet_loads_with_the_datasets_library(tmp_path: Path) -> None:
    from datasets import load_dataset

    store = write_store(tmp_path / "s")
    export_parquet(store, tmp_path / "rows.parquet", lambda _rows: None)
    files = str(tmp_path / "rows.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == store.table().column_names
    for example, row in zip(examples_of(store.table()), rows, strict=True):
        for side in ("source", "target"):
            codes = np.array(row[side]).reshape(row[f"{side}_height"], row[f"{side}_width"])
            assert np.array_equal(codes, getattr(example, side))
        assert {thought["key"]: thought["value"] for thought in row["thoughts"]} == example.thoughts
        assert [row[name] for name in ("row", "id", "instruction", "source_hash")] == [
            example.row,
            example.id,
            example.instruction,
            example.source_hash,
        ]


def test_a_row_group_is_a_shard(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", rejected=range(PER_SHARD, 2 * PER_SHARD))
    export_parquet(store, tmp_path / "rows.parquet", lambda _rows: None)
    file = pq.ParquetFile(tmp_path / "rows.parquet")
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [table.num_rows for table in store.tables() if table.num_rows] == [6, 6, 2]


def test_json_lines_hold_everything(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s")
    export_jsonl(store, tmp_path / "rows.jsonl", lambda _rows: None)
    lines = (tmp_path / "rows.jsonl").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    for example, line in zip(examples_of(store.table()), lines, strict=True):
        assert json.loads(line) == {
            "row": example.row,
            "id": example.id,
            "instruction": example.instruction,
            "source": example.source.tolist(),
            "target": example.target.tolist(),
            "thoughts": example.thoughts,
            "source_hash": example.source_hash,
        }


def test_an_exported_line_has_no_line_breaks(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", numbers=[0], shards=[], rejected=[])
    text = 'a "quote"\n\r\u2028\u2029\0\x1f ünd \U0001f600'
    codes = np.array([[0, 1, 65535]], np.uint16)
    write_shard(store.folder, 0, [TokenizedExample(0, text, text, codes, codes.T, {text: text}, "")], [])
    export_jsonl(open_store(store.folder), tmp_path / "rows.jsonl", lambda _rows: None)
    (line,) = (tmp_path / "rows.jsonl").open(encoding="utf-8", newline="\n")
    row: dict[str, Any] = json.loads(line)
    assert (row["id"], row["instruction"], row["thoughts"]) == (text, text, {text: text})
    assert (row["source"], row["target"]) == ([[0, 1, 65535]], [[0], [1], [65535]])


@BOTH
def test_exports_report_rows_and_create_folders(tmp_path: Path, export: Export) -> None:
    reported: list[int] = []
    export(write_store(tmp_path / "s"), tmp_path / "new/deep/rows", reported.append)
    assert sum(reported) == ROWS - len(REJECTED)
    assert len(reported) == SHARDS
    assert [path.name for path in (tmp_path / "new/deep").iterdir()] == ["rows"]


@BOTH
def test_an_interrupted_export_leaves_what_was_there(tmp_path: Path, export: Export) -> None:
    def stop(_rows: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "rows").write_text("an earlier export")
    (tmp_path / ".rows.0123.partial").write_text("left by a killed one")
    with pytest.raises(KeyboardInterrupt):
        export(write_store(tmp_path / "s"), tmp_path / "rows", stop)
    assert (tmp_path / "rows").read_text() == "an earlier export"
    assert {path.name for path in tmp_path.iterdir()} == {"s", "rows"}


@BOTH
def test_a_damaged_shard_is_named_and_nothing_written(tmp_path: Path, export: Export) -> None:
    store = write_store(tmp_path / "s")
    shard_path(store.folder, 2).write_bytes(b"torn")
    with pytest.raises(InputError, match=r"shard-000002\.parquet: this shard can't be read"):
        export(store, tmp_path / "rows", lambda _rows: None)
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


@BOTH
def test_an_export_always_has_the_same_bytes(tmp_path: Path, export: Export) -> None:
    store = write_store(tmp_path / "s")
    for name in ("a", "b"):
        export(store, tmp_path / name, lambda _rows: None)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
