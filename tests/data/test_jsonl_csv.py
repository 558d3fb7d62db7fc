"""Lists as other people's programs write them: encodings, delimiters, large cells, quotes that are never closed."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import pytest

from earl_cli.data.columns import ExampleColumns, find_columns
from earl_cli.data.image_cells import image_bytes
from earl_cli.data.sources.base import BadRowError, Row, row_count
from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.errors import InputError

COLUMNS = ("source", "edited", "instruction")
ROWS = [["a.png", "b.png", 'say "hé" Ċ ਅ, twice; or\tnot'], ["c.png", "d.png", "two\nlines"]]


def read(path: Path) -> list[list[str] | str]:
    """Every row's cells, or the message of a reject."""
    source = open_source(DataLocation(str(path)))
    found = source.read(range(row_count(source)), COLUMNS)
    return [[row.values[name] for name in COLUMNS] if isinstance(row, Row) else str(row) for row in found]


def write(path: Path, delimiter: str, encoding: str, rows: list[list[str]]) -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([COLUMNS, *rows])
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv", "PAIRS.CSV"])
def test_a_table_is_read_as_it_was_written(name: str, delimiter: str, encoding: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, delimiter, encoding, ROWS)) == ROWS


def test_utf16_of_the_other_order(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_bytes(b"\xfe\xff" + write(tmp_path / "x.tsv", "\t", "utf-16-be", ROWS).read_bytes())
    assert read(tmp_path / "pairs.tsv") == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_lines_of_windows(encoding: str, tmp_path: Path) -> None:
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) for row in ROWS]
    (tmp_path / "pairs.jsonl").write_bytes("\r\n\r\n".join(lines).encode(encoding))
    assert read(tmp_path / "pairs.jsonl") == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_objects(encoding: str, indent: int | None, tmp_path: Path) -> None:
    rows: list[object] = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    path = tmp_path / "pairs.json"
    path.write_bytes(("\r\n" + json.dumps([*rows, 7, *rows], ensure_ascii=False, indent=indent)).encode(encoding))
    first, second, bad, *others = read(path)
    assert [first, second] == others == ROWS
    assert "a row must be a JSON object" in bad
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path) == ROWS
    assert row_count(open_source(DataLocation(str(tmp_path)))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": 2]', r"pairs\.json, line 2: not valid JSON"),
        ('[{"a": 1}\n\n{"a": 2}]', r"line 3: not valid JSON: neither a comma nor the end"),
        ('[{"a": 1}', "not valid JSON"),
        ('[{"a": 1}] x', "not valid JSON"),
        (" [ ] ", "the list of examples is empty"),
        ("[7]", "no row of this list can be read"),
        ('{"a": {"b": 1}}', "no column for"),
    ],
)
def test_an_invalid_array_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(InputError, match=message):
        find_columns(ExampleColumns(), open_source(DataLocation(str(tmp_path / "pairs.json"))))
    (tmp_path / "pairs.jsonl").write_text('{"source": "a"}')
    assert list(open_source(DataLocation(str(tmp_path))).columns) == [
        "source"
    ]  # beside another list a .json may be anything


def test_the_first_lines_commas_are_not_its_delimiter(tmp_path: Path) -> None:
    text = "source;edited;instruction;the note, if any\na;b;snow;\nc;d;rain, please;x\n"
    (tmp_path / "pairs.csv").write_text(text)
    assert read(tmp_path / "pairs.csv") == [["a", "b", "snow"], ["c", "d", "rain, please"]]


def test_cells_may_hold_whole_images(tmp_path: Path) -> None:
    content = bytes(300_000)
    path = write(tmp_path / "pairs.tsv", "\t", "utf-8", [[base64.b64encode(content).decode(), "b", "snow"]])
    ((source, _, _),) = read(path)
    assert image_bytes(source, str(tmp_path)) == content


def test_text_in_another_encoding_is_a_reject(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", ",", "cp1252", [["a", "b", "snow"], ["a", "b", "café"], ["c", "d", "rain"]])
    first, bad, last = read(path)
    assert (first, last) == (["a", "b", "snow"], ["c", "d", "rain"])
    assert "line 3: not a valid row: not UTF-8 text (save it as UTF-8" in bad
    path.write_bytes("source,edited,instruction,café\n".encode("cp1252"))
    with pytest.raises(InputError, match="this list, or its columns' names, is no UTF-8 text"):
        read(path)
    path.write_bytes("source,edited\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="no UTF-8 text: there are zero bytes"):
        read(path)


def test_an_unclosed_quote_rejects_its_own_row_only(tmp_path: Path) -> None:
    rows = ["source\tedited\tinstruction", 'a\tb\t"snow', "c\td\train", "", 'e\tf\t12" wheels', "g\th\tfog"]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    bad, *others = read(tmp_path / "pairs.tsv")
    assert "line 2: not a valid row" in bad
    assert others == [["c", "d", "rain"], ["e", "f", '12" wheels'], ["g", "h", "fog"]]


def test_repeated_column_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("image,image,instruction\na,b,snow\n")
    with pytest.raises(InputError, match="several columns have the same name: 'image'"):
        read(tmp_path / "pairs.csv")


def test_columns_that_only_later_rows_have_are_there(tmp_path: Path) -> None:
    rows: list[object] = [[1], {"id": 1}, {"source": "a", "edited": "b", "instruction": "snow"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(DataLocation(str(tmp_path)))
    assert list(source.columns) == ["id", *COLUMNS]
    kinds = [type(row) for row in source.read(range(3), COLUMNS)]
    assert kinds == [BadRowError, Row, Row]


HOSTILE = [
    "[" * 100_000,
    '{"source": ' * 100_000,
    "9" * 6000,
    '{"a": ' + "9" * 6000 + "}",
    '{"a": ' + "[" * 300 + "]" * 300 + "}",
]


@pytest.mark.parametrize("row", HOSTILE, ids=range(len(HOSTILE)))
def test_no_line_ends_a_list(row: str, tmp_path: Path) -> None:
    good = json.dumps(dict(zip(COLUMNS, ROWS[0], strict=True)))
    (tmp_path / "pairs.jsonl").write_text(f"{row}\n{good}\n{row}\n")
    bad, found, _ = read(tmp_path / "pairs.jsonl")
    assert found == ROWS[0]
    assert "line 1: not a valid row: " in bad


@pytest.mark.parametrize(
    "row", ["[" * 5000 + "]" * 5000, '{"a": "]\\"", "b": ' + "9" * 6000 + "}"], ids=["deep", "digits"]
)
def test_no_element_ends_an_array(row: str, tmp_path: Path) -> None:
    good = json.dumps(dict(zip(COLUMNS, ROWS[0], strict=True)))
    (tmp_path / "pairs.json").write_text(f"[{good},\n{row},\n{good}]")
    first, bad, last = read(tmp_path / "pairs.json")
    assert [first, last] == [ROWS[0], ROWS[0]]
    assert "line 2: not a valid row: " in bad
