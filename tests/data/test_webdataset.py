"""Samples of tars, each for itself: no sample decides for the others, and what isn't clear is a reject."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from earl_cli.data.columns import ExampleColumns, find_columns
from earl_cli.data.sources.base import BadRowError, Row, Source, row_count
from earl_cli.data.sources.registry import DataLocation, open_source

GOOD = {"source.png": b"before", "edited.jpg": b"after", "json": json.dumps({"instruction": "snow"}).encode()}
COLUMNS = ("source", "edited", "instruction", "__key__")


def tar(folder: Path, *samples: tuple[str, dict[str, bytes]]) -> Source:
    with tarfile.open(folder / "data.tar", "w") as archive:
        for key, files in samples:
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return open_source(DataLocation(str(folder)))


def read(source: Source) -> list[dict[str, object] | str]:
    found = source.read(range(row_count(source)), COLUMNS)
    return [dict(row.values) if isinstance(row, Row) else str(row) for row in found]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({**GOOD, "json": b"{bad"}, "its .json is not valid JSON: Expecting"),
        ({**GOOD, "json": b"\xff"}, "its .json is not valid JSON"),
        ({**GOOD, "json": b"[]"}, "its .json is no object"),
        ({**GOOD, "source.jpg": b"?"}, "there are two files for source"),
    ],
)
def test_an_invalid_first_sample_is_one_reject(first: dict[str, bytes], message: str, tmp_path: Path) -> None:
    source = tar(tmp_path, ("a", first), ("b", GOOD), ("c", GOOD))
    assert find_columns(ExampleColumns(), source) == ExampleColumns("source", "edited", "instruction", "__key__")
    bad, *others = read(source)
    assert message in str(bad)
    assert [row["__key__"] for row in others if isinstance(row, dict)] == ["b", "c"]


def test_a_first_sample_without_json_names_no_fewer_columns(tmp_path: Path) -> None:
    source = tar(tmp_path, ("a", {"source.png": b"before"}), ("b", GOOD))
    assert set(source.columns) == set(COLUMNS)
    assert read(source)[0] == {"source": b"before", "__key__": "a"}


def test_several_json_objects_and_image_names_are_columns(tmp_path: Path) -> None:
    more = {"json": b'{"source": "flickr", "instruction": "fog"}', "meta.json": b'{"plan": "grey"}', "txt": b" hi\n"}
    source = tar(tmp_path, ("a/1", {**more, **GOOD, **more}), ("b/1", GOOD), ("b/._1", {"source.png": b"of macOS"}))
    assert source.columns["source"] == "image"
    first, second = source.read([0, 1], (*COLUMNS, "meta.plan", "txt"))
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.values == {
        "source": b"before", "edited": b"after", "instruction": "fog", "__key__": "a/1",
        "meta.plan": "grey", "txt": "hi",
    }  # fmt: skip
    assert second.values["__key__"] == "b/1"
    assert row_count(source) == 2


def test_the_files_of_a_sample_belong_together_in_any_unicode_form(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for form, suffix in (("e\u0301", "source.png"), ("\u00e9", "edited.jpg"), ("e\u0301", "json")):
            member = tarfile.TarInfo(f"{form}.{suffix}")
            member.size = len(GOOD[suffix])
            archive.addfile(member, io.BytesIO(GOOD[suffix]))
    assert [row for row in read(open_source(DataLocation(str(tmp_path)))) if isinstance(row, dict)] == [
        {"source": b"before", "edited": b"after", "instruction": "snow", "__key__": "\u00e9"}
    ]


def test_a_damaged_sample_is_one_reject(tmp_path: Path) -> None:
    source = tar(tmp_path, ("a", GOOD), ("b", GOOD))
    content = bytearray((tmp_path / "data.tar").read_bytes())
    content[148:156] = b"\xff" * 8  # the first header's checksum, after the tar was opened
    (tmp_path / "data.tar").write_bytes(content)
    first, second = source.read([0, 1], COLUMNS)
    assert isinstance(first, BadRowError)
    assert isinstance(second, Row)


def damaged(folder: Path, change: Callable[[bytearray, int], None]) -> list[dict[str, object] | str]:
    """What is read of a tar whose third header, that of the second sample's first file, was changed."""
    tar(folder, ("a", {"source.png": b"1", "edited.png": b"2"}), ("b", GOOD), ("c", GOOD))
    content = bytearray((folder / "data.tar").read_bytes())
    header = content.index(b"b.source.png")
    change(content, header)
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    (folder / "data.tar").write_bytes(content)
    return read(open_source(DataLocation(str(folder))))


def replaced(at: int, new: bytes) -> Callable[[bytearray, int], None]:
    def change(content: bytearray, header: int) -> None:
        content[header + at : header + at + len(new)] = new

    return change


@pytest.mark.parametrize(
    "size",
    [b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"\x80" + b"\0" * 7 + b"\x7f\xff\xff\xff", b"77777777777\0"],
    ids=["negative", "largest", "two gigabytes", "octal"],
)
def test_a_false_size_is_a_reject(size: bytes, tmp_path: Path) -> None:
    first, *others = damaged(tmp_path, replaced(124, size))
    assert isinstance(first, dict)
    assert (first["__key__"], first["source"]) == ("a", b"1")
    assert all(isinstance(row, str) for row in others)
    assert "breaks off here, what follows is lost" in str(others[-1])


def test_an_invalid_header_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    tar(tmp_path, ("a", GOOD), ("b", GOOD), ("c", GOOD))
    content = bytearray((tmp_path / "data.tar").read_bytes())
    header = content.index(b"b.source.png")
    content[header + 148 : header + 156] = b"\xff" * 8
    (tmp_path / "data.tar").write_bytes(content)
    first, last = read(open_source(DataLocation(str(tmp_path))))
    assert isinstance(first, dict)
    assert f"breaks off here, what follows is lost: there is no header at byte {header:,}" in str(last)


def test_headers_of_headers_and_sparse_files_are_rejects(tmp_path: Path) -> None:
    sparse = damaged(tmp_path, replaced(156, b"S"))
    assert "b.source.png is a sparse file" in str(sparse[1])
    assert isinstance(sparse[2], dict)

    def long_names(content: bytearray, header: int) -> None:
        again = tarfile.TarInfo("././@LongLink")
        again.type = tarfile.GNUTYPE_LONGNAME
        content[header:header] = again.tobuf(tarfile.USTAR_FORMAT) * 5000

    endless = damaged(tmp_path, long_names)
    assert isinstance(endless[0], dict)
    assert "nested too deeply" in str(endless[1])
