"""``earl rl plot`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from logs import a_rl_run, a_run
from PIL import Image

from earl_cli.app import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 100 iterations, validated twice, in the current folder."""
    monkeypatch.chdir(tmp_path)
    a_rl_run(Path("run"), 100)


@pytest.mark.slow
def test_a_run_is_plotted_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rl", "plot", "run"]) == 0
    head, row, last = capsys.readouterr().out.splitlines()
    assert head.split("  ")[-1] == "best validation reward"
    assert row.split()[:2] == ["run", "100"]
    assert row.endswith("at step 100")
    assert last == "plot in curves.png"
    with Image.open("curves.png") as image:
        assert image.format == "PNG"


def test_the_document_has_the_highest_validation_reward(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    lines += [{"step": 101, "validation/reward/mean": 9.5}]
    lines += [{"step": 102, "validation/reward/mean": 2.0, "reward/mean": 1.5}]
    Path("run/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["rl", "plot", "run", "-o", "curves.svg", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runs"] == [
        {
            "run": "run",
            "log": "run/log.jsonl",
            "steps": 102,
            "reward": 1.5,
            "best_validation_reward": 9.5,
            "best_validation_step": 101,
        }
    ]
    assert document["metrics"][:2] == ["reward/mean", "validation/reward/mean"]


def test_metrics_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["time/update", "rewards/perceptual_quality/mean"]
    assert run(["rl", "plot", "run", *(part for name in names for part in ("--metric", name)), "-o", "x.svg"]) == 0
    text = Path("x.svg").read_text(encoding="utf-8")
    assert "time update" in text
    assert "rewards perceptual quality mean" in text
    assert "Reward<" not in text
    assert run(["rl", "plot", "run", "--metric", "klk", "-o", "y.svg"]) == 2
    assert "there are: reward/mean," in capsys.readouterr().err


def test_a_log_of_version_0_1_0_is_plotted(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old").mkdir()
    Path("old/log.jsonl").write_bytes((Path(__file__).parents[1] / "training/old_logs/rl.jsonl").read_bytes())
    assert run(["rl", "plot", "old", "run", "-o", "x.svg", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metrics"][:3] == ["reward/mean", "validation/reward/mean", "reward/group_std"]
    old = document["runs"][0]
    assert (old["steps"], old["best_validation_step"]) == (2, 0)
    assert old["reward"] == pytest.approx(-0.0784679)
    names = [part for name in ("reward", "part_colour", "seconds_update") for part in ("--figure", name)]
    assert run(["rl", "plot", "old", *names, "-o", "y.svg", "--json"]) == 0
    chosen = ["reward/mean", "rewards/colour/mean", "time/update"]
    assert json.loads(capsys.readouterr().out)["metrics"] == chosen


@pytest.mark.parametrize(("command", "other"), [("rl", "sft"), ("sft", "rl")])
def test_a_run_of_the_other_command_is_warned_about(
    command: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(Path("of-sft"), 20)
    place = {"sft": "of-sft", "rl": "run"}
    assert run([command, "plot", place[other], "-o", "x.svg"]) == 0
    assert f"is a run of earl {other}, which earl {other} plot is for" in capsys.readouterr().err
    assert run([command, "plot", place[command], "-o", "y.svg"]) == 0
    assert "warning" not in capsys.readouterr().err
