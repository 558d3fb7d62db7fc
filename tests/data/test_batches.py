"""Rows from stores and from published data, laid out as training sequences of known length."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trainings import write_pairs

from earl_cli.data.batches import DatasetRows, load_rows
from earl_cli.data.published.store import export_published
from earl_cli.data.store import examples_of, open_store, write_shard
from earl_cli.errors import InputError
from earl_cli.models.bundle import open_base
from earl_cli.tokens.layout import SequenceLayout


@pytest.fixture(scope="module")
def layout(tiny_model_dir: Path) -> SequenceLayout:
    return open_base(str(tiny_model_dir)).layout


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "store", 5)


def sequences(rows: DatasetRows) -> list[list[int]]:
    return [rows.example(row).ids.tolist() for row in range(len(rows))]


def test_published_data_are_read_in_place(store: Path, layout: SequenceLayout, tmp_path: Path) -> None:
    expected = load_rows([store], layout, ["plan"])
    export_published(open_store(store), tmp_path / "published")
    with tarfile.open(tmp_path / "published.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "published", "deep/published")
    for place in (tmp_path / "published", tmp_path / "published" / "list" / "tokenized_datalist.json"):
        assert sequences(load_rows([place], layout, ["plan"])) == sequences(expected)
    found = load_rows([tmp_path / "published.tar.gz"], layout, ["plan"])
    assert sorted(sequences(found)) == sorted(sequences(expected))
    (tmp_path / "published" / "feature" / "0-3.pth").write_bytes(b"torn")
    damaged = load_rows([store, tmp_path / "published"], layout)
    assert (damaged.sizes, damaged.unreadable, damaged.names) == ((5, 4), (0, 1), ("store", "published"))


@pytest.mark.parametrize("keys", [(), ("plan",), ("plan", "gone")])
def test_lengths_are_those_of_the_sequences(store: Path, layout: SequenceLayout, keys: tuple[str, ...]) -> None:
    rows = load_rows([store, store], layout)
    rows = DatasetRows(rows.table, layout, keys, rows.names, rows.sizes, rows.unreadable)
    assert rows.lengths.tolist() == [len(ids) for ids in sequences(rows)]
    assert rows.thinking == (10 if keys else 0)


def test_thoughts_are_trained_as_published(layout: SequenceLayout, tmp_path: Path) -> None:
    """Values are stripped, and a key whose value is empty is there."""
    store = write_pairs(tmp_path / "store", 1)
    (example,) = examples_of(open_store(store).table())
    write_shard(store, 0, [replace(example, thoughts={"plan": "\n snow ", "objects": "", "boxes": "b"})], [])
    rows = load_rows([store], layout, ["plan", "objects", "boxes"])
    text = layout.text.decode([int(each) for each in rows.example(0).ids if each < layout.vocabulary.text_size])
    assert "<|start thinking|> plan: snow objects:  boxes: b<|end thinking|>" in text


def test_data_sets_are_concatenated(store: Path, layout: SequenceLayout, tmp_path: Path) -> None:
    other = write_pairs(tmp_path / "other", 3, seed=1)
    rows = load_rows([store, other], layout)
    assert [rows.id(row) for row in range(len(rows))] == [*(f"0-{i}" for i in range(5)), *(f"1-{i}" for i in range(3))]
    assert np.array_equal(rows.target(6), rows.source(6) + 1)
    assert rows.instruction(7) == "make it snowy"


def test_data_that_cant_be_trained_on_are_errors(store: Path, layout: SequenceLayout, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a codebook of 64 codes, the model one of 512"):
        load_rows([write_pairs(tmp_path / "other", 2, codes=64)], layout)
    with pytest.raises(InputError, match=r"no row has a chain of thought 'boxes' \(the CoT keys are plan\)"):
        load_rows([store], layout, ["boxes"])
    write_shard(store, 0, [], [])
    with pytest.raises(InputError, match="there are no examples"):
        load_rows([store], layout)
    (store / "shard-000000.parquet").unlink()
    with pytest.raises(InputError, match=r"incomplete: 1 of 1 shards are missing.*run the same earl tokenize again"):
        load_rows([store], layout)
