"""docs/extending: every page's files are written and its commands run, in one folder, and the files it names exist."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
from pathlib import Path

import pytest
from judge_server import JudgeServer
from PIL import Image

from earl_cli import app

ROOT = Path(app.__file__).parents[1]
FOLDER = ROOT / "docs" / "extending"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
FILE = re.compile(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```$", re.M | re.S)
LINES = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, judge: JudgeServer) -> Path:
    """A folder with what the pages take for granted: photos, pairs, a model, and a judge."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE", judge.api_base)
    city = tmp_path / "city"
    city.mkdir()
    rows = []
    with Image.open(ROOT / "docs" / "photos" / "coffee.jpg") as photo:
        for number in range(8):
            part = photo.crop((number * 40, 0, number * 40 + 120, 80))
            part.save(city / f"{number}.png")
            part.point(lambda value: min(255, value * 3 // 2)).save(city / f"{number}.edited.png")
            row = {"id": str(number), "source": f"{number}.png", "edited": f"{number}.edited.png", "kind": "light"}
            rows.append(json.dumps({**row, "instruction": "make it brighter"}))
    (city / "pairs.jsonl").write_text("\n".join(rows))
    for name, copy in {"0.png": "photo.jpg", "0.edited.png": "edited.jpg"}.items():
        with Image.open(city / name) as image:
            image.save(copy)
    (tmp_path / "my-model").symlink_to(tiny_model_dir)
    return tmp_path


def run_page(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Write the page's files, run its commands; all that they printed."""
    for file, content in FILE.findall(PAGES[name]):
        Path(file).write_text(content, encoding="utf-8")
    printed = ""
    lines = [line for block in LINES.findall(PAGES[name]) for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *args = shlex.split(re.sub(r"\$(\w+)", lambda found: os.environ[found[1]], line))
        if program == "python":
            runpy.run_path(args[0])
        else:
            assert app.run(args) == 0, f"{line}\n{capsys.readouterr().err}"
        printed += "".join(capsys.readouterr())
    return printed


def test_every_file_that_a_page_names_exists() -> None:
    named = {(FOLDER / link).resolve() for text in PAGES.values() for link in re.findall(r"\]\(([^\s)#]+)", text)}
    named |= {ROOT / path for text in PAGES.values() for path in re.findall(r"`(earl_cli/[\w/.]+)`", text)}
    assert len(named) > 15
    assert [str(path) for path in named if not path.exists()] == []


def test_every_page_has_a_test() -> None:
    tested = set(re.findall(r"run_page\(\"([\w-]+)\"", Path(__file__).read_text(encoding="utf-8")))
    assert tested == set(PAGES) - {"README", "sampling-parameter"}


@pytest.mark.slow
def test_add_a_benchmark(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "embedded  2 " in run_page("benchmark", capsys)
    assert "City photos, weather edits" in (workplace / "report.html").read_text(encoding="utf-8")
    (scored,) = workplace.glob("results/city/embedded-*/scored.jsonl")
    assert len(scored.read_text(encoding="utf-8").splitlines()) == 2


def test_add_a_reward(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["tokenize", "city", "-o", "store"]) == 0
    printed = run_page("reward", capsys)
    assert re.search(r"\b0\.[45]\d*", printed)  # half as bright again, less what is clipped at white
    assert "my_rewards:brightness" in printed


def test_add_a_judge(workplace: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    run_page("judge", capsys)
    requested = [call.body["messages"] for call in judge.calls][-1]
    assert requested[0]["role"] == "system"


def test_add_a_model(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_page("model-family", capsys)
    with Image.open("edited.png") as edited, Image.open("photo.jpg") as photo:
        assert edited.size == photo.size


def test_change_the_loss(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the ratio is 1 both have one gradient; further away CISPO keeps its own and PPO's is clipped."""
    numbers = [float(each) for each in re.findall(r"-?\d+\.\d+", run_page("loss", capsys))]
    assert numbers == pytest.approx([-1.0, -1.2, 1.0, 2.4], abs=1e-3)
