"""Whatever is broken in a store is found and named; what is whole is left in peace."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import CODES, ROWS, random_pair, write_store

from earl_cli.data.inspecting import verify
from earl_cli.data.store import SCHEMA, open_store, shard_path, write_manifest, write_shard

SHARD, REJECTS = "shard-000002.parquet", "shard-000001.rejects.jsonl"


def rewritten(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    """Shard 2, rows 12 to 17, with something changed in its rows."""

    def damage(folder: Path) -> None:
        rows = pq.read_table(folder / SHARD, schema=SCHEMA).to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / SHARD)

    return damage


def set_in(index: int, **values: Any) -> Callable[[Path], None]:
    return rewritten(lambda rows: rows[index].update(values))


def table_changed(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(change(pq.read_table(folder / SHARD)), folder / SHARD)


def text_written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def rows_planned(rows: int) -> Callable[[Path], None]:
    return lambda folder: write_manifest(folder, replace(open_store(folder).manifest, rows=rows))


def reject(**fields: Any) -> str:
    return json.dumps({"row": 7, "id": "x", "kind": "image", "reason": "torn"} | fields) + "\n"


DAMAGE: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a shard gone": (lambda folder: (folder / SHARD).unlink(), "", "shard 2 is missing (of 4)"),
    "a shard too many": (
        lambda folder: write_shard(folder, 9, [], []),
        "shard-000009.parquet",
        "unexpected: the store has 4 shards, counted from 0",
    ),
    "a shard of another name": (
        lambda folder: (folder / SHARD).rename(folder / "shard-0000002.parquet"),
        "shard-0000002.parquet",
        "unexpected: shard 2 is called shard-000002.parquet",
    ),
    "a torn shard": (
        lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-20]),
        SHARD,
        "this shard can't be read: ",
    ),
    "an empty file": (lambda folder: (folder / SHARD).write_bytes(b""), SHARD, "this shard can't be read: "),
    "a row twice": (set_in(3, row=12), SHARD, "row 12 is here more than once"),
    "rows of another shard": (
        rewritten(lambda rows: [row.update(row=row["row"] - 12) for row in rows]),
        SHARD,
        "rows 0 to 5 are here and in shard-000000.parquet",
    ),
    "a row that was left out": (set_in(0, row=7), REJECTS, "row 7 is here and in shard-000002.parquet"),
    "a negative row": (set_in(5, row=-3), SHARD, "the row's number is negative: row -3"),
    "a code too high": (
        set_in(1, source=[CODES], source_height=1, source_width=1),
        SHARD,
        "codes of the source are 512 or higher, which the codebook doesn't have: row 13",
    ),
    "codes too many": (
        set_in(4, target=[1, 2, 3], target_height=1, target_width=2),
        SHARD,
        "the codes of the target don't fill its grid: row 16",
    ),
    "an empty grid": (
        set_in(2, source=[], source_height=0, source_width=3),
        SHARD,
        "the grid of the source is empty: row 14",
    ),
    "empty instructions": (
        rewritten(lambda rows: [row.update(instruction=" \n" * (row["row"] % 3)) for row in rows]),
        SHARD,
        "the instruction is empty: rows 12, 13, 14, 15, 16 and 1 more",
    ),
    **{
        f"no {name}": (set_in(1, **{name: None}), SHARD, f"{name} has no value (null): row 13")
        for name in SCHEMA.names
        if name != "row"
    },
    "no row": (set_in(1, row=None), SHARD, "row has no value (null): row (no number)"),
    "no code": (
        set_in(1, source=[1, None], source_height=1, source_width=2),
        SHARD,
        "source has no value (null): row 13",
    ),
    "no thought": (set_in(0, thoughts=[("plan", None)]), SHARD, "thoughts has no value (null): row 12"),
    "a column gone": (
        table_changed(lambda table: table.drop_columns("thoughts")),
        SHARD,
        "the column thoughts is missing",
    ),
    "a column too many": (
        table_changed(lambda table: table.append_column("more", table["id"])),
        SHARD,
        "the column more doesn't belong here",
    ),
    "a column of another type": (
        table_changed(lambda table: table.set_column(0, "row", table["row"].cast(pa.int32()))),
        SHARD,
        "the column row is of type int32, not int64",
    ),
    "a text that is none": (
        table_changed(lambda table: table.set_column(1, "id", pa.array([b"\xff"] * 6, pa.binary()).view(pa.string()))),
        SHARD,
        "this shard can't be read: ",
    ),
    "rejects that are no JSON": (
        text_written(REJECTS, reject() + '{"row"'),
        REJECTS,
        "this list of rejects is damaged",
    ),
    "rejects that lack a field": (text_written(REJECTS, '{"row": 7}\n'), REJECTS, "this list of rejects is damaged"),
    "rejects without a number": (text_written(REJECTS, reject(row="7")), REJECTS, "this list of rejects is damaged"),
    "rejects of no number": (text_written(REJECTS, reject(row=2**63)), REJECTS, "this list of rejects is damaged"),
    "a reject twice": (text_written(REJECTS, reject() * 2), REJECTS, "row 7 is here more than once"),
    "rejects of nothing": (
        lambda folder: (folder / REJECTS).rename(folder / "shard-000008.rejects.jsonl"),
        "shard-000008.rejects.jsonl",
        "rejects of a shard that is not there",
    ),
    "rows lost": (
        rewritten(lambda rows: rows.pop()),
        "manifest.json",
        "20 rows were planned, but there are 17 examples and 2 rejects",
    ),
    "a reject lost": (
        lambda folder: (folder / REJECTS).unlink(),
        "manifest.json",
        "20 rows were planned, but there are 18 examples and 0 rejects",
    ),
    "rows too many": (
        rows_planned(19),
        "manifest.json",
        "19 rows were planned, but there are 18 examples and 2 rejects",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_is_found_and_named_once(tmp_path: Path, kind: str) -> None:
    damage, file, what = DAMAGE[kind]
    folder = write_store(tmp_path / "s").folder
    damage(folder)
    problems = verify(open_store(folder))
    assert [problem.where for problem in problems] == [str(folder / file)]
    assert problems[0].what.startswith(what)


def test_all_problems_are_found_at_once(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "s").folder
    rows = [replace(random_pair(row), instruction="", source=np.full((1, 1), CODES, np.uint16)) for row in range(6)]
    write_shard(folder, 0, rows, [])
    (folder / SHARD).write_bytes(b"torn")
    (folder / "shard-000003.parquet").unlink()
    (folder / REJECTS).write_text("torn")
    found = {(Path(problem.where).name, problem.what.split(":")[0]) for problem in verify(open_store(folder))}
    assert found == {
        ("s", "shard 3 is missing (of 4)"),
        (SHARD, "this shard can't be read"),
        (REJECTS, "this list of rejects is damaged"),
        ("shard-000000.parquet", "the instruction is empty"),
        ("shard-000000.parquet", "codes of the source are 512 or higher, which the codebook doesn't have"),
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_valid_store_has_no_problems(tmp_path: Path, seed: int) -> None:
    numbers = [int(row) for row in np.random.default_rng(seed).permutation(1000)[:ROWS]]  # shuffled, and cut
    reported: list[int] = []
    store = write_store(tmp_path / "s", seed=seed, numbers=numbers, rejected=numbers[3:5], codes=65536)
    assert verify(store, reported.append) == []
    assert sum(reported) == ROWS
    assert verify(write_store(tmp_path / "empty", numbers=[], shards=[])) == []
    assert verify(write_store(tmp_path / "rejects only", rejected=range(ROWS))) == []


def test_the_shards_of_an_incomplete_store_are_checked(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", shards=[0, 3])
    assert [problem.what for problem in verify(store)] == ["shards 1 to 2 are missing (of 4)"]
    shard_path(store.folder, 3).write_bytes(shard_path(store.folder, 0).read_bytes())
    assert [problem.what for problem in verify(store)][1:] == ["rows 0 to 5 are here and in shard-000000.parquet"]
