"""What a store is said to hold is what is in it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
from stores import CODES, REJECTED, ROWS, SHARDS, random_pair, write_store

from earl_cli.data.inspecting import Distribution, describe_numbers, example_count, sample_examples, summary
from earl_cli.data.store import examples_of, open_store, shard_path, write_shard
from earl_cli.errors import InputError


def spread(values: list[int]) -> Distribution:
    return Distribution(len(values), min(values), median(values), pytest.approx(mean(values)), max(values))


@pytest.mark.parametrize("seed", range(3))
def test_a_summary_equals_counts_row_by_row(tmp_path: Path, seed: int) -> None:
    store = write_store(tmp_path / "s", seed=seed)
    found = summary(store)
    examples = list(examples_of(store.table()))
    assert (found.rows, found.pairs, found.rejected) == (ROWS, ROWS - len(REJECTED), {"image": 1, "text": 1})
    assert (found.shards, found.missing, found.leftovers) == (SHARDS, [], [])
    for side, grids in (("source", found.source_grids), ("target", found.target_grids)):
        shapes = Counter("{}*{}".format(*getattr(example, side).shape) for example in examples)
        assert grids == shapes
        assert list(grids.values()) == sorted(shapes.values(), reverse=True)
    assert found.characters == spread([len(example.instruction) for example in examples])
    assert found.words == spread([len(example.instruction.split()) for example in examples])
    assert found.image_tokens == spread([example.source.size + example.target.size for example in examples])
    assert found.thoughts == {
        key: spread([len(example.thoughts[key]) for example in examples if key in example.thoughts])
        for key in ("boxes", "plan")
    }
    assert found.sources == len({example.source_hash for example in examples} - {""})
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert found.manifest == store.manifest


def test_the_summary_is_json(tmp_path: Path) -> None:
    document = json.loads(json.dumps(summary(write_store(tmp_path / "s")).to_dict()))
    assert document["folder"] == str(tmp_path / "s")
    assert document["manifest"]["origin"] == {"model": "a/model"}
    assert set(document["characters"]) == {"count", "minimum", "median", "mean", "maximum"}


def test_an_incomplete_store_lists_its_missing_shards(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", shards=[2])
    (tmp_path / "s/.shard-000000.parquet.ab.partial").write_bytes(b"half")
    found = summary(store)
    assert (found.pairs, found.rows, found.missing) == (6, ROWS, [0, 1, 3])
    assert found.leftovers == [".shard-000000.parquet.ab.partial"]


def test_a_store_without_examples_has_a_summary(tmp_path: Path) -> None:
    found = summary(write_store(tmp_path / "s", shards=[]))
    assert (found.pairs, found.sources, found.source_grids, found.thoughts) == (0, 0, {}, {})
    assert found.words == Distribution(0, 0, 0, 0, 0)
    rejected = write_store(tmp_path / "r", rejected=range(ROWS))
    assert (summary(rejected).pairs, summary(rejected).rejected) == (0, {"image": 10, "text": 10})
    assert sample_examples(rejected, 3, 0) == []


def test_a_sample_is_a_subset_of_the_examples(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s")
    for count in (1, 5, 18, 100):
        found = sample_examples(store, count, seed=1)
        rows = [example.row for example in found]
        assert len(rows) == min(count, 18)
        assert rows == sorted(set(rows))
        for example in found:
            expected = random_pair(example.row)
            assert np.array_equal(example.source, expected.source)
            assert np.array_equal(example.target, expected.target)
            assert (example.id, example.instruction, example.thoughts) == (
                expected.id,
                expected.instruction,
                expected.thoughts,
            )


def test_the_seed_chooses_the_sample(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s")
    chosen = {seed: tuple(example.row for example in sample_examples(store, 4, seed)) for seed in range(20)}
    assert chosen[3] == tuple(example.row for example in sample_examples(store, 4, 3))
    assert len(set(chosen.values())) > 10
    assert {row for rows in chosen.values() for row in rows} == set(range(ROWS)) - set(REJECTED)


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s")
    assert example_count(store) == 18
    shard_path(store.folder, 2).write_bytes(b"torn")
    for look in (summary, example_count, lambda damaged: sample_examples(damaged, 2, 0)):
        with pytest.raises(InputError, match=r"shard-000002\.parquet: this shard can't be read"):
            look(open_store(store.folder))


def test_grids_of_one_shape_in_other_shards_are_counted_together(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", shards=[])
    example = random_pair(0)
    for index in range(SHARDS):
        write_shard(store.folder, index, [example] * (index + 1), [])
    height, width = example.source.shape
    assert summary(open_store(store.folder)).source_grids == {f"{height}*{width}": 10}
    assert example.source.max() < CODES


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([], ""),
        ([4], "4"),
        ([4, 5], "4 to 5"),
        ([1, 3], "1 and 3"),
        ([0, 2, 3, 4, 9], "0, 2 to 4 and 9"),
        ([0, 2, 4, 6, 8, 10, 11, 12], "0, 2, 4, 6, 8 and 3 more"),
    ],
)
def test_numbers_are_described_as_ranges(numbers: list[int], words: str) -> None:
    assert describe_numbers(numbers) == words
