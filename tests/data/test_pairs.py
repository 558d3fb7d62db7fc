"""Lists of pairs: the usual column names, the flags that override them, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from earl_cli.data.pairs import Columns, read_pairs
from earl_cli.errors import InputError


def listing(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


ROW = {"source": "a.png", "edited": "b.png", "instruction": "make it snowy"}


def test_a_folder_with_one_list(tmp_path: Path) -> None:
    listing(tmp_path, ROW, "", {**ROW, "instruction": ["first counts", "second"]})
    first, second = read_pairs(tmp_path, Columns())
    assert (first.source, first.target) == (tmp_path / "a.png", tmp_path / "b.png")
    assert (first.id, second.id) == ("00000001", "00000003")
    assert second.instruction == "first counts"


def test_columns_by_name(tmp_path: Path) -> None:
    path = listing(tmp_path, {"x": "a.png", "y": "b.png", "z": "go", "n": 7, "plan": "look", "other": 1})
    (pair,) = read_pairs(path, Columns("x", "y", "z", "n", ("plan",)))
    assert (pair.id, pair.instruction, pair.thoughts) == ("7", "go", {"plan": "look"})


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"source": "a", "instruction": "x"},
            Columns(),
            "no column for the edited picture.*columns are source, instruction",
        ),
        (ROW, Columns(source="photo"), "no column 'photo'.*source, edited, instruction"),
        ({**ROW, "instruction": "  "}, Columns(), "the instruction is '  '"),
        ({**ROW, "source": 3}, Columns(), "3 is not the path of a picture"),
        ("{", Columns(), "line 2: not valid JSON"),
        ([1], Columns(), "a row must be a JSON object"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: Any, columns: Columns, message: str) -> None:
    good = {**ROW, "photo": "p.png"}
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(listing(tmp_path, good, row), columns)
    assert "line 2" in str(caught.value)


def test_an_id_counts_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'x' is already that of line 1"):
        read_pairs(listing(tmp_path, {**ROW, "id": "x"}, {**ROW, "id": "x"}), Columns())


def test_what_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.jsonl file"):
        read_pairs(tmp_path, Columns())
    with pytest.raises(InputError, match="no such file"):
        read_pairs(tmp_path / "gone", Columns())
    listing(tmp_path)
    with pytest.raises(InputError, match="is empty"):
        read_pairs(tmp_path, Columns())
    (tmp_path / "more.jsonl").write_text("{}")
    with pytest.raises(InputError, match="several lists"):
        read_pairs(tmp_path, Columns())
