"""``earl eval`` and what is below it, as a person types it: tiny models, a real local judge, real servers."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_result import CommandResult, error_message
from datasets import Dataset
from evaluations import inverted, pairs, random_image
from images_server import MODEL as IMAGES_MODEL
from images_server import ImagesServer
from judge_server import MODEL, JudgeServer
from PIL import Image

from earl_cli.app import run
from earl_cli.evaluation import generating
from earl_cli.evaluation.generating import task_seed
from earl_cli.evaluation.results import load_run
from earl_cli.files import folder_lock
from earl_cli.models.bundle import EarlModel, load_model
from earl_cli.openai_client.retry import Backoff
from earl_cli.rewards.judge.declarations import load_declaration

pytestmark = pytest.mark.slow
RunEarl = Callable[..., CommandResult]


@pytest.fixture
def run_earl(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunEarl:
    """Runs a command in an empty folder with a benchmark in ``pairs``."""
    monkeypatch.chdir(tmp_path)
    pairs(tmp_path / "pairs")

    def run_command(*words: str) -> CommandResult:
        code = run(list(words))
        return CommandResult(code, *capfd.readouterr())

    return run_command


def evaluated(run_earl: RunEarl, *words: str) -> dict[str, Any]:
    result = run_earl("eval", "--json", "-b", "pairs", *words)
    assert result.code == 0, result.err
    return dict(result.document)


def impatient(patch: pytest.MonkeyPatch) -> None:
    """Retries of a judge that fails take milliseconds."""
    quick = Backoff(attempts=2, first_delay=0.01, max_delay=0.01)
    patch.setattr("earl_cli.openai_client.retry.Backoff", lambda **_: quick)


def test_a_model_and_the_floor_on_ones_own_pairs(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    document = evaluated(run_earl, "-m", f"tiny={tiny_model_dir}")
    assert [each["editor"] for each in document["results"]] == ["tiny", "copy"]
    assert document["complete"] is True
    tiny, floor = document["results"]
    assert set(tiny["figures"]) == {"reference", "l1", "l2", "psnr", "ssim"}
    assert floor["figures"]["reference"]["mean"] == pytest.approx(0.0)
    assert tiny["edits"] == floor["edits"] == 6
    for name in ("report", "markdown", "latex"):
        assert Path(document[name]).stat().st_size > 0
    about = json.loads((Path(tiny["folder"]) / "run.json").read_text())
    assert about["editor"]["model"] == "tiny"
    assert len(about["editor"]["fingerprint"]) == 16
    assert about["editor"]["sampling"] == {"temperature": 1.0, "top_k": 64, "top_p": 1.0}
    assert about["benchmark"]["samples"] == 6


def test_notes_on_the_images_are_shown_once_for_all_editors(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    first = Image.open("pairs/1.png")
    first.save("pairs/1.png", save_all=True, append_images=[first.rotate(180)])
    result = run_earl("eval", "-b", "pairs", "-m", f"tiny={tiny_model_dir}")
    assert result.code == 0, result.err
    assert result.err.count("several frames") == 1
    assert "pairs: 2 samples: several frames: only the first is used" in result.err


def test_the_same_call_again_generates_nothing_and_prints_the_same(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    first = evaluated(run_earl, "-m", str(tiny_model_dir))
    lines = [path.read_bytes() for path in sorted(Path("results").rglob("*.jsonl"))]
    assert evaluated(run_earl, "-m", str(tiny_model_dir)) == first
    assert [path.read_bytes() for path in sorted(Path("results").rglob("*.jsonl"))] == lines


def test_an_edit_is_the_one_that_earl_edit_makes(run_earl: RunEarl, tiny_model_dir: Path, tmp_path: Path) -> None:
    document = evaluated(run_earl, "-m", str(tiny_model_dir), "--limit", "1")
    (line,) = load_run(Path(document["results"][0]["folder"])).lines
    seed = str(task_seed(0, line.result.number))
    source = str(Path(document["results"][0]["folder"]) / line.result.original_image)
    outcome = run_earl(
        "edit", source, line.result.edit_instruction, "--model", str(tiny_model_dir), "--seed", seed, "-o", "own.png"
    )
    assert outcome.code == 0
    edited = Path(document["results"][0]["folder"]) / str(line.result.edited_image)
    assert np.array_equal(np.asarray(Image.open("own.png")), np.asarray(Image.open(edited)))


def test_size_is_the_benchmarks_choice_or_the_persons(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    sizes = {}
    for words in ([], ["--size", "model"]):
        document = evaluated(run_earl, "-m", str(tiny_model_dir), *words)
        run_ = load_run(Path(document["results"][0]["folder"]))
        sizes[len(words)] = Image.open(run_.folder / str(run_.lines[0].result.edited_image)).size
    assert sizes == {0: (24, 16), 2: (32, 24)}


def test_shards_add_up_and_the_last_one_scores(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    whole = evaluated(run_earl, "-m", str(tiny_model_dir), "-o", "whole")
    first = evaluated(run_earl, "-m", str(tiny_model_dir), "-o", "parts", "--shard", "1/2")
    assert first["complete"] is False
    second = evaluated(run_earl, "-m", str(tiny_model_dir), "-o", "parts", "--shard", "2/2")
    assert second["complete"] is True
    assert [each["figures"] for each in second["results"]] == [each["figures"] for each in whole["results"]]


def test_two_processes_dont_generate_the_same(run_earl: RunEarl) -> None:
    found = evaluated(run_earl, "-m", "copy", "-o", "results")
    with folder_lock(Path(found["results"][0]["folder"]), "earl eval"):
        again = run_earl("eval", "-b", "pairs", "-m", "copy", "-o", "results")
    assert again.code == 8
    assert "another earl eval is at work here" in again.err


def test_several_seeds(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    document = evaluated(run_earl, "-m", str(tiny_model_dir), "--seeds", "3", "--seed", "5", "--limit", "2")
    tiny, floor = document["results"]
    assert (tiny["edits"], floor["edits"]) == (6, 2)
    summary = json.loads((Path(tiny["folder"]) / "summary.json").read_text())
    assert set(summary["by seed"]) == {"5", "6", "7"}
    assert "Not comparable" not in Path(document["markdown"]).read_text()  # the source is the same for all seeds


def test_a_judge_gives_viescore_and_its_answers_are_kept(
    run_earl: RunEarl, judge: JudgeServer, tiny_model_dir: Path
) -> None:
    words = ("-m", str(tiny_model_dir), "--judge", judge.api_base)
    document = evaluated(run_earl, *words)
    assert document["results"][0]["figures"]["VIE_ALL"]["count"] == 6
    requested = len(judge.calls)
    assert evaluated(run_earl, *words) == document
    assert len(judge.calls) == requested
    run_ = load_run(Path(document["results"][0]["folder"]))
    assert run_.scoring["judge"] == {"model": MODEL, "declaration": load_declaration().describe()}
    assert set(run_.lines[0].explanations) == {"sc", "pq"}


def test_scoring_again_by_another_judge_generates_nothing(
    run_earl: RunEarl, judge: JudgeServer, tiny_model_dir: Path
) -> None:
    judge.models = (MODEL, "gpt-4o-mini")
    document = evaluated(run_earl, "-m", str(tiny_model_dir), "--judge", judge.api_base)
    images = {path: path.stat().st_mtime_ns for path in Path("results").rglob("*.png")}
    result = run_earl("eval", "score", "results", "--judge", judge.api_base, "--judge-model", "gpt-4o-mini", "--json")
    assert result.code == 0, result.err
    assert {path: path.stat().st_mtime_ns for path in Path("results").rglob("*.png")} == images
    assert load_run(Path(document["results"][0]["folder"])).scoring["judge"]["model"] == "gpt-4o-mini"


def test_a_judge_that_goes_down_costs_no_generated_edit(
    run_earl: RunEarl, judge: JudgeServer, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = generating.generate

    def and_then_down(*args: Any) -> None:
        real(*args)
        judge.is_down = True

    impatient(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("earl_cli.commands.eval.run.generate", and_then_down)
        result = run_earl("eval", "-b", "pairs", "-m", str(tiny_model_dir), "--judge", judge.api_base)
    assert "judge" in error_message(result, 1)
    judge.is_down = False
    monkeypatch.setattr("earl_cli.generation.editor.load_model", lambda *_, **__: pytest.fail("drawn again"))
    result = run_earl("eval", "score", "results/pairs", "--judge", judge.api_base, "--json")
    assert result.code == 0, result.err
    assert result.document["results"][0]["figures"]["VIE_ALL"]["count"] == 6


def test_what_the_judge_doesnt_say_is_in_the_table(
    run_earl: RunEarl, judge: JudgeServer, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    judge.fails_on = "invert 3"
    result = run_earl("eval", "-b", "pairs", "-m", str(tiny_model_dir), "--judge", judge.api_base)
    assert result.code == 0, result.err
    assert "missing" in result.out
    assert "the judge fails at this prompt alone" in result.err


def test_a_judge_that_scores_nothing_is_an_error_after_the_report(run_earl: RunEarl, judge: JudgeServer) -> None:
    judge.fixed_message = {"content": "I won't."}
    result = run_earl("eval", "-b", "pairs", "-m", "copy", "--judge", judge.api_base, "--json")
    assert result.code == 1
    assert "the judge gave no score for any edit of copy on pairs: the judge's reply can't be read" in result.err
    assert result.document["error"]["where"] == judge.api_base
    assert Path(result.document["report"]).is_file()
    judge.fixed_message = None
    assert run_earl("eval", "score", "results", "--judge", judge.api_base).code == 0


def test_an_editor_without_a_valid_edit_is_named_at_the_end(run_earl: RunEarl, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    result = run_earl("eval", "-b", "pairs", "-m", "results:theirs")
    assert result.code == 0
    assert "theirs on pairs gave no image: there is no s0.png" in result.err


def test_a_later_call_for_more_samples_scores_all_of_them(run_earl: RunEarl) -> None:
    assert len(evaluated(run_earl, "-m", "copy", "--limit", "2")["results"]) == 1
    assert evaluated(run_earl, "-m", "copy")["results"][0]["edits"] == 6
    assert evaluated(run_earl, "-m", "copy", "--limit", "2")["results"][0]["edits"] == 2


def test_no_row_that_can_be_used_is_an_error(run_earl: RunEarl) -> None:
    for file in Path("pairs").glob("?.png"):
        file.write_bytes(b"no picture")
    result = run_earl("eval", "-b", "pairs", "-m", "copy")
    assert result.code == 3
    assert "no row of pairs can be used" in result.err


def test_without_targets_and_judge_that_is_reported(run_earl: RunEarl) -> None:
    pairs(Path("blind"), 2, targets=False)
    result = run_earl("eval", "-b", "blind", "-m", "copy")
    assert result.code == 0
    assert "blind has no target images, so edits are generated and not scored" in result.err
    assert "only a judge can score them" in error_message(run_earl("eval", "score", "results"), 2)


def test_the_protocol_of_the_paper(run_earl: RunEarl, judge: JudgeServer) -> None:
    Path("b.toml").write_text(
        """[b]
