"""``earl eval`` as a whole: the benchmark that ships with it and a local judge, and runs that are killed and go on."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import address, opened
from evaluations import pairs
from judge_server import JudgeServer
from PIL import Image
from playwright.sync_api import Browser
from trainings import torchrun
from victims import Forks, own_program

from earl_cli.app import run as earl
from earl_cli.evaluation.results import LINES, PUBLISHED, find_results, lines_of, load_run
from earl_cli.files import is_partial

pytestmark = pytest.mark.slow
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for processes that are left over")
EDITS = 10
EMBEDDED_EDITS = 16


def made(results: Path) -> dict[str, Any]:
    """What a run made: its images, lines and metrics, but for times and for how lines are spread over files."""
    found: dict[str, Any] = {}
    for path in sorted(results.rglob("*")):
        name = str(path.relative_to(results))
        if path.suffix == ".png":
            found[name] = np.asarray(Image.open(path)).tobytes()
        elif path.name in ("summary.json", "tables.md", "tables.tex", "scoring.json"):
            found[name] = path.read_text(encoding="utf-8")
        elif path.name == "scored.jsonl":
            found[name] = [{**json.loads(line), "seconds": None} for line in path.read_text().splitlines()]
        assert not is_partial(path)
    return found


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[object, ...]:
    folder = pairs(tmp_path_factory.mktemp("data") / "pairs", EDITS)
    return ("eval", "-b", folder, "-m", tiny_model_dir, "--device", "cpu", "--no-report")


@pytest.fixture(scope="module")
def undisturbed(launch: Forks, words: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("undisturbed") / "results"
    run = launch(*words, "-o", output)
    assert run.wait() == 0, run.output
    return made(output)


@linux
@pytest.mark.parametrize(
    ("touches", "least"),
    [((9, 45, 100), 3), pytest.param((1, 4, 9, 17, 30, 45, 62, 80, *[100] * 5), 5, marks=pytest.mark.full)],
    ids=["some", "many"],
)
def test_killed_at_any_operation_it_ends_as_if_nothing_had_happened(
    touches: tuple[int, ...],
    least: int,
    launch: Forks,
    words: tuple[object, ...],
    undisturbed: dict[str, Any],
    tmp_path: Path,
) -> None:
    output, kills = tmp_path / "results", 0
    for each in touches:
        run = launch(*words, "-o", output, touches=each)
        code = run.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, run.output
        kills += 1
        if output.exists():
            for folder in find_results([output]) if any(output.rglob("run.json")) else []:
                for line in lines_of(folder):
                    assert (folder / str(line.result.edited_image)).is_file()
    assert kills >= least
    run = launch(*words, "-o", output)
    assert run.wait() == 0, run.output
    for left in filter(is_partial, output.rglob("*")):
        left.unlink()
    assert made(output) == undisturbed


@linux
@pytest.mark.full
def test_two_processes_share_the_work_and_the_last_one_scores(
    words: tuple[object, ...], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    process = torchrun(2, *words, "-o", tmp_path / "results")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert made(tmp_path / "results") == undisturbed
    shares = {path.name for path in (tmp_path / "results").rglob(f"{LINES}/*.jsonl")}
    assert shares == {"0-of-2.jsonl", "1-of-2.jsonl"}


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_a_signal_stops_it_without_a_word_too_much(
    launch: Forks,
    words: tuple[object, ...],
    undisturbed: dict[str, Any],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    output = tmp_path / "results"
    run = launch(*words, "-o", output, freeze="after the first edit").frozen()
    run.send(number)
    run.thaw()
    assert run.wait(60) == 128 + number, run.output
    assert "Traceback" not in run.output
    run = launch(*words, "-o", output)
    assert run.wait() == 0, run.output
    assert made(output) == undisturbed


def test_a_full_disk_is_one_message_and_costs_nothing_written(
    launch: Forks, words: tuple[object, ...], undisturbed: dict[str, Any], small_disk: Callable[[int], Path]
) -> None:
    output = small_disk(120_000) / "results"
    run = launch(*words, "-o", output)
    assert run.wait() == 8, run.output
    assert run.output.count("error:") == 1
    assert "disk is full" in run.output or "No space left" in run.output
    small_disk(20_000_000)
    run = launch(*words, "-o", output)
    assert run.wait() == 0, run.output
    assert made(output) == undisturbed


def test_the_embedded_model_on_the_embedded_benchmark_with_a_judge(
    judge: JudgeServer, tmp_path: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    run = own_program(
        tmp_path,
        "eval",
        "--limit",
        EMBEDDED_EDITS,
        "--judge",
        judge.api_base,
        "-o",
        tmp_path / "results",
        environment={"OPENAI_API_KEY": "sk-test"},
    )
    assert run.wait(300) == 0, run.output
    assert "sk-test" not in run.output
    model, floor = sorted(
        (load_run(folder) for folder in find_results([tmp_path / "results"])), key=lambda r: r.editor == "copy"
    )
    assert (len(model.lines), len(floor.lines)) == (EMBEDDED_EDITS, EMBEDDED_EDITS)
    for line in model.lines:
        assert set(PUBLISHED) <= set(line.scores)
        assert line.missing == {}
    better = [a.scores["psnr"] > b.scores["psnr"] for a, b in zip(model.lines, floor.lines, strict=True)]
    assert np.mean(better) > 0.8
    requested = len(judge.calls)
    assert earl(["eval", "score", str(tmp_path / "results"), "--judge", judge.api_base]) == 0
    assert len(judge.calls) == requested
    capsys.readouterr()
    assert earl(["eval", "compare", str(floor.folder), str(model.folder), "--json"]) == 0
    psnr = json.loads(capsys.readouterr().out)["columns"]["psnr"]
    assert psnr["low"] > 5
    assert psnr["p"] < 0.05
    with opened(browser, address(tmp_path / "results" / "report.html")) as page:
        text = page.inner_text("body")
    for word in ("VIEScore", "PSNR", "embedded", "copy"):
        assert word in text
