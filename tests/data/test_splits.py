"""Folders and names as splits and configurations, the same for every kind of data; nothing is merged silently."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pytest

from earl_cli.data.image_cells import image_bytes
from earl_cli.data.sources.base import BadRowError, Row, row_count, split_of
from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.errors import InputError, UsageError

from .conftest import FORMS, as_json, as_json_lines, as_parquet, as_saved, as_table, as_tars, rows_with_images


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("default/train/0000.parquet", "train"),
        ("train/metadata.jsonl", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("Training/part 1/a.tar", "training"),
        ("omniedit_val/0.tar", "val"),
        ("data/dev-0000.parquet", "dev"),
        ("test/train-0.parquet", "test"),
        ("pretrained/latest.parquet", None),
        ("train_test/0.parquet", None),
        ("pairs.jsonl", None),
    ],
)
def test_the_split_of_a_file(file: str, split: str | None) -> None:
    assert split_of(PurePath(file)) == split


def parts(folder: Path, write: Callable[[Path, list[dict[str, Any]]], Path], **counts: int) -> Path:
    """In ``folder`` a part for each name, of so many rows; ``__`` in a name is a slash."""
    rows = rows_with_images(max(counts.values()))
    for name, count in counts.items():
        write(folder / name.replace("__", "/"), rows[:count])
    return folder


def one_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder = as_parquet(folder, rows)
    (folder / "train-0.parquet").rename(folder / "0000.parquet")
    (folder / "train-1.parquet").unlink()
    return folder


KINDS = {
    "json lines": as_json_lines,
    "json": as_json,
    "csv": as_table,
    "tsv": FORMS["tsv"],
    "parquet": one_parquet,
    "tars": as_tars,
    "saved": as_saved,
}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_named_as_splits_are_splits(kind: str, tmp_path: Path) -> None:
    folder = parts(tmp_path / "data", KINDS[kind], train=4, validation=3, test=2)
    with pytest.raises(UsageError, match=r"several splits") as caught:
        open_source(DataLocation(str(folder)))
    assert "train, validation, test" in str(caught.value) or "test, train, validation" in str(caught.value)
    for split, rows in (("train", 4), ("test", 2), ("val", 3), ("dev", 3)):
        source = open_source(DataLocation(str(folder), split=split))
        assert (source.name, row_count(source)) == ("data", rows)
    with pytest.raises(UsageError, match="no split 'nightly'"):
        open_source(DataLocation(str(folder), split="nightly"))
    if kind in ("json lines", "json", "csv", "tsv"):
        with pytest.raises(InputError, match=r"several lists of examples: test/.*give the path of one"):
            open_source(DataLocation(str(folder), split="all"))
    else:
        assert row_count(open_source(DataLocation(str(folder), split="all"))) == 9


def test_the_hubs_own_layouts(tmp_path: Path) -> None:
    """default/train/0000.parquet, as it converts; with two configurations it must be said which."""
    folder = parts(tmp_path / "one", one_parquet, default__train=4, default__test=2)
    assert row_count(open_source(DataLocation(str(folder), split="train"))) == 4
    assert row_count(open_source(DataLocation(str(folder / "default" / "train")))) == 4
    folder = parts(tmp_path / "two", one_parquet, simple__train=4, simple__test=2, complex__train=3)
    with pytest.raises(UsageError, match=r"several configurations: complex, simple.*--subset"):
        open_source(DataLocation(str(folder), split="train"))
    assert row_count(open_source(DataLocation(str(folder), split="train", subset="complex"))) == 3
    assert row_count(open_source(DataLocation(str(folder), subset="complex"))) == 3
    assert row_count(open_source(DataLocation(str(folder), data_files=("*/train/*.parquet",)))) == 7
    with pytest.raises(UsageError, match=r"no folder 'hard'.*complex, simple"):
        open_source(DataLocation(str(folder), split="train", subset="hard"))


def test_parts_of_a_split_in_folders_are_one(tmp_path: Path) -> None:
    folder = parts(tmp_path / "data", one_parquet, train__a=2, train__b=3)
    assert row_count(open_source(DataLocation(str(folder)))) == 5


def test_a_split_may_be_any_word_of_file_names(tmp_path: Path) -> None:
    folder = parts(tmp_path / "data", one_parquet, counting=2, relation=3)
    assert row_count(open_source(DataLocation(str(folder), split="counting"))) == 2
    with pytest.raises(UsageError, match=r"no split 'count'.*no file or folder is named as a split.*counting/0000"):
        open_source(DataLocation(str(folder), split="count"))
    assert row_count(open_source(DataLocation(str(folder)))) == 5


def test_files_of_no_split_beside_those_of_one_are_named(tmp_path: Path) -> None:
    folder = parts(tmp_path / "data", one_parquet, more=2, test=3)
    with pytest.raises(UsageError, match=r"several splits: test, and of none: more/0000\.parquet"):
        open_source(DataLocation(str(folder)))


def test_lists_named_as_splits(tmp_path: Path) -> None:
    folder = as_json_lines(tmp_path / "data", rows_with_images(4))
    lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    (folder / "test.jsonl").write_text(lines[0])
    (folder / "pairs.jsonl").rename(folder / "train.jsonl")
    assert row_count(open_source(DataLocation(str(folder), split="test"))) == 1
    with pytest.raises(UsageError, match="several splits: train, test"):
        open_source(DataLocation(str(folder)))
    assert row_count(open_source(DataLocation(str(folder / "train.jsonl"), split="train"))) == 4
    for wrong in (
        DataLocation(str(folder / "train.jsonl"), split="test"),
        DataLocation(str(folder / "train.jsonl"), subset="x"),
    ):
        with pytest.raises(UsageError, match="chooses among several files, and this is one"):
            open_source(wrong)


def test_numbered_lists_are_one(tmp_path: Path) -> None:
    rows = rows_with_images(5)
    folder = as_json_lines(tmp_path / "data", rows)
    lines = [line for line in (folder / "pairs.jsonl").read_text("utf-8-sig").splitlines() if line]
    (folder / "pairs.jsonl").unlink()
    whole = {"train-00000-of-00002": lines[:2], "train-00001-of-00002": ["[]", lines[2]], "test": lines[3:]}
    for name, part in whole.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part))
    source = open_source(DataLocation(str(folder), split="train"))
    first, second, bad, third = source.read([0, 1, 2, 3], ("id", "source"))
    assert isinstance(bad, BadRowError)
    found = [row for row in (first, second, third) if isinstance(row, Row)]
    assert [(row.number, row.values["id"]) for row in found] == [(0, "p0"), (1, "p1"), (3, "p2")]
    assert image_bytes(found[2].values["source"], source.base) == rows[2]["source"]
    assert row_count(pickle.loads(pickle.dumps(open_source(DataLocation(str(folder), split="all"))))) == 6
    assert row_count(open_source(DataLocation(str(folder), data_files=("*-00000-*", "test*")))) == 4
    (folder / "train_more.jsonl").write_text(lines[0])
    with pytest.raises(InputError, match=r"several lists of examples: train-00000.*train_more\.jsonl"):
        open_source(DataLocation(str(folder), split="train"))


def test_a_split_is_never_ignored(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no split 'test'"):
        open_source(DataLocation(str(as_json_lines(tmp_path / "lines", rows_with_images(2))), split="test"))
    with pytest.raises(UsageError, match="no split 'test': this data set has none"):
        open_source(DataLocation(str(as_saved(tmp_path / "saved", rows_with_images(2))), split="test"))


def test_several_kinds_of_data_are_named(tmp_path: Path) -> None:
    folder = as_json_lines(tmp_path / "data", rows_with_images(2))
    as_parquet(folder / "tables", rows_with_images(8))
    with pytest.raises(InputError, match=r"several kinds of data: lists: pairs\.jsonl; Parquet: tables/train-0\.p"):
        open_source(DataLocation(str(folder)))
    assert row_count(open_source(DataLocation(str(folder), data_files=("*.jsonl",)))) == 2
    table = as_table(folder / "deeper", rows_with_images(3))
    with pytest.raises(InputError, match=r"several kinds of data: lists: deeper/pairs\.csv; Parquet: tables/train-0"):
        open_source(DataLocation(str(folder), data_files=("deeper/*.csv", "tables/*-0.parquet")))
    assert row_count(open_source(DataLocation(str(folder), data_files=(f"deeper/{table.name}",)))) == 3


def test_a_list_beside_a_saved_data_set_is_ignored(tmp_path: Path) -> None:
    folder = as_json_lines(tmp_path / "data", rows_with_images(2))
    as_saved(folder / "old", rows_with_images(3))
    assert row_count(open_source(DataLocation(str(folder)))) == 2


def test_tables_among_the_images_are_no_list(tmp_path: Path) -> None:
    folder = as_json_lines(tmp_path / "data", rows_with_images(2))
    (folder / "pictures" / "index.csv").write_text("a,b\n1,2\n")
    (folder / "._pairs.jsonl").write_bytes(b"\0\5\26\7")  # macOS leaves these on other disks
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "train.csv").write_text("a,b\n1,2\n")
    store = folder / "store"
    store.mkdir()
    (store / "manifest.json").write_text("{}")
    (store / "shard-000000.parquet").write_bytes(b"")
    assert row_count(open_source(DataLocation(str(folder)))) == 2
    assert (
        row_count(
            open_source(DataLocation(str(as_json_lines(tmp_path / "zip" / "unpacked", rows_with_images(3)).parent)))
        )
        == 3
    )


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    folder = parts(tmp_path / "data", one_parquet, train=4)
    (folder / "test").symlink_to(one_parquet(tmp_path / "elsewhere", rows_with_images(2)))
    (folder / "train" / "again").symlink_to(folder)
    assert row_count(open_source(DataLocation(str(folder), split="test"))) == 2
    assert row_count(open_source(DataLocation(str(folder), split="train"))) == 4


@pytest.mark.parametrize("pattern", ["/etc/*.parquet", "../*.parquet", "**.parquet"])
def test_patterns_are_of_files_below(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="no pattern of files below the folder"):
        open_source(DataLocation(str(tmp_path / "data"), data_files=(pattern,)))


@pytest.mark.parametrize("name", ["pairs.jsonl.gz", "data.tar.gz", "data.zip", "pairs.csv.zst"])
def test_compressed_data_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"compressed.*unpack it"):
        open_source(DataLocation(str(tmp_path / name)))
    with pytest.raises(InputError, match=f"no data.*unpack {name} first"):
        open_source(DataLocation(str(tmp_path)))


def test_files_of_one_name_have_different_fingerprints(tmp_path: Path) -> None:
    found = set()
    for kind, write in (("parquet", one_parquet), ("tars", as_tars)):
        for name in ("one", "two"):
            a, b = ("a", "b") if name == "one" else ("c", "d")
            folder = parts(tmp_path / kind / name, write, **{a: 2, b: 2})
            found.add(open_source(DataLocation(str(folder))).fingerprint)
    assert len(found) == 4
