"""Benchmarks as declarations: the package's own against data of the published form, a third party's, and one's own."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from evaluations import inverted, pairs, random_image
from hub_server import Hub, Repository

from earl_cli.data.sources.base import BadRowError
from earl_cli.errors import EarlError, InputError, UsageError
from earl_cli.evaluation.benchmarks import ENTRY_POINTS, Subset, benchmarks, find_benchmark
from earl_cli.evaluation.samples import BenchmarkSample, OpenedBenchmark, open_benchmark

DECLARED = """
[mine]
title = "Mine"
[[mine.parts]]
place = "pairs"
columns = { image = "source", instruction = "instruction", task = "task" }
"""


def png(seed: int) -> dict[str, Any]:
    content = io.BytesIO()
    random_image(seed).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def all_samples(opened: OpenedBenchmark) -> list[BenchmarkSample]:
    found = list(opened.read(range(len(opened))))
    assert all(isinstance(each, BenchmarkSample) for each in found), found
    return [each for each in found if isinstance(each, BenchmarkSample)]


PUBLISHED: dict[str, tuple[str, dict[str, list[dict[str, Any]]]]] = {
    "omniedit": (
        "TIGER-Lab/OmniEdit-Filtered-1.2M",
        {
            f"data/dev-0000{part}-of-00001.parquet": [
                {
                    "omni_edit_id": f"o{part}",
                    "src_img": png(part),
                    "edited_prompt_list": ["make it red", "longer"],
                    "edited_img": png(9),
                    "task": "color",
                }
            ]
            for part in range(2)
        }
        | {"data/train-00000-of-00001.parquet": [{"omni_edit_id": "no"}]},
    ),
    "emuedit": (
        "facebook/emu_edit_test_set",
        {
            "data/test-00000-of-00001.parquet": [
                {"idx": 7, "image": png(1), "instruction": "add a hat", "task": "add"}
            ],
            "data/validation-00000-of-00001.parquet": [{"idx": 8, "image": png(2), "instruction": "no", "task": "no"}],
        },
    ),
    "aurora": (
        "McGill-NLP/aurora-bench",
        {"data/test-00000-of-00001.parquet": [{"input": png(1), "instruction": "open the door", "source": "ag"}]},
    ),
    "magicbrush": (
        "sikarwarank/magicbrush_eval",
        {
            "magicbrush-test-00000.parquet": [
                {"input": png(1), "instruction": "a cat", "output": png(2), "mask": png(3)}
            ]
        },
    ),
    "vismin": (
        "mair-lab/escher-vismin-dev",
        {
            f"data/train/{task}-00001.parquet": [
                {
                    "id": f"{task}-{row}",
                    "source_image": png(row),
                    "edit_instruction": "edit_instruction: take one away",
                    "edited_image": png(5),
                }
                for row in range(rows)
            ]
            for task, rows in (("counting", 3), ("relation", 2))
        }
        | {"data/train/object-00001.parquet": [{"id": "no"}]},
    ),
    "i2ebench": (
        "sikarwarank/i2bench_eval",
        {"i2ebench-dataset.parquet": [{"image": png(1), "instruction": "remove the haze", "task": "HazeRemoval"}]},
    ),
}
EXPECTED = {
    "omniedit": [("o0", "make it red", True, "color"), ("o1", "make it red", True, "color")],
    "emuedit": [("7", "add a hat", False, "add")],
    "aurora": [("000000", "open the door", False, "ag")],
    "magicbrush": [("000000", "a cat", True, "")],
    "vismin": [(f"counting-{n}", "take one away", True, "counting") for n in range(3)]
    + [(f"relation-{n}", "take one away", True, "relation") for n in range(2)],
    "i2ebench": [("000000", "remove the haze", False, "HazeRemoval")],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_benchmark_is_read_as_its_declaration_says(hub: Hub, tmp_path: Path, name: str) -> None:
    repository, files = PUBLISHED[name]
    for file, rows in files.items():
        table(tmp_path / "repo" / file, rows)
    hub.add(Repository(repository, {"main": tmp_path / "repo"}, kind="dataset"))
    opened = open_benchmark(find_benchmark(name))
    assert opened.benchmark.size == "model"
    found = all_samples(opened)
    assert [(each.id, each.instruction, each.target is not None, each.task) for each in found] == EXPECTED[name]
    assert [each.number for each in found] == list(range(len(found)))
    assert np.array_equal(
        np.asarray(found[-1].image), np.asarray(random_image(len(found) - 1 if name == "omniedit" else 1))
    )


def test_the_six_and_the_one_that_ships_with_the_package_are_known() -> None:
    assert list(benchmarks()) == [*PUBLISHED, "embedded"]


def test_the_embedded_benchmark_has_every_kind_of_edit_and_all_its_images() -> None:
    opened = open_benchmark(find_benchmark("embedded"))
    found = all_samples(opened)
    assert len(found) == 40
    assert len({each.task for each in found}) == 19
    assert len({each.digest for each in found}) == 8
    for each in found:
        assert each.target is not None
        assert each.target.size == each.image.size
        assert 0.9 * 256**2 < each.image.width * each.image.height < 1.1 * 256**2
        assert not np.array_equal(np.asarray(each.target), np.asarray(each.image))


def test_a_file_declares_benchmarks_and_places_count_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs(tmp_path / "deep" / "pairs")
    file = tmp_path / "deep" / "mine.toml"
    file.write_text(DECLARED, encoding="utf-8")
    monkeypatch.chdir("/")
    found = all_samples(open_benchmark(find_benchmark(str(file))))
    assert [each.task for each in found[:2]] == ["colour", "weather"]
    assert found[0].target is None  # no column says where it is
    file.write_text(DECLARED + DECLARED.replace("mine", "other"), encoding="utf-8")
    with pytest.raises(UsageError, match="which") as caught:
        find_benchmark(str(file))
    assert f"{file}:other" in str(caught.value)
    assert find_benchmark(f"{file}:other").name == "other"


@pytest.mark.parametrize("form", ["mapping", "path", "function"])
def test_an_installed_package_adds_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    pairs(tmp_path / "pairs")
    (tmp_path / "mine.toml").write_text(DECLARED, encoding="utf-8")
    code = {
        "mapping": "thing = tomllib.loads(file.read_text())",
        "path": "thing = file",
        "function": "def thing(): return file",
    }[form]
    begin = "import tomllib, pathlib\nfile = pathlib.Path(__file__).parent / 'mine.toml'\n"
    (tmp_path / "their_benchmarks.py").write_text(begin + code, encoding="utf-8")
    information = tmp_path / "their_benchmarks-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-benchmarks\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nmine = their_benchmarks:thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_benchmark("mine").title == "Mine"
    sys.modules.pop("their_benchmarks")


def test_data_of_ones_own_needs_no_declaration(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "my photos")
    for path in (folder, folder / "pairs.jsonl"):
        found = all_samples(open_benchmark(find_benchmark(str(path))))
        assert [each.id for each in found] == [f"s{number}" for number in range(6)]
        assert np.array_equal(np.asarray(found[3].target), np.asarray(inverted(random_image(1))))
        assert found[0].digest == found[1].digest != found[2].digest


def test_captions_of_ones_own_data_are_no_images(tmp_path: Path) -> None:
    """HQ-Edit's columns; images may be in lists of one, instructions in lists of several."""
    texts = {"input": "a cup", "output": "a grey cup", "edit": ["make it grey", "without colour"]}
    table(tmp_path / "a.parquet", [{**texts, "input_image": [png(1)], "output_image": png(2)}])
    (sample,) = all_samples(open_benchmark(find_benchmark(str(tmp_path / "a.parquet"))))
    assert sample.instruction == "make it grey"
    assert sample.target is not None


