"""The store: what goes in comes out, whole shards only, and never two kinds of codes in one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earl_cli.data.store import (
    SCHEMA,
    Manifest,
    Reject,
    TokenizedExample,
    check_codebook,
    create_or_resume,
    examples_of,
    open_store,
    shard_path,
    write_shard,
)
from earl_cli.errors import InputError, ModelError, UsageError

MANIFEST = Manifest(4096, "vq", 9216, "test", 3, 2, None, {}, "data")
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def examples(draw: st.DrawFn) -> TokenizedExample:
    def codes() -> np.ndarray:
        height, width = draw(grids)
        values = draw(st.lists(st.integers(0, 65535), min_size=height * width, max_size=height * width))
        return np.array(values, dtype=np.uint16).reshape(height, width)

    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    thoughts = draw(st.dictionaries(text, text, max_size=3))
    return TokenizedExample(draw(st.integers(0, 2**40)), draw(text), draw(text), codes(), codes(), thoughts, "hash")


def test_a_codebook_of_more_than_16_bits_is_refused(tmp_path: Path) -> None:
    create_or_resume(tmp_path / "fits", replace(MANIFEST, codes=65536))
    with pytest.raises(ModelError, match=r"65,537 codes can't be stored.*65,536 at most"):
        create_or_resume(tmp_path / "store", replace(MANIFEST, codes=65537))
    assert not (tmp_path / "store").exists()


@settings(deadline=None, max_examples=40)
@given(st.lists(examples(), max_size=4))
def test_rows_come_back_as_they_went_in(tmp_path_factory: pytest.TempPathFactory, rows: list[TokenizedExample]) -> None:
    folder = tmp_path_factory.mktemp("store") / "s"
    create_or_resume(folder, MANIFEST)
    write_shard(folder, 0, rows, [])
    found = list(examples_of(open_store(folder).table()))
    assert len(found) == len(rows)
    for row, back in zip(rows, found, strict=True):
        assert np.array_equal(back.source, row.source)
        assert np.array_equal(back.target, row.target)
        assert (back.row, back.id, back.instruction, dict(back.thoughts), back.source_hash) == (
            row.row,
            row.id,
            row.instruction,
            dict(row.thoughts),
            row.source_hash,
        )


def test_a_store_of_other_settings_is_refused(tmp_path: Path) -> None:
    create_or_resume(tmp_path / "s", MANIFEST)
    assert create_or_resume(tmp_path / "s", MANIFEST).manifest == MANIFEST
    with pytest.raises(UsageError, match="image_area 9216 there, 65536 now"):
        create_or_resume(tmp_path / "s", replace(MANIFEST, image_area=65536))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(UsageError, match="holds no token store"):
        create_or_resume(tmp_path / "other", MANIFEST)


def test_a_store_is_complete_when_all_its_shards_are_there(tmp_path: Path) -> None:
    create_or_resume(tmp_path / "s", MANIFEST)
    broken = Reject(0, "x", "image", "broken")
    for index in (1, 0):
        assert not open_store(tmp_path / "s").complete
        assert index in open_store(tmp_path / "s").missing
        write_shard(tmp_path / "s", index, [], [broken])
    assert open_store(tmp_path / "s").complete
    assert list(open_store(tmp_path / "s").rejects()) == [broken] * 2


def test_kinds_of_rejects_as_earlier_versions_wrote_them_are_read(tmp_path: Path) -> None:
    create_or_resume(tmp_path / "s", MANIFEST)
    write_shard(tmp_path / "s", 0, [], [Reject(0, "x", "picture", "broken"), Reject(1, "y", "row", "no JSON")])
    assert [reject.kind for reject in open_store(tmp_path / "s").rejects()] == ["image", "row"]


def test_rewriting_a_shard_removes_the_rejects_of_a_killed_attempt(tmp_path: Path) -> None:
    create_or_resume(tmp_path / "s", MANIFEST)
    write_shard(tmp_path / "s", 0, [], [Reject(0, "x", "image", "broken")])
    write_shard(tmp_path / "s", 0, [], [])
    assert list(open_store(tmp_path / "s").rejects()) == []


def test_a_manifest_being_written_doesnt_make_the_folder_occupied(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.manifest.json.0123.partial").touch()
    assert create_or_resume(tmp_path / "s", MANIFEST).manifest == MANIFEST


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with pytest.raises(InputError, match="there is no such token store"):
        open_store(folder)
    with pytest.raises(InputError, match="not a token store: it has no manifest"):
        open_store(tmp_path)
    store = create_or_resume(folder, MANIFEST)
    with pytest.raises(InputError, match="codebook of 4096 codes, the model one of 512"):
        check_codebook(store, 512)
    write_shard(folder, 0, [], [])
    shard_path(folder, 0).write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"shard-000000\.parquet: this shard can't be read"):
        open_store(folder).table()
    (folder / "manifest.json").write_text('{"format": "earl-token-store", "version": 99}')
    with pytest.raises(InputError, match="version 99"):
        open_store(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        open_store(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": None},
        {"shards": 10**11},
        {"shards": -1},
        {"rows": "many"},
        {"codes": 0},
        {"columns": []},
        {"dataset": 1},
    ],
    ids=str,
)
def test_an_impossible_manifest_is_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    path = create_or_resume(tmp_path / "s", MANIFEST).folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="the manifest of this store is damaged"):
        open_store(tmp_path / "s")


def test_a_shard_with_invalid_utf8_is_named(tmp_path: Path) -> None:
    """Arrow writes and reads any bytes as a text."""
    store = create_or_resume(tmp_path / "s", MANIFEST)
    grid = np.zeros((1, 1), dtype=np.uint16)
    write_shard(store.folder, 0, [TokenizedExample(0, "a", "snow", grid, grid, {}, "")], [])
    shard = shard_path(store.folder, 0)
    table = pq.read_table(shard)
    bad = pa.array([b"\xff"]).cast(pa.string(), safe=False)
    pq.write_table(table.set_column(table.column_names.index("instruction"), "instruction", bad), shard)
    with pytest.raises(InputError, match="this shard can't be read"):
        open_store(store.folder).table()


CELLS_WITHIN = {"source": [[None]], "thoughts": [[("a", None)]]}


@pytest.mark.parametrize("name", ["row", "instruction", "source", "source_height", "thoughts"])
def test_a_shard_with_an_empty_cell_is_named(tmp_path: Path, name: str) -> None:
    store = create_or_resume(tmp_path / "s", MANIFEST)
    grid = np.zeros((1, 1), dtype=np.uint16)
    write_shard(store.folder, 0, [TokenizedExample(0, "a", "snow", grid, grid, {}, "")], [])
    shard = shard_path(store.folder, 0)
    table = pq.read_table(shard)
    kind = SCHEMA.field(name).type
    for cell in (None, *CELLS_WITHIN.get(name, ())):
        changed = table.set_column(table.column_names.index(name), name, pa.array([cell], kind))
        pq.write_table(changed, shard)
        with pytest.raises(InputError, match=rf"there are empty cells in {name} \(earl tokenize verify"):
            open_store(store.folder).table()


def test_a_reject_may_have_lone_surrogates(tmp_path: Path) -> None:
    store = create_or_resume(tmp_path / "s", MANIFEST)
    write_shard(store.folder, 0, [], [Reject(0, "\ud800", "image", "there is no \udfff.png, «é»")])
    assert "«é»" in (store.folder / "shard-000000.rejects.jsonl").read_text(encoding="utf-8")
    assert list(open_store(store.folder).rejects()) == [Reject(0, "\ud800", "image", "there is no \udfff.png, «é»")]
