"""Which column holds what, and which rows make a pair."""

from __future__ import annotations

from typing import Any

import pytest

from earl_cli.data.pairs import Columns, find_columns, pair_of
from earl_cli.data.presets import PRESETS, find_preset
from earl_cli.data.sources import BadRowError, Row
from earl_cli.errors import InputError, UsageError

NAMED = Columns("a", "b", "ask", "n", ("plan",))
ROW = {"a": "a.png", "b": b"PNG", "ask": "make it snowy", "n": 7, "plan": "whiten"}


def test_usual_names_are_found() -> None:
    found = find_columns(Columns(), ["src_img", "edited_img", "edited_prompt_list", "omni_edit_id", "task"], "data")
    assert found == Columns("src_img", "edited_img", "edited_prompt_list", "omni_edit_id")
    assert find_columns(Columns(), ["source", "edited", "instruction"], "data").id is None


def test_flags_win_over_usual_names() -> None:
    there = ["source", "photo", "edited", "instruction", "plan"]
    assert find_columns(Columns(source="photo", thoughts=("plan",)), there, "data").source == "photo"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Columns(source="photo"), "no column 'photo'.*source, edited, instruction.*--original-image-key"),
        (Columns(id="n"), "no column 'n'.*--id-key"),
        (Columns(thoughts=("plan",)), "no column 'plan'.*--CoT-keys"),
    ],
)
def test_a_column_that_is_not_there_lists_those_that_are(wanted: Columns, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_columns(wanted, ["source", "edited", "instruction"], "data")
    with pytest.raises(InputError, match=r"no column for --edited-image under a usual name.*the columns are source, x"):
        find_columns(Columns(), ["source", "x"], "data")


def test_a_row_becomes_a_pair() -> None:
    pair = pair_of(Row(4, "here", ROW), NAMED)
    assert (pair.row, pair.id, pair.instruction, pair.thoughts) == (4, "7", "make it snowy", {"plan": "whiten"})
    assert (pair.source, pair.target) == ("a.png", b"PNG")


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"ask": "  "}, "instruction", "the instruction is '  '"),
        ({"ask": None}, "instruction", "the instruction is None"),
        ({"ask": []}, "instruction", r"the instruction is \[\]"),
        ({"a": None}, "picture", "there is no a"),
        ({"b": None}, "picture", "there is no b"),
    ],
)
def test_a_bad_row_says_what_kind_it_is(changed: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(BadRowError, match=f"here: {message}") as caught:
        pair_of(Row(0, "here", {**ROW, **changed}), NAMED)
    assert caught.value.kind == kind


def test_of_several_instructions_the_first_counts() -> None:
    assert pair_of(Row(0, "", {**ROW, "ask": ["first", "second"]}), NAMED).instruction == "first"


def test_thinking_that_is_not_there_is_left_out() -> None:
    assert pair_of(Row(0, "", {**ROW, "plan": None}), NAMED).thoughts == {}
    assert pair_of(Row(0, "", {**ROW, "plan": {"box": [1, 2]}}), NAMED).thoughts == {"plan": '{"box": [1, 2]}'}


def test_without_an_id_the_number_counts_from_one() -> None:
    assert pair_of(Row(41, "", ROW), Columns("a", "b", "ask")).id == "00000042"


def test_presets_name_whole_pairs() -> None:
    for preset in PRESETS.values():
        assert preset.columns.source
        assert preset.columns.target
        assert preset.columns.instruction
    with pytest.raises(UsageError, match=r"no preset 'omni'.*omniedit"):
        find_preset("omni")
