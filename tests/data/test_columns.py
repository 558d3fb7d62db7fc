"""Which column holds what, and which rows make a pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from earl_cli.data.columns import SAMPLED_ROWS, ExampleColumns, find_columns, find_preset, presets, read_example
from earl_cli.data.sources.base import BadRowError, Row, Source
from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.errors import InputError, UsageError

NAMED = ExampleColumns("a", "b", "ask", "n", ("plan",))
ROW = {"a": "a.png", "b": b"PNG", "ask": "make it snowy", "n": 7, "plan": "whiten"}
PNG = {"bytes": b"\x89PNG", "path": None}


def listed(folder: Path, *rows: dict[str, Any]) -> Source:
    folder.mkdir(exist_ok=True)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_source(DataLocation(str(folder)))


def table(folder: Path, columns: dict[str, Any]) -> Source:
    pq.write_table(pa.table(columns), folder / "data.parquet")
    return open_source(DataLocation(str(folder / "data.parquet")))


def named(folder: Path, *names: str) -> Source:
    return listed(folder, dict.fromkeys(names, "x"))


def test_common_names_are_found(tmp_path: Path) -> None:
    there = ["src_img", "edited_img", "edited_prompt_list", "omni_edit_id", "task"]
    found = find_columns(ExampleColumns(), named(tmp_path, *there), reason="")
    assert found == ExampleColumns("src_img", "edited_img", "edited_prompt_list", "omni_edit_id")
    assert find_columns(ExampleColumns(), named(tmp_path, "source", "edited", "instruction")).id is None
    assert find_columns(
        ExampleColumns(), named(tmp_path, "Source Image", "EDITED-image", "Edit_Instruction")
    ) == ExampleColumns("Source Image", "EDITED-image", "Edit_Instruction")
    files = named(tmp_path, "file_name", "edited_file_name", "instruction", "id")
    assert find_columns(ExampleColumns(), files) == ExampleColumns("file_name", "edited_file_name", "instruction", "id")


def test_options_override_common_names(tmp_path: Path) -> None:
    there = named(tmp_path, "source", "photo", "edited", "instruction", "plan")
    assert find_columns(ExampleColumns(source="photo", thoughts=("plan",)), there).source == "photo"


def test_captions_are_no_images_under_any_name(tmp_path: Path) -> None:
    """HQ-Edit's columns: by their types where there are types, else by a sample of the rows."""
    texts = {"input": "a cup", "output": "a grey cup", "edit": "make it grey", "inverse_edit": "colour it"}
    typed = table(tmp_path, {name: [value] * 2 for name, value in texts.items()} | {
        "input_image": [PNG] * 2, "output_image": [PNG] * 2
    })  # fmt: skip
    expected = ExampleColumns("input_image", "output_image", "edit")
    assert find_columns(ExampleColumns(), typed) == expected
    row = {**texts, "input_image": "pictures/a", "output_image": "pictures/b.jpg"}
    (tmp_path / "lines" / "pictures").mkdir(parents=True)
    (tmp_path / "lines" / "pictures" / "a").write_bytes(b"")
    broken = dict.fromkeys(row)  # a first row without anything says nothing
    assert find_columns(ExampleColumns(), listed(tmp_path / "lines", broken, *[row] * SAMPLED_ROWS)) == expected
    images = listed(tmp_path / "lines", {**row, "edit_prompt": "sketch.png"})
    assert find_columns(ExampleColumns(), images).instruction == "edit"


def test_a_column_of_origins_is_no_image(tmp_path: Path) -> None:
    row = {
        "source": "flickr",
        "source_path": "a.png",
        "edited": "by hand",
        "edited_url": "https://x/b",
        "prompt": "grey",
    }
    assert find_columns(ExampleColumns(), listed(tmp_path, row)) == ExampleColumns(
        "source_path", "edited_url", "prompt"
    )


def test_a_column_of_numbers_is_neither_image_nor_instruction(tmp_path: Path) -> None:
    columns = {"source": [1], "image": [PNG], "edited": [[PNG]], "prompt": [3], "edit": ["grey"]}
    assert find_columns(ExampleColumns(), table(tmp_path, columns)) == ExampleColumns("image", "edited", "edit")


