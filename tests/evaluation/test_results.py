"""Lines on disk: published ones load, ours come back as they were, damage is named, half a line isn't there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluations import random_image

from earl_cli.errors import InputError
from earl_cli.evaluation.results import (
    LINES,
    RUN,
    EditResult,
    ScoredResult,
    adopt,
    find_results,
    lines_of,
    load_run,
    to_line,
    write_object,
    write_scored,
)
from earl_cli.evaluation.statistics import summarize

PUBLISHED = {
    "original_image": "images/0_source.png",
    "edited_image": "images/0_edited.png",
    "gt_edited_image": None,
    "overview": "images/0_overview.png",
    "grounding_image": None,
    "edit_instruction": "make it snowy",
    "reasoning": "roof [1, 2, 3, 4]",
    "id": 17,
    "task": "weather",
}
SCORES = {
    "vie_sc": 6.0,
    "vie_pq": 8.0,
    "vie_all": 6.93,
    "edit_success": 6,
    "overedit": 9,
    "looks_natural": 8,
    "no_artifact": 8,
}


def write_lines(path: Path, *rows: dict[str, object], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + end, encoding="utf-8")
    return path


def own_folder(folder: Path) -> Path:
    write_lines(folder / LINES / "0-of-1.jsonl")
    write_object(folder / RUN, {"benchmark": {"name": "b"}, "editor": {"name": "e"}})
    return folder


@pytest.mark.parametrize("end", ["\n", ""])
def test_published_results_load_with_and_without_scores(tmp_path: Path, end: str) -> None:
    file = write_lines(tmp_path / "model.jsonl", PUBLISHED, {**PUBLISHED, **SCORES, "new_field": 1}, end=end)
    run = load_run(file)
    assert run.editor == "model"
    assert [line.result.id for line in run.lines] == ["17", "17"]
    assert run.lines[0].scores == {}
    assert run.lines[1].scores == SCORES
    assert run.lines[1].result.number == 1
    assert run.lines[0].result.reasoning == "roof [1, 2, 3, 4]"


def test_a_scored_line_has_the_published_names_and_comes_back(tmp_path: Path) -> None:
    result = EditResult(3, 1, "x", "go", "o.png", "e.png", task="t", picture="p", seconds=0.5)
    line = ScoredResult(result, {"vie_sc": 4.0}, {"vie_pq": "no answer"}, {"sc": "half of it"})
    written = to_line(line)
    assert written["vie_sc"] == 4.0
    assert written["vie_pq"] is None
    assert written["sc_explanation"] == "half of it"
    folder = own_folder(tmp_path / "run")
    write_scored(folder, [line], {"judge": {"model": "j"}})
    run = load_run(folder)
    assert run.lines == (line,)
    assert run.scoring == {"judge": {"model": "j"}}
    assert (run.benchmark, run.editor) == ("b", "e")


def test_half_a_line_of_a_process_at_work_isnt_there(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    whole = json.dumps({**PUBLISHED, "number": 0, "seed": 0})
    (folder / LINES / "0-of-2.jsonl").write_text(whole + "\n" + whole[:30], encoding="utf-8")
    (folder / LINES / "1-of-2.jsonl").write_text(whole[:9], encoding="utf-8")
    assert len(lines_of(folder)) == 1


def test_rows_that_could_not_be_read_are_apart(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    lost = {
        "number": 4,
        "seed": 0,
        "id": "4",
        "original_image": "",
        "edit_instruction": "",
        "problem": "row 5: no picture",
    }
    write_lines(folder / LINES / "0-of-1.jsonl", {**PUBLISHED, "number": 0}, lost, {**lost, "seed": 1})
    run = load_run(folder)
    assert len(run.lines) == 1
    assert [each.problem for each in run.unreadable] == ["row 5: no picture"]


def test_published_fields_of_other_names_are_task_and_explanations(tmp_path: Path) -> None:
    row = {name: value for name, value in PUBLISHED.items() if name not in ("id", "task")}
    row |= {**SCORES, "source": "omniedit", "task_type": "add", "vie_sc_description": "so", "vie_pq_description": ""}
    (line,) = load_run(write_lines(tmp_path / "x.jsonl", row)).lines
    assert (line.result.task, line.result.source, line.result.id) == ("add", "omniedit", "0")
    assert line.explanations == {"sc": "so", "pq": ""}
    assert line.scores == SCORES
    groups = [(group.by, group.key) for group in summarize(load_run(write_lines(tmp_path / "y.jsonl", row, PUBLISHED)))]
    assert ("task", "add") in groups
    (own,) = load_run(write_lines(tmp_path / "z.jsonl", {**row, "task": "ours", "sc_explanation": "mine"})).lines
    assert (own.result.task, own.explanations) == ("ours", {"sc": "mine", "pq": ""})
    (adopted,) = load_run(adopt(tmp_path / "x.jsonl")).lines
    assert adopted.result.task == "add"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"original_image": "a", "edit_instruction": "b", "edited_image": 5}', "edited_image"),
        ('{"original_image": "a", "edit_instruction": "b", "number": "x"}', "number"),
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ('{"id": 1}', "original_image"),
        ('{"original_image": "a"}', "edit_instruction"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(PUBLISHED) + "\n" + content + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=says) as caught:
        load_run(file)
    assert caught.value.where == f"{file}, line 2"


def test_scores_that_are_no_numbers_are_not_there(tmp_path: Path) -> None:
    row = {**PUBLISHED, "vie_sc": "high", "vie_pq": float("nan"), "vie_all": True, "psnr": 20}
    (line,) = load_run(write_lines(tmp_path / "x.jsonl", row)).lines
    assert line.scores == {"psnr": 20.0}


def test_results_are_found_at_any_depth(tmp_path: Path) -> None:
    folders = [own_folder(tmp_path / "results" / name) for name in ("a/x", "a/y", "b/x")]
    assert find_results([tmp_path / "results"]) == folders
    assert find_results([folders[1], tmp_path / "results" / "a"]) == [folders[1], folders[0]]
    with pytest.raises(InputError, match="no results"):
        find_results([own_folder(tmp_path / "c") / LINES])
    with pytest.raises(InputError, match="no such"):
        find_results([tmp_path / "nowhere"])


def test_published_results_become_a_folder_of_ours_with_the_same_images(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "theirs" / "model.jsonl", PUBLISHED)
    (tmp_path / "theirs" / "images").mkdir()
    random_image(0).save(tmp_path / "theirs" / "images" / "0_edited.png")
    folder = adopt(file)
    (line,) = load_run(folder).lines
    assert line.result.edited_image is not None
    assert (folder / line.result.edited_image).resolve() == (tmp_path / "theirs" / "images" / "0_edited.png").resolve()
    assert load_run(adopt(file)).lines == (line,)
