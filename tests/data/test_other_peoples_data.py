"""What other people's data are like, in every kind of source: the same pairs come out, the same rows are left out."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from earl_cli.data.columns import ExampleColumns, find_columns, read_example
from earl_cli.data.image_cells import image_bytes
from earl_cli.data.preprocess import PreprocessSettings, prepare
from earl_cli.data.shard_plan import RowOrder
from earl_cli.data.sources.base import BadRowError, Row, row_count
from earl_cli.data.sources.parquet import ParquetSource
from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.data.store import Reject, write_shard

from .conftest import random_image

Rows = list[dict[str, Any]]
Kind = Callable[[Path, Rows], None]
BEFORE, AFTER = random_image(1, (8, 6)), random_image(2, (8, 6))


def json_lines(folder: Path, rows: Rows) -> None:
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def json_array(folder: Path, rows: Rows) -> None:
    (folder / "pairs.json").write_text(json.dumps(rows, ensure_ascii=False))


def table(name: str, delimiter: str) -> Kind:
    def write(folder: Path, rows: Rows) -> None:
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[-1]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)

    return write


def image_folder(folder: Path, rows: Rows) -> None:
    """As `datasets` has it: a list within the folder of a split, whose columns of files are called so."""
    names = {"source": "file_name", "edited": "edited_file_name"}
    renamed = [{names.get(name, name): value for name, value in row.items()} for row in rows]
    table("metadata.csv", ",")(folder, renamed)
    (folder / "train").mkdir()
    for path in list(folder.iterdir()):
        if path.name != "train":
            path.rename(folder / "train" / path.name)


def parquet(folder: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")


def saved(folder: Path, rows: Rows) -> None:
    from datasets import Dataset

    Dataset(pa.Table.from_pylist(rows)).save_to_disk(str(folder))


def tars(folder: Path, rows: Rows) -> None:
    with tarfile.open(folder / "data.tar", "w") as archive:
        for number, row in enumerate(rows):
            files = {f"{name}.png": value for name, value in row.items() if isinstance(value, bytes)}
            texts = {name: value for name, value in row.items() if value is not None and not isinstance(value, bytes)}
            for suffix, content in {**files, "json": json.dumps(texts).encode()}.items():
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


LISTS: dict[str, Kind] = {
    "json lines": json_lines,
    "json": json_array,
    "csv": table("pairs.csv", ","),
    "tsv": table("pairs.tsv", "\t"),
}
ARROW: dict[str, Kind] = {"parquet": parquet, "saved": saved}
WITH_PATHS = {**LISTS, **ARROW, "folder": image_folder}
ALL = {**LISTS, **ARROW, "tars": tars}


def both_sides(kind: str, folder: Path) -> tuple[Any, Any]:
    """The two images as this kind of data has them."""
    (folder / "a.png").write_bytes(BEFORE)
    (folder / "b.png").write_bytes(AFTER)
    return ("a.png", "b.png") if kind in LISTS else (BEFORE, AFTER)


def examples(folder: Path) -> list[tuple[bytes, bytes, str] | str]:
    """All pairs as they are read, and of the others why they were left out."""
    source = open_source(DataLocation(str(folder)))
    named = find_columns(ExampleColumns(), source)
    found: list[tuple[bytes, bytes, str] | str] = []
    for chunk in RowOrder(source.bounds).chunks(0, row_count(source)):
        for row in source.read(chunk, named.names):
            try:
                if isinstance(row, BadRowError):
                    raise row
                assert isinstance(row, Row)
                example = read_example(row, named)
                images = (image_bytes(value, source.base) for value in (example.source, example.target))
                found.append((*images, example.instruction))  # type: ignore[arg-type]
            except BadRowError as error:
                found.append(error.what)
    return found


@pytest.mark.parametrize("kind", WITH_PATHS)
@pytest.mark.parametrize("named", ["f\u00fcr/\u00e9.png", "fu\u0308r/e\u0301.png", "f\u00fcr\\\u00e9.png"])
def test_files_are_found_in_other_spellings(kind: str, named: str, tmp_path: Path) -> None:
    """The list in NFC, NFD or with backslashes; on disk the folder is in NFC, the file in NFD."""
    (tmp_path / "f\u00fcr").mkdir()
    (tmp_path / "f\u00fcr" / "e\u0301.png").write_bytes(BEFORE)
    (tmp_path / "b.png").write_bytes(AFTER)
    row = {"source": named, "edited": "b.png", "instruction": "snow"}
    WITH_PATHS[kind](tmp_path, [row])
    assert examples(tmp_path) == [(BEFORE, AFTER, "snow")]


@pytest.mark.parametrize("kind", ARROW)
def test_paths_are_used_where_bytes_are_empty(kind: str, tmp_path: Path) -> None:
    (tmp_path / "\u00e9.png").write_bytes(BEFORE)
    elsewhere = tmp_path / "b.png"
    elsewhere.write_bytes(AFTER)
    sides = {"source": {"bytes": None, "path": "e\u0301.png"}, "edited": {"bytes": None, "path": str(elsewhere)}}
    ARROW[kind](tmp_path, [{**sides, "instruction": "snow"}])
    assert examples(tmp_path) == [(BEFORE, AFTER, "snow")]


@pytest.mark.parametrize("kind", ALL)
def test_captions_are_no_images(kind: str, tmp_path: Path) -> None:
    """HQ-Edit's columns."""
    sides = dict(zip(("input_image", "output_image"), both_sides(kind, tmp_path), strict=True))
    texts = {"input": "a cup", "output": "a grey cup", "edit": "make it grey", "inverse_edit": "colour it"}
    ALL[kind](tmp_path, [{**texts, **sides}] * 3)
    assert examples(tmp_path) == [(BEFORE, AFTER, "make it grey")] * 3


