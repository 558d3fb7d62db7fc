"""``earl sft plot`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from earl_cli.app import run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two runs in the current folder, the second of them without validation."""
    monkeypatch.chdir(tmp_path)
    for name, validated in (("one", True), ("two", False)):
        lines = []
        for step in range(10, 1210, 10):
            lines.append({"step": step, "loss": 3 - step / 1000, "grad_norm": 1.0, "learning_rate": 1e-4})
            if validated and step % 400 == 0:
                lines.append({"step": step, "eval_loss": 2 + abs(step - 800) / 1000, "eval_runtime": 1.0})
        Path(name).mkdir()
        Path(name, "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["one", "two"]


def test_runs_are_plotted_and_listed(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sft", "plot", *runs]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "run  steps  last loss  best validation loss",
        "one  1,200  1.8000     2.0000 at step 800",
        "two  1,200  1.8000     -",
        "plot in curves.png",
    ]
    assert captured.err == ""
    with Image.open("curves.png") as image:
        assert image.format == "PNG"


def test_the_document(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("two/log.jsonl").write_text('{"step": 3, "loss": NaN}\n')
    assert run(["sft", "plot", "one/log.jsonl", "two", "-o", "new/x.svg", "--smooth", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "output": "new/x.svg",
        "metrics": ["loss", "eval_loss", "learning_rate", "grad_norm"],
        "runs": [
            {
                "run": "one",
                "log": "one/log.jsonl",
                "steps": 1200,
                "loss": 1.8,
                "best_validation_loss": 2.0,
                "best_validation_step": 800,
            },
            {
                "run": "two",
                "log": "two/log.jsonl",
                "steps": 3,
                "loss": None,
                "best_validation_loss": None,
                "best_validation_step": None,
            },
        ],
    }
    assert Path("new/x.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_one_metric_alone(runs: list[str]) -> None:
    assert run(["sft", "plot", *runs, "--metric", "loss", "-o", "loss.svg"]) == 0
    text = Path("loss.svg").read_text(encoding="utf-8")
    assert "Training loss" in text
    assert "Learning rate" not in text


def test_an_existing_image_is_kept(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("curves.png").write_text("mine")
    assert run(["sft", "plot", *runs]) == 8
    assert "--force overwrites it" in capsys.readouterr().err
    assert Path("curves.png").read_text() == "mine"
    assert run(["sft", "plot", *runs, "--force"]) == 0
    Image.open("curves.png").load()


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["missing"], 3, "error: missing: there is no such run"),
        (["."], 3, "error: .: there is no log.jsonl in this folder"),
        (["empty"], 3, "error: empty/log.jsonl: nothing is logged yet"),
        (["damaged"], 3, 'error: damaged/log.jsonl: line 2 is damaged: {"st'),
        (["one", "-o", "curves.pdf"], 2, "error: curves.pdf: metrics are plotted as .png or .svg"),
        (["one", "-o", "folder.png"], 2, "error: folder.png: this is a folder"),
        (["one", "--metric", "los"], 2, "hint: there are: loss, grad_norm, learning_rate, eval_loss, eval_runtime"),
        (["one", "--smooth", "0"], 2, "'--smooth'"),
        ([], 2, "RUN"),
    ],
)
def test_what_can_not_be_plotted(
    runs: list[str], capsys: pytest.CaptureFixture[str], args: list[str], code: int, expected: str
) -> None:
    for name, content in (("empty", ""), ("damaged", '{"step": 1, "loss": 1}\n{"st\n{"step": 2, "loss": 1}\n')):
        Path(name).mkdir()
        Path(name, "log.jsonl").write_text(content)
    Path("folder.png").mkdir()
    assert run(["sft", "plot", *args]) == code
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert not Path("curves.png").exists()


def test_plotting_needs_no_torch(runs: list[str]) -> None:
    script = "import sys, earl_cli.app as a; assert a.run(['sft', 'plot', 'one']) == 0; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "matplotlib.pyplot"} & set(done.stdout.splitlines()[-1].split())
