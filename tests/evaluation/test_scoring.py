"""The second stage: metrics of finished edits by a real local judge and by the target, and what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluations import Inverting, pairs
from judge_server import MODEL, Faults, JudgeServer
from PIL import Image

from earl_cli.evaluation.benchmarks import find_benchmark
from earl_cli.evaluation.editors import copy_editor
from earl_cli.evaluation.generating import Selection, generate, start_run
from earl_cli.evaluation.results import PUBLISHED, EvalRun, load_run
from earl_cli.evaluation.samples import open_benchmark
from earl_cli.evaluation.scoring import NO_EDIT, Scoring, pairs_of, score, shared_keys
from earl_cli.evaluation.statistics import summarize, summary_document
from earl_cli.openai_client.retry import Backoff
from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.judge.declarations import load_declaration, load_rubrics
from earl_cli.rewards.reward import JudgeDownError

OFFLINE = ("l1", "l2", "psnr", "ssim")
QUICK = Backoff(attempts=3, first_delay=0.01, max_delay=0.02)


def results(folder: Path, editor: Inverting | None = None, *, targets: bool = True, count: int = 6) -> EvalRun:
    opened = open_benchmark(find_benchmark(str(pairs(folder / "pairs", count, targets=targets))))
    chosen = editor or Inverting()
    start_run(folder / "run", opened, chosen, {})
    generate(folder / "run", opened, chosen, Selection())
    return load_run(folder / "run")


def scoring(judge: JudgeServer | None = None, folder: Path | None = None, **more: object) -> Scoring:
    client = (
        Judge(judge.api_base, MODEL, folder and folder / "judge.sqlite", backoff=QUICK, timeout=10) if judge else None
    )
    return Scoring(client, load_rubrics(), OFFLINE, **more)  # type: ignore[arg-type]


def test_without_a_judge_metrics_come_from_targets(tmp_path: Path) -> None:
    for line in score(results(tmp_path), scoring()):
        assert set(line.scores) == {*OFFLINE, "reference"}
        assert line.scores["l1"] < 0.02
        assert line.scores["reference"] > 0.8
        assert line.missing == {}


def test_without_targets_and_judge_there_are_no_metrics(tmp_path: Path) -> None:
    assert all(line.scores == line.missing == {} for line in score(results(tmp_path, targets=False), scoring()))


def test_the_judges_metrics_have_the_published_names(tmp_path: Path, judge: JudgeServer) -> None:
    lines = score(results(tmp_path), scoring(judge))
    for line in lines:
        assert set(PUBLISHED) <= set(line.scores)
        assert line.scores["vie_sc"] == min(line.scores["edit_success"], line.scores["overedit"])
        assert line.scores["vie_pq"] == min(line.scores["looks_natural"], line.scores["no_artifact"])
        assert line.scores["vie_all"] == pytest.approx((line.scores["vie_sc"] * line.scores["vie_pq"]) ** 0.5)
        assert set(line.explanations) == {"sc", "pq"}
    assert "ground_score" not in lines[0].scores


def test_the_ground_score_is_requested_where_there_is_a_target(tmp_path: Path, judge: JudgeServer) -> None:
    with_target = score(results(tmp_path / "with"), scoring(judge, ground_score=True))
    without = score(results(tmp_path / "without", targets=False), scoring(judge, ground_score=True))
    assert all("ground_score" in line.scores for line in with_target)
    assert not any("ground_score" in {*line.scores, *line.missing} for line in without)


def test_an_invalid_edit_is_a_zero_for_the_judge_and_missing_elsewhere(tmp_path: Path, judge: JudgeServer) -> None:
    line = score(results(tmp_path, Inverting(refuses="invert 2")), scoring(judge))[2]
    assert {line.scores[name] for name in PUBLISHED} == {0.0}
    assert line.missing == dict.fromkeys(OFFLINE, NO_EDIT)


def test_what_the_judge_doesnt_say_is_missing_and_counted_never_zero(tmp_path: Path, judge: JudgeServer) -> None:
    judge.fails_on = "invert 3"
    run = results(tmp_path)
    lines = score(run, scoring(judge))
    requested = {"vie_sc", "vie_all", "edit_success", "overedit"}
    assert set(lines[3].missing) == requested
    assert all("judge" in why for why in lines[3].missing.values())
    assert "vie_pq" in lines[3].scores
    summary = summary_document(replace(run, lines=tuple(lines)))["overall"]["figures"]
    assert (summary["VIE_ALL"]["count"], summary["VIE_ALL"]["missing"]) == (5, 1)
    assert (summary["VIE_PQ"]["count"], summary["VIE_PQ"]["missing"]) == (6, 0)
    others = [line.scores["vie_all"] for number, line in enumerate(lines) if number != 3]
    assert summary["VIE_ALL"]["mean"] == pytest.approx(np.mean(others))
    assert summary["VIE_ALL"]["std"] == pytest.approx(np.std(others))


def test_a_faulty_judge_gives_the_metrics_of_a_healthy_one(tmp_path: Path, judge: JudgeServer) -> None:
    run = results(tmp_path)
    healthy = score(run, scoring(judge))
    judge.faults = Faults(share=0.4, slow=0.05)
    assert score(run, scoring(judge)) == healthy


def test_a_judge_that_is_down_ends_it_and_its_replies_arent_requested_again(tmp_path: Path, judge: JudgeServer) -> None:
    run = results(tmp_path)
    first = replace(run, lines=run.lines[:4])
    score(first, scoring(judge, tmp_path))
    judge.is_down = True
    with pytest.raises(JudgeDownError):
        score(run, scoring(judge, tmp_path))
    judge.is_down = False
    judge.reset()
    lines = score(run, scoring(judge, tmp_path))
    assert len(judge.calls) == 4
    assert all(set(PUBLISHED) <= set(line.scores) for line in lines)


def test_images_that_are_gone_are_missing_metrics_with_the_reason(tmp_path: Path, judge: JudgeServer) -> None:
    run = results(tmp_path)
    edited = run.lines[1].result.edited_image
    assert edited is not None
    (run.folder / edited).unlink()
    lines = score(run, scoring(judge))
    assert set(lines[1].missing) == {*PUBLISHED, "reference", *OFFLINE}
    assert all("no such file" in why for why in lines[1].missing.values())
    assert lines[0].missing == {}


@pytest.mark.parametrize(
    ("area", "generated", "seen"),
    [
        (None, (24, 16), (24, 16)),
        (None, (12, 8), (24, 16)),  # a model that draws small
        (None, (96, 64), (24, 16)),  # a baseline that draws large
        (10_000, (12, 8), (24, 16)),
        (96, (24, 16), (12, 8)),
        (96, (48, 32), (12, 8)),
        (96, (10, 10), (10, 10)),
    ],
)
def test_the_judge_sees_every_editors_images_at_one_size(
    area: int | None, generated: tuple[int, int], seen: tuple[int, int], tmp_path: Path, judge: JudgeServer
) -> None:
    run = results(tmp_path, count=2)
    for line in run.lines:
        edited = run.folder / str(line.result.edited_image)
        Image.open(edited).resize(generated).save(edited)
    score(run, scoring(judge, area=area, ground_score=True))
    sizes = {tuple(digest.rpartition(" ")[0] for digest in call.images) for call in judge.calls}
    source, edit = (f"{width} x {height}" for width, height in ((12, 8) if area == 96 else (24, 16), seen))
    assert sizes == {(source, edit), (edit,)}


def test_copying_the_source_is_the_floor(tmp_path: Path) -> None:
    run = results(tmp_path)
    opened = open_benchmark(find_benchmark(str(tmp_path / "pairs")))
    start_run(tmp_path / "copy", opened, copy_editor(), {})
    generate(tmp_path / "copy", opened, copy_editor(), Selection())
    floor = score(load_run(tmp_path / "copy"), scoring())
    assert all(line.scores["reference"] == pytest.approx(0.0) for line in floor)
    better = score(run, scoring())
    assert all(b.scores["psnr"] > f.scores["psnr"] for b, f in zip(better, floor, strict=True))


def test_pairs_are_of_the_same_sample_and_seed(tmp_path: Path) -> None:
    a = results(tmp_path)
    b = replace(a, lines=a.lines[2:])
    assert [pair.id for pair in pairs_of(a, b, shared_keys(a, b), None)] == ["s2", "s3", "s4", "s5"]


def test_a_summary_is_json_with_all_that_metrics_depend_on(tmp_path: Path, judge: JudgeServer) -> None:
    run = results(tmp_path, count=10)
    how = scoring(judge)
    document = json.loads(
        json.dumps(
            summary_document(replace(run, lines=tuple(score(run, how)), scoring=how.describe())), allow_nan=False
        )
    )
    assert document["scoring"]["judge"] == {"model": MODEL, "declaration": load_declaration().describe()}
    assert document["scoring"]["protocol"] == "earl"
    assert len(document["scoring"]["rubrics"]) == 16
    assert document["editor"]["fingerprint"] == "f00"
    assert set(document["by task"]) == {"colour", "weather"}
    assert document["by task"]["colour"]["edits"] == 5
    groups = summarize(replace(run, lines=tuple(score(run, how))))
    assert document["overall"]["figures"]["psnr"]["low"] == groups[0].columns["psnr"].low