@pytest.mark.parametrize("kind", ALL)
def test_an_invalid_first_row_is_one_reject(kind: str, tmp_path: Path) -> None:
    sides = dict(zip(("source", "edited"), both_sides(kind, tmp_path), strict=True))
    rows: Rows = [{"source": None, "edited": None, "instruction": None}, {**sides, "instruction": "snow"}]
    ALL[kind](tmp_path, rows)
    bad, good = examples(tmp_path)
    assert good == (BEFORE, AFTER, "snow")
    assert isinstance(bad, str)
    assert "instruction" in bad


@pytest.mark.parametrize("kind", ["json lines", "json", *ARROW])
def test_a_list_of_one_image_is_an_image(kind: str, tmp_path: Path) -> None:
    before, after = both_sides(kind, tmp_path)
    rows = [{"input_images": [before] * count, "output_images": [after], "prompt": "grey"} for count in (1, 2, 0)]
    {**LISTS, **ARROW}[kind](tmp_path, rows)
    assert examples(tmp_path) == [
        (BEFORE, AFTER, "grey"),
        "a list of 2, where one image is expected",
        "a list of 0, where one image is expected",
    ]


@pytest.mark.parametrize("kind", {**LISTS, **ARROW})
def test_cells_of_any_size(kind: str, tmp_path: Path) -> None:
    large = base64.b64encode(bytes(range(256)) * 1200).decode()
    {**LISTS, **ARROW}[kind](tmp_path, [{"source": large, "edited": large, "instruction": "snow"}] * 2)
    content = base64.b64decode(large)
    assert examples(tmp_path) == [(content, content, "snow")] * 2


@pytest.mark.parametrize("kind", ALL)
def test_ids_may_repeat(kind: str, tmp_path: Path) -> None:
    sides = dict(zip(("source", "edited"), both_sides(kind, tmp_path), strict=True))
    ALL[kind](tmp_path, [{"id": "same", **sides, "instruction": "snow"}] * 2)
    assert examples(tmp_path) == [(BEFORE, AFTER, "snow")] * 2


def test_cells_with_invalid_utf8_reject_their_row(tmp_path: Path) -> None:
    content = random_image(0, (8, 8))
    texts = pa.array([b"snow", b"\xff", b"fog"]).cast(pa.string(), safe=False)
    when = pa.array([0, 0, 2**62], pa.timestamp("us"))
    table = pa.table({"source": [content] * 3, "edited": [content] * 3, "instruction": texts, "id": when})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(DataLocation(str(tmp_path)))
    good, bad, far = source.read([0, 1, 2], ["instruction", "id"])
    assert isinstance(good, Row)
    assert isinstance(bad, BadRowError)
    assert "row 2: not a valid row: " in str(bad)
    assert isinstance(far, BadRowError)


def test_a_lone_surrogate_in_a_path_is_a_reject(tmp_path: Path) -> None:
    rows = [{"source": "\ud800.png", "edited": "a.png", "instruction": "snow", "id": "\ud800"}]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[0]))
    source = open_source(DataLocation(str(tmp_path)))
    (reject,) = prepare(PreprocessSettings(source, find_columns(ExampleColumns(), source), 64, 8), [0])
    assert isinstance(reject, Reject)
    write_shard(tmp_path, 0, [], [reject])


def test_rows_that_a_file_lacks_are_rejects(tmp_path: Path) -> None:
    pq.write_table(pa.table({"instruction": ["snow", "fog"]}), tmp_path / "a.parquet")
    source = open_source(DataLocation(str(tmp_path)))
    assert isinstance(source, ParquetSource)
    first, last, absent = replace(source, bounds=np.array([0, 3])).read([0, 1, 2], ["instruction"])
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert "row 3: the data can't be read: there are fewer rows than the file says" in str(absent)