paper = { shuffle = 42, first = 4 }
[[b.parts]]
place = "pairs"
columns = { image = "source", instruction = "instruction", target = "edited", task = "task", id = "id" }
"""
    )
    words = ("eval", "-b", "b.toml", "-m", "copy", "--judge", judge.api_base)
    outcome = run_earl(*words, "--protocol", "paper", "--json")
    assert outcome.code == 0, outcome.err
    assert "protocol paper" in outcome.err
    assert "65536 pixels" in outcome.err
    assert "viescore-published" in outcome.err
    run_ = load_run(Path(outcome.document["results"][0]["folder"]))
    shuffled = Dataset.from_dict({"id": [f"s{number}" for number in range(6)]}).shuffle(seed=42)["id"]
    assert {line.result.id for line in run_.lines} == set(shuffled[:4])
    assert (run_.scoring["protocol"], run_.scoring["area"]) == ("paper", 65536)
    assert {call.body["messages"][0]["role"] for call in judge.calls} == {"system"}
    assert all("temperature" not in call.body for call in judge.calls)
    assert run_earl(*words).code == 0  # all rows, in the same folder
    assert len(load_run(run_.folder).lines) == 6
    assert run_earl("eval", "score", "results", "--judge", judge.api_base, "--protocol", "paper").code == 0
    assert len(load_run(run_.folder).lines) == 4


def test_missing_keys_are_named_before_anything_is_generated(
    run_earl: RunEarl, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", " ")
    words = ("-m", "x=http://127.0.0.1:9/v1#m", "--judge", judge.api_base, "--api-key-variable", "MY_KEY")
    result = run_earl("eval", "-b", "pairs", *words, "--endpoint-key-variable", "OTHER_KEY")
    assert "variables are not set, or empty: MY_KEY, OTHER_KEY" in error_message(result, 2)
    assert not Path("results").exists()


def test_finished_images_of_another_program(run_earl: RunEarl, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    for number in range(5):
        inverted(random_image(number // 2)).save(tmp_path / "theirs" / f"s{number}.png")
    document = evaluated(run_earl, "-m", "results:theirs")
    theirs = document["results"][0]
    assert theirs["editor"] == "theirs"
    assert theirs["not_drawn"] == 1
    assert theirs["figures"]["l1"] == {**theirs["figures"]["l1"], "mean": 0.0, "count": 5, "missing": 1}


def test_an_image_edit_endpoint(run_earl: RunEarl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ImagesServer().start()
    try:
        document = evaluated(run_earl, "-m", f"{server.api_base}#{IMAGES_MODEL}")
    finally:
        server.stop()
    assert document["results"][0]["edits"] == 6
    assert document["results"][0]["not_drawn"] == 0


def test_compare_says_by_how_much(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    tiny, floor = evaluated(run_earl, "-m", f"tiny={tiny_model_dir}")["results"]
    result = run_earl("eval", "compare", tiny["folder"], floor["folder"], "--json")
    assert result.code == 0, result.err
    psnr = result.document["columns"]["psnr"]
    assert psnr["difference"] == pytest.approx(floor["figures"]["psnr"]["mean"] - tiny["figures"]["psnr"]["mean"])
    assert psnr["wins"] + psnr["ties"] + psnr["losses"] == 6
    assert result.document["warnings"] == []
    assert "B better" in result.err
    assert psnr["low"] is None  # three images are too few for an interval
    assert "nan" not in (result.out + result.err).lower()


def test_compare_pairwise_shows_both_orders(run_earl: RunEarl, judge: JudgeServer, tiny_model_dir: Path) -> None:
    tiny, floor = evaluated(run_earl, "-m", f"tiny={tiny_model_dir}")["results"]
    result = run_earl(
        "eval", "compare", tiny["folder"], floor["folder"], "--pairwise", "--judge", judge.api_base, "--json"
    )
    assert result.code == 0, result.err
    found = result.document["pairwise"]
    assert found["a"] + found["b"] + found["ties"] + found["missing"] == 6
    assert len(judge.calls) == 12
    assert "needs a judge" in error_message(
        run_earl("eval", "compare", tiny["folder"], floor["folder"], "--pairwise"), 2
    )


def test_tables_that_cant_be_compared_say_so(run_earl: RunEarl, judge: JudgeServer, tiny_model_dir: Path) -> None:
    tiny, floor = evaluated(run_earl, "-m", f"tiny={tiny_model_dir}", "--judge", judge.api_base)["results"]
    judge.models = ("gpt-4o-mini",)
    assert run_earl("eval", "score", floor["folder"], "--judge", judge.api_base).code == 0
    result = run_earl("eval", "compare", tiny["folder"], floor["folder"], "--json")
    assert any("gpt-4o-mini" in sentence for sentence in result.document["warnings"])
    result = run_earl("eval", "report", "results", "-o", "both.html")
    assert "gpt-4o-mini" in result.err
    assert "gpt-4o-mini" in Path("both.html").read_text(encoding="utf-8")


def test_published_results_are_scored_and_reported(run_earl: RunEarl, tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        random_image(number).save(f"{number}.png")
        inverted(random_image(number)).save(f"{number}-edited.png")
        rows.append(
            {
                "id": number,
                "original_image": f"{number}.png",
                "edited_image": f"{number}-edited.png",
                "edit_instruction": "invert",
                "gt_edited_image": f"{number}-edited.png",
                "task": "x",
            }
        )
    Path("theirs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run_earl("eval", "score", "theirs.jsonl", "--json")
    assert result.code == 0, result.err
    assert result.document["results"][0]["figures"]["l1"]["mean"] == 0.0
    assert (
        run_earl("eval", "report", "theirs-results", "-o", "t.html", "--markdown", "t.md", "--latex", "t.tex").code == 0
    )
    assert all(Path(name).stat().st_size > 0 for name in ("t.html", "t.md", "t.tex"))


def test_list_names_benchmarks_and_editors(run_earl: RunEarl) -> None:
    result = run_earl("eval", "list", "--json")
    assert [each["name"] for each in result.document["benchmarks"]][-1] == "embedded"
    assert len(result.document["benchmarks"]) == 7
    assert set(result.document["editors"]) == {"instruct-pix2pix", "magicbrush", "aurora", "omnigen"}


def test_a_model_that_reasons_has_its_words_in_the_results(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    document = evaluated(run_earl, "-m", str(tiny_model_dir), "--think", "--limit", "2")
    run_ = load_run(Path(document["results"][0]["folder"]))
    assert run_.about["editor"]["mode"] == "reasoning"
    assert any(line.result.reasoning for line in run_.lines)


def test_only_one_model_is_in_memory(run_earl: RunEarl, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[EarlModel]] = []
    alive: list[int] = []

    def load(*args: Any, **settings: Any) -> EarlModel:
        gc.collect()
        alive.append(sum(model() is not None for model in loaded))
        loaded.append(weakref.ref(model := load_model(*args, **settings)))
        return model

    monkeypatch.setattr("earl_cli.generation.editor.load_model", load)
    words = ("-m", f"a={tiny_model_dir}", "-m", f"b={tiny_model_dir}", "-b", str(tiny_model_dir.parent / "again"))
    pairs(tiny_model_dir.parent / "again", 2)
    evaluated(run_earl, *words)
    assert alive == [0, 0]  # and once for both benchmarks


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-b", "omnedit"], 2, "no such benchmark"),
        (["-m", "nowhere/"], 4, "nowhere"),
        (["-b", "pairs", "-m", "results:nowhere"], 3, "nowhere"),
        (["-b", "pairs", "-m", "https://example.org/v1"], 2, "which of its models"),
        (["-b", "pairs", "--judge", "localhost"], 2, "no address"),
        (["-b", "pairs", "--ground-score"], 2, "needs a judge"),
        (["-b", "pairs", "--rubrics", "nowhere.toml"], 2, "nowhere.toml"),
        (["-b", "pairs", "--shard", "3/2"], 2, "no share of the work"),
        (["-b", "pairs", "-m", "copy", "-m", "again=copy", "--lpips"], 6, "torchvision"),
        (["-b", "pairs", "-o", "pairs/pairs.jsonl"], 8, "a file, not a folder"),
        (["-b", "pairs", "-m", "embedded", "--temperature", "-1"], 2, "temperature"),
        (["-b", "pairs", "--engine-arg", "tensor_parallel_size"], 2, "isn't KEY=VALUE"),
        (["score", "nowhere"], 3, "no such file or folder"),
        (["compare", "pairs", "pairs"], 3, "no results"),
        (["report", "pairs"], 3, "no results"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(
    run_earl: RunEarl, words: list[str], code: int, says: str
) -> None:
    if says == "torchvision":
        try:
            import torchvision  # noqa: F401

            pytest.skip("torchvision is there")
        except (ImportError, RuntimeError):
            pass
    assert says in error_message(run_earl("eval", *words), code)
    assert not Path("results").exists()


def test_the_same_editor_twice_is_refused(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    result = run_earl("eval", "-b", "pairs", "-m", f"a={tiny_model_dir}", "-m", f"a={tiny_model_dir}/")
    assert "twice" in error_message(result, 2)


def test_rows_that_cant_be_used_are_reported_and_counted(run_earl: RunEarl, tiny_model_dir: Path) -> None:
    Path("pairs/0.png").write_bytes(b"no picture")
    result = run_earl("eval", "-b", "pairs", "-m", str(tiny_model_dir), "--json")
    assert result.code == 0
    assert result.document["results"][0]["unreadable"] == 2
    assert "2 rows can't be used" in result.err
