"""Every form of data gives the same rows, from any place on, in any process; damage costs the damaged row only."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from earl_cli.data.image_cells import image_bytes
from earl_cli.data.shard_plan import RowOrder
from earl_cli.data.sources.base import BadRowError, Row, Source, row_count
from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.errors import EarlError, InputError, UsageError

from .conftest import ROWS, Form, as_json_lines, as_parquet, as_saved, as_table, as_tars, rows_with_images

COLUMNS = ("id", "source", "edited", "instruction", "plan")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def values(source: Source, rows: Sequence[int]) -> list[dict[str, Any]]:
    found = list(source.read(rows, COLUMNS))
    assert all(isinstance(row, Row) for row in found), found
    read = [dict(row.values) for row in found if isinstance(row, Row)]
    for row in read:
        row |= {name: image_bytes(row[name], source.base) for name in ("source", "edited")}
    return read


def test_rows_are_the_same_in_every_form(form: Form, tmp_path: Path) -> None:
    rows = rows_with_images()
    source = open_source(DataLocation(str(form(tmp_path / "some data", rows))))
    assert row_count(source) == ROWS
    assert set(COLUMNS) <= set(source.columns)
    order = RowOrder(source.bounds)
    assert [row for chunk in order.chunks(0, ROWS) for row in values(source, chunk)] == rows


def test_rows_can_be_read_in_any_order_in_another_process(form: Form, tmp_path: Path) -> None:
    rows = rows_with_images()
    source = pickle.loads(pickle.dumps(open_source(DataLocation(str(form(tmp_path / "data", rows))))))
    for number in (10, 0, 5):
        assert values(source, [number]) == [rows[number]]
    for chunk in RowOrder(source.bounds, seed=1).chunks(3, 9):
        assert values(source, chunk) == [rows[number] for number in chunk]


def test_the_fingerprint_is_that_of_the_data(form: Form, tmp_path: Path) -> None:
    def fingerprint(name: str, rows: list[dict[str, Any]]) -> str:
        return open_source(DataLocation(str(form(tmp_path / name / "data", rows)))).fingerprint

    rows = rows_with_images()
    if form is not as_saved:  # `datasets` gives each of its own a new one
        assert fingerprint("a", rows) == fingerprint("b", rows)
    assert fingerprint("c", rows) != fingerprint("d", rows[:-1])


def kinds(source: Source) -> dict[int, str]:
    found = [
        row for chunk in RowOrder(source.bounds).chunks(0, row_count(source)) for row in source.read(chunk, COLUMNS)
    ]
    return {number: row.kind for number, row in enumerate(found) if isinstance(row, BadRowError)}


def test_files_of_one_row_and_other_columns_are_read_together(tmp_path: Path) -> None:
    """No file speaks for the others: whatever column any of them has is there, and rows without it are without it."""
    rows = [{"source": b"a", "edited": None}, {"source": b"b", "edited": b"c"}, {"id": "x"}]
    for number, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{number}.parquet")
    source = open_source(DataLocation(str(tmp_path)))
    assert source.columns == {"source": "image", "edited": "image", "id": "unknown"}
    (chunk,) = RowOrder(source.bounds).chunks(0, 3)
    assert [row.values for row in source.read(chunk, COLUMNS) if isinstance(row, Row)] == rows


def test_damaged_lines_are_rejects(tmp_path: Path) -> None:
    folder = as_json_lines(tmp_path / "lines", rows_with_images())
    lines = (folder / "pairs.jsonl").read_bytes().splitlines()
    lines[0], lines[4], lines[6] = b"[1]", b'{"id": ', b"\xff\xfe"
    (folder / "pairs.jsonl").write_bytes(b"\n".join(lines))
    assert kinds(open_source(DataLocation(str(folder)))) == {0: "row", 2: "row", 3: "row"}


def test_a_table_row_of_the_wrong_length_is_a_reject(tmp_path: Path) -> None:
    path = as_table(tmp_path / "table", rows_with_images())
    with path.open("a") as file:
        file.write('only,three,"fields"\n')
    source = open_source(DataLocation(str(path)))
    assert kinds(source) == {ROWS: "row"}
    (bad,) = source.read([ROWS], COLUMNS)
    assert isinstance(bad, BadRowError)
    assert "3 fields for 5 columns" in str(bad)


def test_a_damaged_row_group_rejects_its_rows(tmp_path: Path) -> None:
    folder = as_parquet(tmp_path / "tables", rows_with_images())
    file = folder / "train-0.parquet"
    column = pq.read_metadata(file).row_group(1).column(3)
    content = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(content)
    assert kinds(open_source(DataLocation(str(folder)))) == {3: "data", 4: "data", 5: "data"}


def test_a_damaged_sample_is_a_reject(tmp_path: Path) -> None:
    folder = as_tars(tmp_path / "tars", rows_with_images())
    file = folder / "shard-0.tar"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'{"id": "p3"', b'{"id": "p3;'))
    assert kinds(open_source(DataLocation(str(folder)))) == {3: "data"}


def test_only_files_of_the_split_are_read(tmp_path: Path) -> None:
    rows = rows_with_images()
    folder = as_parquet(tmp_path / "tables", rows)
    (folder / "train-1.parquet").rename(folder / "validation-0.parquet")
    assert row_count(open_source(DataLocation(str(folder), split="train"))) == 7
    assert row_count(open_source(DataLocation(str(folder), split="validation"))) == ROWS - 7
    assert row_count(open_source(DataLocation(str(folder), split="all"))) == ROWS
    assert row_count(open_source(DataLocation(str(folder), data_files=("train-*",)))) == 7
    with pytest.raises(UsageError, match=r"several splits: train, validation.*--split"):
        open_source(DataLocation(str(folder)))
    with pytest.raises(UsageError, match=r"no split 'test'.*the splits are train, validation.*train-0\.parquet"):
        open_source(DataLocation(str(folder), split="test"))


def test_a_split_of_a_saved_data_set(tmp_path: Path) -> None:
    from datasets import DatasetDict, load_from_disk

    rows = rows_with_images()
    part = load_from_disk(str(as_saved(tmp_path / "part", rows)))
    DatasetDict({"train": part, "test": part.select([1, 2])}).save_to_disk(str(tmp_path / "both"))
    assert values(open_source(DataLocation(str(tmp_path / "both"), split="test")), [0, 1]) == rows[1:3]
    for split in (None, "dev"):
        with pytest.raises(UsageError, match="--split is one of train, test"):
            open_source(DataLocation(str(tmp_path / "both"), split=split))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.jsonl", b"", "the list of examples is empty"),
        ("pairs.jsonl", b"nothing\nbut\nwords", "no row of this list can be read"),
        ("pairs.csv", b"source,edited\n", "the list of examples is empty"),
        ("data.parquet", b"PAR1 torn", "not a readable Parquet file"),
        ("pairs.jsonl", b"\x1f\x8b\x08 and so on", "this list is compressed"),
        ("pairs.csv", b"source,edited\ra.png,b.png\r", "carriage returns alone"),
        ("pairs.csv", POINTER, "only a pointer of Git LFS.*git lfs pull"),
        ("data.parquet", POINTER, "only a pointer of Git LFS.*git lfs pull"),
        ("data.tar", POINTER, "only a pointer of Git LFS.*git lfs pull"),
        ("data.tar", b"x" * 2000, "not a readable tar"),
        ("data.tar", b"\0" * 10240, "no sample in these tars"),
        ("list/tokenized_datalist.json", b"{}", "tokenized already.*earl tokenize import"),
        ("dataset_info.json", b"{}", "no data of a kind that can be read"),
        ("state.json", b"{}", "this saved data set can't be read"),
    ],
)
def test_invalid_data_are_errors(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(EarlError, match=message):
        open_source(DataLocation(str(tmp_path / "data")))


def test_missing_locations_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder, and no Hub id"):
        open_source(DataLocation(str(tmp_path / "gone")))
    with pytest.raises(InputError, match="no data of a kind"):
        open_source(DataLocation(str(tmp_path)))
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"several lists of examples: a\.jsonl, b\.csv"):
        open_source(DataLocation(str(tmp_path)))
    (tmp_path / "notes.pdf").write_text("")
    with pytest.raises(InputError, match="data of this kind can't"):
        open_source(DataLocation(str(tmp_path / "notes.pdf")))
    with pytest.raises(UsageError, match="--streaming is for data on the Hub"):
        open_source(DataLocation(str(tmp_path), streaming=True))


def test_empty_tables_have_no_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"source": pa.array([], pa.string())}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="have no rows"):
        open_source(DataLocation(str(tmp_path)))


def test_tars_are_never_extracted(tmp_path: Path) -> None:
    member = tarfile.TarInfo("../../escaped.json")
    content = json.dumps({"id": "x"}).encode()
    member.size = len(content)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("x.source.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    source = open_source(DataLocation(str(tmp_path / "a.tar")))
    (row,) = source.read([0], COLUMNS)
    assert isinstance(row, Row)
    assert row.values == {"id": "x"}
    assert not list(tmp_path.parent.glob("escaped*"))
