"""Published tokenized data, in and out without loss, and on from where a pass was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_data import LIST, fields, numbers, pack, publish, saved
from stores import contents

from earl_cli.data.published import store as module
from earl_cli.data.published.files import is_published
from earl_cli.data.published.store import (
    export_published,
    import_published,
    open_published,
    published_table,
)
from earl_cli.data.store import Manifest, Store, TokenizedExample, create_or_resume, open_store, write_shard
from earl_cli.errors import ModelError, UsageError


def bring(place: Path, output: Path, rows_per_shard: int = 2, **options: Any) -> Store:
    settings: dict[str, Any] = {"codes": 32768, "image_area": 65536, "vision_fingerprint": "published", "dataset": "x"}
    return import_published(open_published(place), output, rows_per_shard=rows_per_shard, **settings | options)


def test_a_codebook_of_more_than_16_bits_is_refused(tmp_path: Path) -> None:
    place = publish(tmp_path / "x", numbers(1))
    with pytest.raises(ModelError, match="70,000 codes can't be stored"):
        published_table(open_published(place), 70_000)
    with pytest.raises(ModelError, match="70,000 codes can't be stored"):
        bring(place, tmp_path / "store", codes=70_000)


# -- out and in again --------------------------------------------------------------------------------------------------


AWKWARD = ["a/b", "A/B", "..", ".", "a", "A", "x.pth", "CON:", "a/b-1", "\u00e9", "e\u0301", "\u2028", "\\"]


@st.composite
def stored_pairs(draw: st.DrawFn) -> list[TokenizedExample]:
    letters = st.characters(exclude_categories=["Cs"])
    names = st.text(letters, min_size=1, max_size=12) | st.sampled_from(AWKWARD)
    thoughts = st.dictionaries(st.text(letters, max_size=9), st.text(letters, min_size=1, max_size=9), max_size=2)

    def grid() -> np.ndarray:
        height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        codes = st.lists(st.integers(0, 511), min_size=height * width, max_size=height * width)
        return np.array(draw(codes), dtype=np.uint16).reshape(height, width)

    identifiers = draw(st.lists(names, min_size=1, max_size=6))
    return [
        TokenizedExample(row, name, "do " + draw(st.text(letters, max_size=9)), grid(), grid(), draw(thoughts), "")
        for row, name in enumerate(identifiers)
    ]


def store_of(folder: Path, examples: list[TokenizedExample], rows_per_shard: int = 2) -> Store:
    shards = -(-len(examples) // rows_per_shard)
    create_or_resume(folder, Manifest(512, "vq", 1024, "test", len(examples), shards, None, {}, "data"))
    for index in range(shards):
        write_shard(folder, index, examples[index * rows_per_shard : (index + 1) * rows_per_shard], [])
    return open_store(folder)


@settings(deadline=None, max_examples=30)
@given(stored_pairs())
def test_an_export_can_be_imported(tmp_path_factory: pytest.TempPathFactory, examples: list[TokenizedExample]) -> None:
    folder = tmp_path_factory.mktemp("out")
    store = store_of(folder / "store", examples)
    export_published(store, folder / "published")
    back = bring(folder / "published", folder / "back", codes=512)
    assert back.table().to_pylist() == store.table().to_pylist()
    assert not list(back.rejects())
    listed = json.loads((folder / "published" / LIST).read_text())["path_list"]
    there = {path.name for path in (folder / "published/feature").iterdir()}
    assert there == set(listed)
    assert len({name.casefold() for name in listed}) == len(examples)


def test_an_export_is_read_by_the_published_loaders(tmp_path: Path) -> None:
    examples = [
        TokenizedExample(row, f"omni_{row}", f"do {row}", grid, grid[::-1].copy(), {"why": "so"} if row else {}, "hash")
        for row, grid in enumerate(np.arange(36, dtype=np.uint16).reshape(3, 3, 4))
    ]
    listing = export_published(store_of(tmp_path / "store", examples), tmp_path / "published")
    listed = json.loads(listing.read_text())
    assert Path(listed["prefix"]).is_absolute()
    folders = {"sft": Path(listed["prefix"]), "rl": Path(listing).parent.parent / "feature"}
    for folder in folders.values():
        for example, name in zip(examples, listed["path_list"], strict=True):
            data = torch.load(folder / name, weights_only=False)
            assert set(data) == {"edit_id", "original_image", "edited_image", "CoT", "instruction"}
            assert data["edit_id"] == name == f"{example.id}.pth"
            assert type(data["original_image"]) is np.ndarray
            assert data["original_image"].dtype == np.int64
            assert np.array_equal(data["original_image"], example.source)
            assert np.array_equal(data["edited_image"], example.target)
            assert (data["CoT"], data["instruction"]) == (example.thoughts, example.instruction)


def test_ids_become_file_names_of_any_file_system(tmp_path: Path) -> None:
    grid = np.zeros((1, 1), np.uint16)
    ids = ["a/b", "a/b", "../../x", "fine 1", "fine 1", "FINE 1", "x" * 400, ".hidden"]
    examples = [TokenizedExample(row, name, "do", grid, grid, {}, "") for row, name in enumerate(ids)]
    listing = export_published(store_of(tmp_path / "store", examples), tmp_path / "published")
    names = json.loads(listing.read_text())["path_list"]
    assert names == [
        "a%2Fb-0.pth",
        "a%2Fb-1.pth",
        "%2E.%2F..%2Fx-2.pth",
        "fine 1.pth",
        "fine 1-4.pth",
        "FINE 1-5.pth",
        "x" * 150 + "-6.pth",
        "%2Ehidden-7.pth",
    ]
    assert [row.id for row in open_published(tmp_path / "published").read()] == ids


def test_a_table_for_training_equals_an_import(tmp_path: Path) -> None:
    place = publish(tmp_path / "x", numbers(1, 2, 3) | {"bad.pth": b"nothing"})
    table, rejects = published_table(open_published(place))
    store = bring(place, tmp_path / "store")
    assert table.equals(store.table())
    assert rejects == list(store.rejects())
    assert [(reject.row, reject.id, reject.kind) for reject in rejects] == [(3, "bad.pth", "pickle")]


# -- interrupted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("archived", [False, True])
def test_an_interrupted_import_ends_in_the_same_bytes(tmp_path: Path, archived: bool) -> None:
    place = publish(tmp_path / "x", numbers(*range(7)) | {"bad.pth": b""} | numbers(8, 9))
    if archived:
        place = pack(place, tmp_path / "x.tar.gz", "x/")
    bring(place, tmp_path / "at once", rows_per_shard=3)
    seen: list[int] = []

    def stop(rows: int) -> None:
        seen.append(rows)
        if sum(seen) >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(place, tmp_path / "twice", rows_per_shard=3, on_rows=stop)
    assert 0 < len(open_store(tmp_path / "twice").shards) < 4
    first = tmp_path / "twice/shard-000000.parquet"
    before = first.stat().st_mtime_ns
    (tmp_path / "twice/.shard-000003.parquet.0123456789ab.partial").touch()
    seen.clear()
    store = bring(place, tmp_path / "twice", rows_per_shard=3, on_rows=seen.append)
    assert store.complete
    assert (sum(seen), seen[0]) == (10, 5)
    assert first.stat().st_mtime_ns == before
    assert contents(tmp_path / "twice") == contents(tmp_path / "at once")
    first.unlink()
    (tmp_path / "twice/shard-000002.parquet").unlink()
    bring(place, tmp_path / "twice", rows_per_shard=3)
    assert contents(tmp_path / "twice") == contents(tmp_path / "at once")


def test_shards_are_divided_where_files_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = publish(tmp_path / "x", numbers(*range(6)) | {"bad.pth": b""})
    size = open_published(place).files.sizes[0]
    monkeypatch.setattr(module, "BYTES_PER_SHARD", 2 * size + 100)
    store = bring(place, tmp_path / "store", rows_per_shard=7)
    assert [table.num_rows for table in store.tables()] == [2, 2, 2]
    archived = bring(pack(place, tmp_path / "x.tar", "x/"), tmp_path / "packed", rows_per_shard=7)
    assert [table.num_rows for table in archived.tables()] == [2, 2, 2]
    monkeypatch.setattr(module, "BYTES_PER_SHARD", 1)
    assert len(bring(place, tmp_path / "single", rows_per_shard=7).shards) == 7


def test_other_files_or_another_codebook_are_another_store(tmp_path: Path) -> None:
    place = publish(tmp_path / "x", numbers(1, 2))
    bring(place, tmp_path / "store")
    with pytest.raises(UsageError, match="codes 32768 there, 512 now"):
        bring(place, tmp_path / "store", codes=512)
    (place / "feature/2.pth").write_bytes(b"shorter")
    with pytest.raises(UsageError, match="other data"):
        bring(place, tmp_path / "store")
    before = open_published(place).fingerprint
    publish(place, numbers(3))
    assert open_published(place).fingerprint != before


def test_an_interrupted_export_has_no_list_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = publish(tmp_path / "x", numbers(*range(5)))
    store = bring(place, tmp_path / "store")
    at_once = export_published(store, tmp_path / "at once")
    with monkeypatch.context() as patch:
        written: list[int] = []

        def stop(example: TokenizedExample) -> bytes:
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(example.row)
            return saved(fields(example.row)) if example.row == 1 else write(example)

        write = module.write_pth
        patch.setattr(module, "write_pth", stop)
        with pytest.raises(KeyboardInterrupt):
            export_published(store, tmp_path / "twice")
    assert not is_published(tmp_path / "twice")
    (tmp_path / "twice/feature/.4.pth.0123456789ab.partial").touch()
    (tmp_path / "twice/feature/1.pth").write_bytes(b"from something else")
    first = tmp_path / "twice/feature/0.pth"
    before = first.stat().st_mtime_ns
    reported: list[int] = []
    export_published(store, tmp_path / "twice", reported.append)
    assert sum(reported) == 5
    assert first.stat().st_mtime_ns == before
    assert contents(tmp_path / "twice/feature") == contents(at_once.parent.parent / "feature")
    other = bring(publish(tmp_path / "y", numbers(1)), tmp_path / "other")
    export_published(other, tmp_path / "twice")  # in its place
    assert [row.instruction for row in open_published(tmp_path / "twice").read()] == ["make it 1"]


def test_an_incomplete_store_exports_what_it_has(tmp_path: Path) -> None:
    store = bring(publish(tmp_path / "x", numbers(*range(5))), tmp_path / "store")
    store.shards[1].unlink()
    half = open_store(tmp_path / "store")
    export_published(half, tmp_path / "out")
    assert published_table(open_published(tmp_path / "out"))[0]["id"].equals(half.table()["id"])
