"""The store: what goes in comes out, whole shards only, and never two kinds of codes in one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earl_cli.data.store import (
    Manifest,
    TokenizedPair,
    check_codebook,
    create_or_resume,
    open_store,
    shard_count,
    shard_path,
    whole_file,
    write_shard,
)
from earl_cli.errors import InputError, UsageError

MANIFEST = Manifest(4096, "vq", 9216, "test", 3, 2, None, "data")
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def pairs(draw: st.DrawFn) -> TokenizedPair:
    def codes() -> np.ndarray:
        height, width = draw(grids)
        values = draw(st.lists(st.integers(0, 65535), min_size=height * width, max_size=height * width))
        return np.array(values, dtype=np.uint16).reshape(height, width)

    text = st.text(max_size=20).filter(lambda value: value.isprintable())
    thoughts = draw(st.dictionaries(text, text, max_size=3))
    return TokenizedPair(draw(text), draw(text), codes(), codes(), thoughts, "hash")


@settings(deadline=None, max_examples=40)
@given(st.lists(pairs(), max_size=4))
def test_rows_come_back_as_they_went_in(tmp_path_factory: pytest.TempPathFactory, rows: list[TokenizedPair]) -> None:
    folder = tmp_path_factory.mktemp("store") / "s"
    create_or_resume(folder, MANIFEST)
    write_shard(folder, 0, rows, [])
    found = open_store(folder).table().to_pylist()
    assert len(found) == len(rows)
    for row, back in zip(rows, found, strict=True):
        shape = (back["target_height"], back["target_width"])
        assert np.array_equal(np.array(back["target"]).reshape(shape), row.target)
        assert (back["id"], back["instruction"], dict(back["thoughts"])) == (
            row.id,
            row.instruction,
            dict(row.thoughts),
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
    assert shard_count(MANIFEST) == 2
    for index in range(2):
        assert not open_store(tmp_path / "s").complete
        write_shard(tmp_path / "s", index, [], [("x", "broken")])
    assert open_store(tmp_path / "s").complete
    assert open_store(tmp_path / "s").rejects() == [{"id": "x", "reason": "broken"}] * 2


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with pytest.raises(InputError, match="not a token store"):
        open_store(folder)
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


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt), whole_file(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole_file(path) as aside:
        aside.write_text("whole")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]
