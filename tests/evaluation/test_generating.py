"""The first stage: what is drawn and noted, nothing twice, and parts and interruptions change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluations import Inverting, inverted, pairs, random_image
from PIL import Image

from earl_cli.data.shard_plan import ShardShare
from earl_cli.errors import UsageError
from earl_cli.evaluation.benchmarks import find_benchmark
from earl_cli.evaluation.generating import LINES, Selection, folder_of, generate, keys, plain, remaining, start_run
from earl_cli.evaluation.results import EvalRun, load_run
from earl_cli.evaluation.samples import OpenedBenchmark, open_benchmark


@pytest.fixture
def opened(tmp_path: Path) -> OpenedBenchmark:
    return open_benchmark(find_benchmark(str(pairs(tmp_path / "pairs"))))


def generated(folder: Path, opened: OpenedBenchmark, editor: Inverting, wanted: Selection = Selection()) -> EvalRun:  # noqa: B008
    start_run(folder, opened, editor, {})
    generate(folder, opened, editor, wanted)
    return load_run(folder)


def content(run: EvalRun) -> list[tuple[object, ...]]:
    """All that a run says and shows, but times."""
    found = []
    for line in run.lines:
        result = replace(line.result, seconds=None)
        shown = [
            np.asarray(Image.open(run.folder / name)).tobytes()
            for name in (result.original_image, result.edited_image)
            if name
        ]
        found.append((result, *shown))
    return found


def test_a_line_names_images_that_are_there(tmp_path: Path, opened: OpenedBenchmark) -> None:
    editor = Inverting(reasoning="a roof [2, 2, 8, 6]")
    run = generated(tmp_path / "r" / "b" / "e", opened, editor)
    assert [line.result.number for line in run.lines] == list(range(6))
    result = run.lines[3].result
    assert (result.id, result.edit_instruction, result.task, result.problem) == ("s3", "invert 3", "weather", "")
    assert result.reasoning == "a roof [2, 2, 8, 6]"
    shown = {}
    for name in ("original_image", "edited_image", "gt_edited_image", "overview", "grounding_image"):
        shown[name] = Image.open(run.folder / getattr(result, name)).convert("RGB")
    assert np.array_equal(np.asarray(shown["original_image"]), np.asarray(random_image(1)))
    assert np.array_equal(np.asarray(shown["gt_edited_image"]), np.asarray(inverted(random_image(1))))
    assert shown["grounding_image"].size == shown["original_image"].size
    assert np.any(np.asarray(shown["grounding_image"]) != np.asarray(shown["original_image"]))
    assert shown["overview"].width > 3 * 16


def test_samples_of_one_image_share_its_file_and_its_cluster(tmp_path: Path, opened: OpenedBenchmark) -> None:
    run = generated(tmp_path / "r" / "b" / "e", opened, Inverting())
    assert len({line.result.picture for line in run.lines}) == 3
    other = generated(tmp_path / "r" / "b" / "f", opened, Inverting("other"))
    assert other.lines[0].result.original_image == run.lines[0].result.original_image


def test_the_seed_of_an_edit_is_its_own(tmp_path: Path, opened: OpenedBenchmark) -> None:
    editor = Inverting()
    generated(tmp_path / "r", opened, editor, Selection(seeds=(0, 1)))
    assert len({task.seed for task in editor.tasks}) == 12
    assert all(0 <= task.seed < 2**31 for task in editor.tasks)


def test_what_has_a_line_isnt_generated_again(tmp_path: Path, opened: OpenedBenchmark) -> None:
    generated(tmp_path / "r", opened, Inverting(), Selection(limit=2))
    again = Inverting()
    generated(tmp_path / "r", opened, again, Selection(seeds=(0, 1)))
    assert len(again.tasks) == 12 - 2
    last = Inverting()
    generated(tmp_path / "r", opened, last, Selection(seeds=(0, 1)))
    assert last.tasks == []


@pytest.mark.parametrize("stop", [0, 1, 2, 4, 5])
def test_an_interruption_changes_nothing(tmp_path: Path, opened: OpenedBenchmark, stop: int) -> None:
    at_once = generated(tmp_path / "whole" / "e", opened, Inverting())
    folder = tmp_path / "parts" / "e"
    start_run(folder, opened, Inverting(), {})
    with pytest.raises(KeyboardInterrupt):
        generate(folder, opened, Inverting(stops_after=stop), Selection())
    (torn,) = (folder / LINES).glob("*.jsonl") if stop > 1 else [folder / LINES / "0-of-1.jsonl"]
    with torn.open("a") as file:
        file.write('{"number": 5, "seed"')
    rest = Inverting()
    resumed = generated(folder, opened, rest)
    assert len(rest.tasks) == 6 - stop // 2 * 2
    assert content(resumed) == content(at_once)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_parts_add_up_to_the_whole(tmp_path: Path, opened: OpenedBenchmark, count: int) -> None:
    whole = generated(tmp_path / "whole" / "e", opened, Inverting(), Selection(seeds=(3, 4)))
    folder, requested = tmp_path / "parts" / "e", 0
    for index in range(count):
        editor = Inverting()
        start_run(folder, opened, editor, {})
        generate(folder, opened, editor, Selection(seeds=(3, 4), share=ShardShare(index, count)))
        requested += len(editor.tasks)
    assert requested == 12
    assert content(load_run(folder)) == content(whole)
    assert remaining(folder, opened, Selection(seeds=(3, 4))) == []


def test_keys_of_all_shares_are_all_keys(opened: OpenedBenchmark) -> None:
    wanted = Selection(limit=5, seeds=(0, 1))
    parts = [keys(opened, replace(wanted, share=ShardShare(index, 3))) for index in range(3)]
    assert sorted(key for part in parts for key in part) == sorted(keys(opened, wanted))


def test_an_invalid_edit_is_noted_with_its_reason(tmp_path: Path, opened: OpenedBenchmark) -> None:
    run = generated(tmp_path / "r", opened, Inverting(refuses="invert 4"))
    assert run.lines[4].result.edited_image is None
    assert run.lines[4].result.problem == "it didn't want to"
    assert run.lines[4].result.overview is not None


def test_a_row_that_cant_be_read_costs_only_itself(tmp_path: Path, opened: OpenedBenchmark) -> None:
    (tmp_path / "pairs" / "1.png").write_bytes(b"no picture")
    run = generated(tmp_path / "r", opened, Inverting())
    assert [line.result.number for line in run.lines] == [0, 1, 4, 5]
    assert [each.number for each in run.unreadable] == [2, 3]
    assert "1.png" in run.unreadable[0].problem or "line 3" in run.unreadable[0].problem
    assert remaining(tmp_path / "r", opened, Selection()) == []


def test_results_of_another_model_or_other_data_are_never_mixed(tmp_path: Path, opened: OpenedBenchmark) -> None:
    generated(tmp_path / "r", opened, Inverting())
    with pytest.raises(UsageError, match="editor name 'inverting' there, 'other' now"):
        start_run(tmp_path / "r", opened, Inverting("other"), {})
    other = open_benchmark(find_benchmark(str(pairs(tmp_path / "other", 4))))
    with pytest.raises(UsageError, match="benchmark"):
        start_run(tmp_path / "r", other, Inverting(), {})


def test_folders_differ_where_edits_do() -> None:
    one = folder_of(Path("r"), "b", {"name": "org/model@rev", "temperature": 1.0})
    assert one.parent == Path("r/b")
    assert one.name.startswith("org_model_rev-")
    assert folder_of(Path("r"), "b", {"name": "org/model@rev", "temperature": 0.5}) != one
    assert plain("../../etc") == "etc"
    assert plain("…") == "_"


def test_lines_have_the_published_names(tmp_path: Path, opened: OpenedBenchmark) -> None:
    generated(tmp_path / "r", opened, Inverting())
    line = json.loads((tmp_path / "r" / LINES / "0-of-1.jsonl").read_text().splitlines()[0])
    published = {"original_image", "edited_image", "gt_edited_image", "overview", "grounding_image"}
    published |= {"edit_instruction", "reasoning", "id", "task"}
    assert published <= set(line)