def test_a_url_is_no_image_of_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"source": "https://x/a.png", "instruction": "snow"}))
    (bad,) = open_benchmark(find_benchmark(str(tmp_path))).read([0])
    assert isinstance(bad, BadRowError)
    assert (bad.kind, bad.hint) == ("url", "a benchmark's images have to be files or bytes")


def test_a_limit_is_a_fixed_choice_and_a_larger_one_holds_it(tmp_path: Path) -> None:
    opened = open_benchmark(find_benchmark(str(pairs(tmp_path, 40))))
    few, more = opened.chosen(5), opened.chosen(20)
    assert len(few) == 5
    assert few == sorted(set(few))
    assert set(few) < set(more)
    assert few != list(range(5))
    assert opened.chosen(400) == opened.chosen() == list(range(40))


@pytest.mark.parametrize("count", [1, 999, 1001, 2022, 3589])
@pytest.mark.parametrize("name", ["emuedit", "i2ebench"])
def test_the_published_subset_is_what_datasets_shuffles_to_the_front(name: str, count: int) -> None:
    shuffled = Dataset.from_dict({"row": range(count)}).shuffle(seed=42)
    subset = benchmarks()[name].paper
    assert subset is not None
    assert subset.rows(count) == shuffled.select(range(min(1000, count)))["row"]