def test_columns_within_others_have_dotted_names(tmp_path: Path) -> None:
    wanted = ExampleColumns("pictures.before", "pictures.after", "texts.edit", "meta.x", ("texts.plan",))
    row = {
        "pictures": {"before": "a.png", "after": "b.png"}, "texts": {"edit": "snow", "plan": "p"}, "meta.x": "7"
    }  # fmt: skip
    for source in (table(tmp_path, {name: [value] for name, value in row.items()}), listed(tmp_path / "lines", row)):
        found = find_columns(wanted, source)
        (read,) = source.read([0], found.names)
        assert isinstance(read, Row)
        example = read_example(read, found)
        assert (example.source, example.target, example.instruction, example.id) == ("a.png", "b.png", "snow", "7")
        assert example.thoughts == {"texts.plan": "p"}
    with pytest.raises(InputError, match=r"no column 'pictures\.middle'.*pictures, pictures\.before"):
        find_columns(ExampleColumns("pictures.middle"), open_source(DataLocation(str(tmp_path / "data.parquet"))))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (ExampleColumns(source="photo"), "no column 'photo'.*source, edited, instruction.*--original-image-key"),
        (ExampleColumns(id="n"), "no column 'n'.*--id-key"),
        (ExampleColumns(thoughts=("plan",)), "no column 'plan'.*--cot-keys"),
    ],
)
def test_a_missing_column_lists_the_available_ones(wanted: ExampleColumns, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        find_columns(wanted, named(tmp_path, "source", "edited", "instruction"))


def test_all_missing_columns_are_named_at_once(tmp_path: Path) -> None:
    there = table(tmp_path, {"pic": [PNG], "x": ["y"]})
    with pytest.raises(InputError) as caught:
        find_columns(
            ExampleColumns(target="after", thoughts=("plan", "boxes")), there, reason="--preset p expects after"
        )
    assert caught.value.what.startswith(
        "no column for --original-image-key under a common name (source, original_image"
    )
    assert "; no column 'after'; no column for --edit-instruction under a common name (instruction" in caught.value.what
    assert caught.value.what.endswith("; no column 'plan'; no column 'boxes'")
    assert caught.value.hint == (
        "--preset p expects after; the columns are pic (images), x; name the right ones with "
        "--original-image-key, --edited-image, --edit-instruction, --cot-keys"
    )


def test_a_row_becomes_an_example() -> None:
    example = read_example(Row(4, "here", ROW), NAMED)
    assert (example.row, example.id, example.instruction, example.thoughts) == (
        4,
        "7",
        "make it snowy",
        {"plan": "whiten"},
    )
    assert (example.source, example.target) == ("a.png", b"PNG")


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"ask": "  "}, "instruction", "the instruction is '  '"),
        ({"ask": None}, "instruction", "the instruction is None"),
        ({"ask": []}, "instruction", r"the instruction is \[\]"),
        ({"ask": "snow \ud83d"}, "text", "it has a lone surrogate"),
        ({"plan": "\ud83d"}, "text", "it has a lone surrogate"),
        ({"a": None}, "image", "there is no a"),
        ({"b": None}, "image", "there is no b"),
    ],
)
def test_an_invalid_row_has_a_kind_and_a_reason(changed: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(BadRowError, match=f"here: {message}") as caught:
        read_example(Row(0, "here", {**ROW, **changed}), NAMED)
    assert caught.value.kind == kind


def test_the_first_of_several_instructions_is_used() -> None:
    for ask in (["first", "second"], "['first', 'second']", ' ["first"]'):  # as tables spell lists
        assert read_example(Row(0, "", {**ROW, "ask": ask}), NAMED).instruction == "first"
    for ask in ("['a' 'b']", "[first] then", "[1, 2]", "[" * 9999):
        assert read_example(Row(0, "", {**ROW, "ask": ask}), NAMED).instruction == ask


def test_missing_chains_of_thought_are_left_out() -> None:
    assert read_example(Row(0, "", {**ROW, "plan": None}), NAMED).thoughts == {}
    assert read_example(Row(0, "", {**ROW, "plan": ""}), NAMED).thoughts == {"plan": ""}
    assert read_example(Row(0, "", {**ROW, "plan": {"box": [1, 2]}}), NAMED).thoughts == {"plan": '{"box": [1, 2]}'}


def test_an_id_can_be_stored() -> None:
    assert read_example(Row(0, "", {**ROW, "n": "a\ud83d"}), NAMED).id == "a?"


def test_without_an_id_the_number_counts_from_one() -> None:
    assert read_example(Row(41, "", ROW), ExampleColumns("a", "b", "ask")).id == "00000042"


def test_presets_name_the_columns_of_an_example() -> None:
    assert list(presets()) == ["omniedit", "magic_brush", "human-edit", "aurora_ag", "aurora_kubric", "ss2", "vismin"]
    for preset in presets().values():
        assert preset.columns.source
        assert preset.columns.target
        assert preset.columns.instruction
        assert (preset.location is None) == (preset.split is None)
    with pytest.raises(UsageError, match=r"no preset 'omni'.*omniedit"):
        find_preset("omni")
