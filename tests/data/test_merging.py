"""Merged stores hold every row once, and parts of a pass become what one machine would have made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import REJECTED, ROWS, SHARDS, contents, random_pair, write_store

from earl_cli.data.inspecting import verify
from earl_cli.data.merging import merge, planned_rows
from earl_cli.data.store import SCHEMA, Store, create_or_resume, examples_of, shard_path, write_shard
from earl_cli.errors import EarlError, InputError, UsageError


def quietly(_rows: int) -> None:
    pass


class StoppedError(Exception):
    pass


def stop_after(calls: int) -> Callable[[int], None]:
    reported: list[int] = []

    def on_rows(rows: int) -> None:
        reported.append(rows)
        if len(reported) == calls:
            raise StoppedError

    return on_rows


def two_sets(tmp_path: Path) -> list[Store]:
    return [write_store(tmp_path / "a", seed=1), write_store(tmp_path / "b", seed=2, rejected=[0, 19])]


# -- parts of one pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("division", [[[0, 1], [2, 3]], [[3], [0, 2], [1]], [[0, 1, 2], [1, 2, 3]], [range(SHARDS)]])
def test_parts_become_the_undivided_store(tmp_path: Path, division: list[list[int]]) -> None:
    whole = write_store(tmp_path / "whole")
    parts = [write_store(tmp_path / f"part {i}", shards=shards) for i, shards in enumerate(division)]
    reported: list[int] = []
    merged = merge(parts, tmp_path / "merged", reported.append)
    assert merged.complete
    assert contents(merged.folder) == contents(whole.folder)
    assert sum(reported) == planned_rows(parts) == ROWS


def test_parts_may_come_later(tmp_path: Path) -> None:
    early, late = (write_store(tmp_path / name, shards=shards) for name, shards in (("1", [0, 2]), ("2", [1, 3])))
    assert merge([early], tmp_path / "merged", quietly).missing == [1, 3]
    assert merge([late], tmp_path / "merged", quietly).complete
    assert contents(tmp_path / "merged") == contents(write_store(tmp_path / "whole").folder)


def test_a_merge_may_continue_into_one_of_its_parts(tmp_path: Path) -> None:
    mine, other = (write_store(tmp_path / name, shards=shards) for name, shards in (("1", [0, 2]), ("2", [1, 3])))
    assert merge([mine, other], mine.folder, quietly).complete
    assert contents(mine.folder) == contents(write_store(tmp_path / "whole").folder)


def test_the_origin_isnt_compared_and_the_first_is_kept(tmp_path: Path) -> None:
    parts = [write_store(tmp_path / str(i), shards=[i], origin={"machine": i}) for i in range(2)]
    merged = merge(parts, tmp_path / "merged", quietly)
    assert (merged.manifest.origin, merged.missing) == ({"machine": 0}, [2, 3])


# -- different data ----------------------------------------------------------------------------------------------------


def test_different_data_keep_every_row_once(tmp_path: Path) -> None:
    stores = two_sets(tmp_path)
    reported: list[int] = []
    merged = merge(stores, tmp_path / "merged", reported.append)
    assert verify(merged) == []
    assert sum(reported) == planned_rows(stores) == 2 * ROWS
    expected = [
        replace(example, row=example.row + ROWS * i) for i in range(2) for example in examples_of(stores[i].table())
    ]
    found = list(examples_of(merged.table()))
    assert len(found) == len(expected)
    for example, other in zip(found, expected, strict=True):
        assert (example.row, example.id, example.instruction) == (other.row, other.id, other.instruction)
        assert (example.thoughts, example.source_hash) == (other.thoughts, other.source_hash)
        assert np.array_equal(example.source, other.source)
        assert np.array_equal(example.target, other.target)
    rejects = [(reject.row, reject.id) for reject in merged.rejects()]
    assert rejects == [(row, f"p/1-{row}") for row in REJECTED] + [(ROWS + row, f"p/2-{row}") for row in (0, 19)]


def test_the_manifest_tells_of_all_parts(tmp_path: Path) -> None:
    stores = [*two_sets(tmp_path), write_store(tmp_path / "c", seed=3, dataset="third", columns={"source": "before"})]
    manifest = merge(stores, tmp_path / "merged", quietly).manifest
    assert manifest.dataset == "set 1 + set 2 + third"
    assert (manifest.rows, manifest.shards, manifest.seed, manifest.columns) == (3 * ROWS, 3 * SHARDS, None, {})
    assert [part["data_fingerprint"] for part in manifest.origin["parts"]] == ["data 1", "data 2", "data 3"]
    other = merge([stores[1], stores[0]], tmp_path / "other", quietly).manifest
    assert other.columns == {"instruction": "text"}
    assert other.data_fingerprint != merge(stores[:2], tmp_path / "again", quietly).manifest.data_fingerprint


def test_row_numbers_of_a_shuffled_and_limited_pass_stay_unique(tmp_path: Path) -> None:
    numbers = [int(row) for row in np.random.default_rng(0).permutation(500)[:ROWS]]
    first = write_store(tmp_path / "a", seed=1, numbers=numbers, rejected=[max(numbers)])
    merged = merge([first, write_store(tmp_path / "b", seed=2)], tmp_path / "merged", quietly)
    assert verify(merged) == []
    assert sorted(merged.table()["row"].to_pylist())[-1] == max(numbers) + ROWS


def test_shards_are_what_the_program_itself_would_write(tmp_path: Path) -> None:
    merged = merge(two_sets(tmp_path), tmp_path / "merged", quietly)
    create_or_resume(tmp_path / "own", merged.manifest)
    rows = [random_pair(row, 2) for row in range(6, 12)]
    own = write_shard(tmp_path / "own", 5, [replace(example, row=example.row + ROWS) for example in rows], [])
    assert merged.shards[5].read_bytes() == own.read_bytes()
    assert all(table.schema == SCHEMA for table in merged.tables())


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [1, 3, 6])
def test_an_interrupted_merge_continues_to_the_same_bytes(tmp_path: Path, calls: int) -> None:
    stores = two_sets(tmp_path)
    whole = contents(merge(stores, tmp_path / "whole", quietly).folder)
    torn = tmp_path / "torn"
    with pytest.raises(StoppedError):
        merge(stores, torn, stop_after(calls))
    done = sorted(torn.glob("shard-*.parquet"))
    assert len(done) == calls
    (torn / f".{shard_path(torn, calls).name}.0123.partial").write_bytes(b"half a shard")
    before = [shard.stat().st_ino for shard in done]
    merge(stores, torn, quietly)
    assert [shard.stat().st_ino for shard in done] == before
    assert contents(torn) == whole
    merge(stores, torn, quietly)
    assert contents(torn) == whole


def _another_store(tmp_path: Path) -> list[Store]:
    write_store(tmp_path / "out", seed=9)
    return two_sets(tmp_path)


def _a_folder_of_other_things(tmp_path: Path) -> list[Store]:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").touch()
    return two_sets(tmp_path)


def _with_another(**manifest: Any) -> Callable[[Path], list[Store]]:
    return lambda tmp_path: [write_store(tmp_path / "a", seed=1), write_store(tmp_path / "b", seed=2, **manifest)]


def _an_odd_shard(tmp_path: Path) -> list[Store]:
    store = write_store(tmp_path / "a")
    write_shard(store.folder, 9, [random_pair(99)], [])
    return [write_store(tmp_path / "a")]


REFUSED: dict[str, tuple[Callable[[Path], list[Store]], type[EarlError], str]] = {
    "no store": (lambda _: [], UsageError, "no store to merge"),
    "a store twice": (
        lambda tmp_path: [write_store(tmp_path / "a"), write_store(tmp_path / "b/../a")],
        UsageError,
        "named more than once",
    ),
    "a copy among others": (
        lambda tmp_path: [*two_sets(tmp_path), write_store(tmp_path / "copy", seed=1)],
        UsageError,
        r"copy: the same rows as in .*a ",
    ),
    "other codes": (_with_another(codes=32768), UsageError, r"codes is 32768 in .*b, 512 in .*a"),
    "another tokenizer": (
        _with_another(vision_fingerprint="x"),
        UsageError,
        r"vision_fingerprint is 'x' in .*b, 'vq' in",
    ),
    "another area": (
        _with_another(image_area=None, codes=99),
        UsageError,
        r"codes is 99 in .*; image_area is None in .*b, 1024 in .*a",
    ),
    "an unfinished store": (
        _with_another(shards=[0, 3]),
        InputError,
        r"b: incomplete: shards 1 to 2 are missing \(of 4\)",
    ),
    "a shard too many": (_an_odd_shard, InputError, r"shard-000009\.parquet: the store's manifest has no such shard"),
    "an output of other rows": (_another_store, UsageError, "made differently: dataset 'set 9' there"),
    "an output that is none": (_a_folder_of_other_things, UsageError, "holds no token store"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_stores_that_dont_fit_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    stores, error, reported = REFUSED[kind]
    given = stores(tmp_path)
    before = contents(tmp_path / "out") if (tmp_path / "out").exists() else None
    with pytest.raises(error, match=reported):
        merge(given, tmp_path / "out", quietly)
    assert (contents(tmp_path / "out") if (tmp_path / "out").exists() else None) == before


def test_a_damaged_shard_stops_the_merge_by_name(tmp_path: Path) -> None:
    stores = two_sets(tmp_path)
    shard_path(stores[1].folder, 2).write_bytes(b"torn")
    with pytest.raises(InputError, match=r"b/shard-000002\.parquet: this shard can't be read"):
        merge(stores, tmp_path / "merged", quietly)