def test_a_limit_of_a_subset_is_within_it(tmp_path: Path) -> None:
    opened = open_benchmark(find_benchmark(str(pairs(tmp_path / "pairs", 20))))
    subset = Subset(shuffle=42, first=8)
    assert opened.chosen(subset=subset) == sorted(np.random.default_rng(42).permutation(20)[:8])
    assert set(opened.chosen(3, subset)) < set(opened.chosen(5, subset)) < set(opened.chosen(99, subset))
    assert len(opened.chosen(5, subset)) == 5
    assert opened.chosen() == list(range(20))


def test_the_fingerprint_changes_with_the_rows_and_with_how_they_are_read(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "pairs")
    benchmark = find_benchmark(str(folder))
    before = open_benchmark(benchmark).fingerprint
    assert open_benchmark(find_benchmark(str(folder / "pairs.jsonl"))).fingerprint == before
    (part,) = benchmark.parts
    named = part.model_copy(update={"drop": "please "})
    assert open_benchmark(benchmark.model_copy(update={"parts": (named,)})).fingerprint != before
    pairs(folder, 5)
    assert open_benchmark(benchmark).fingerprint != before


def test_a_bad_row_is_an_error_in_its_place(tmp_path: Path) -> None:
    folder = pairs(tmp_path)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    rows[1]["source"], rows[2]["instruction"] = "nowhere.png", "  "
    (folder / "1.png").write_bytes(b"not a picture")
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    opened = open_benchmark(find_benchmark(str(folder)))
    found = list(opened.read(range(6)))
    bad = {number for number, each in enumerate(found) if isinstance(each, BadRowError)}
    assert bad == {1, 2, 3}
    assert all(each.where for each in found if isinstance(each, BadRowError))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x", "no TOML"),
        ("", "no benchmark"),
        ("mine = 3", "no table"),
        ("[mine]\ntitle = 'x'\nparts = []", "parts"),
        ("[mine]\nparts = [{place = 'pairs', colums = {}}]", "colums"),
        ("[mine]\nsize = 'huge'\nparts = [{place = 'pairs'}]", "size"),
    ],
)
def test_a_bad_declaration_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=says) as caught:
        find_benchmark(str(file))
    assert caught.value.where == str(file)


@pytest.mark.parametrize(("spec", "says"), [("omnedit", "omniedit"), ("local", "path"), ("no.toml", "can't be read")])
def test_a_benchmark_that_isnt_there(spec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        find_benchmark(spec)


def test_messages_about_data_name_what_a_benchmark_has(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table(tmp_path / "pairs" / f"{split}.parquet", [{"source": png(1), "edited": png(2), "instruction": "x"}])
    with pytest.raises(EarlError) as caught:
        open_benchmark(find_benchmark(str(tmp_path / "pairs")))
    assert "name one with split in a .toml that declares a benchmark" in str(caught.value.hint)
    (tmp_path / "Mine.TOML").write_bytes(b"\xef\xbb\xbf[mine]\nparts = [{place = 'pairs', split = 'test'}]")
    assert find_benchmark(str(tmp_path / "Mine.TOML")).parts[0].split == "test"


def test_a_column_that_isnt_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    pairs(tmp_path / "pairs")
    (tmp_path / "mine.toml").write_text(DECLARED.replace('task = "task"', 'task = "kind"'), encoding="utf-8")
    with pytest.raises(InputError, match="'kind'") as caught:
        open_benchmark(find_benchmark(str(tmp_path / "mine.toml")))
    assert "instruction" in str(caught.value.hint)
    (tmp_path / "mine.toml").write_text("[mine]\nparts = [{place = 'pairs', columns = {image = 'a', task = 'b'}}]")
    with pytest.raises(
        InputError, match="no column 'a'; no column for the instruction under a common name; no column 'b'"
    ):
        open_benchmark(find_benchmark(str(tmp_path / "mine.toml")))


def test_a_broken_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "broken_benchmarks-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-benchmarks\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nbroken = no_such_module:thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EarlError, match="no_such_module") as caught:
        find_benchmark("embedded")
    assert "broken" in (caught.value.where or "")
