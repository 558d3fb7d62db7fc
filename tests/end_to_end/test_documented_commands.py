"""Every line of docs/COMMANDS.md, as a person types it: in a shell where it needs one, else in this process."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from earl_cli import app

pytestmark = pytest.mark.slow
ROOT = Path(app.__file__).parents[1]
TEXT = (ROOT / "docs" / "COMMANDS.md").read_text(encoding="utf-8")
LINES = re.findall(r"^(earl edit .+?) +#", TEXT, re.MULTILINE)
TRAINING = re.findall(r"^(earl (?:tokenize|sft|rl|config) .+?) *(?:#.*)?$", TEXT, re.MULTILINE)
EVALUATION = re.findall(r"^(earl eval .+?) +#", TEXT, re.MULTILINE)
QUOTED, FOR_A_SHELL = re.compile(r"\"[^\"]*\"|'[^']*'"), re.compile(r"[<>|*?$&;]")


def small(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with Image.open(ROOT / "docs" / "photos" / "coffee.jpg") as photo:
        photo.resize((120, 80)).save(path)


Typed: TypeAlias = Callable[[str], tuple[str, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs a line in the test's folder, where all must go well; what it wrote to stdout and to stderr."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.chdir(tmp_path)

    def typed(line: str) -> tuple[str, str]:
        if FOR_A_SHELL.search(QUOTED.sub("", line)):
            environment = {**os.environ, "PATH": programs}
            done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, env=environment)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code = app.run(shlex.split(line)[1:])
            out, err = capsys.readouterr()
        assert code == 0, f"{line}\n{out}\n{err}"
        assert "Traceback" not in err
        return out, err

    return typed


def test_there_are_examples() -> None:
    assert len(LINES) >= 5
    assert len(TRAINING) >= 15
    assert len(EVALUATION) >= 6


def test_from_pairs_to_a_trained_model(typed: Typed, tmp_path: Path) -> None:
    rows = []
    for index in range(8):
        names = {"source": f"{index}.png", "edited": f"{index} edited.png"}
        for name in names.values():
            small(tmp_path / "pairs" / name)
        rows.append({"id": str(index), **names, "instruction": "make it warmer", "plan": "red", "objects": "all"})
    (tmp_path / "pairs" / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tables").mkdir()
    images = [{name: (tmp_path / "pairs" / row[name]).read_bytes() for name in ("source", "edited")} for row in rows]
    table = pa.Table.from_pylist([{**row, **found} for row, found in zip(rows, images, strict=True)])
    pq.write_table(table, tmp_path / "tables" / "train-0.parquet")
    (tmp_path / "my-model").symlink_to(ROOT / "earl_cli" / "models" / "embedded")
    for line in TRAINING:
        typed(line)
    assert json.loads(typed("earl tokenize inspect again/ --json")[0])["pairs"] == 8
    for name in ("pairs.html", "curves.png", "my-editor/config.json", "my-editor/validation/step-000002.html"):
        assert (tmp_path / name).stat().st_size > 0


def test_from_models_to_a_report(typed: Typed, tmp_path: Path) -> None:
    rows = []
    for index in range(2):
        names = {"source": f"{index}.png", "edited": f"{index} edited.png"}
        for name in names.values():
            small(tmp_path / "pairs" / name)
        rows.append({"id": str(index), **names, "instruction": "make it warmer"})
    (tmp_path / "pairs" / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my-model").symlink_to(ROOT / "earl_cli" / "models" / "embedded")
    for line in EVALUATION:
        typed(line)
    for name in ("all.html", "all.tex", "mine/report.html", "first/tables.md"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize("line", LINES)
def test_documented_command(typed: Typed, line: str, tmp_path: Path) -> None:
    for name in ["photo.jpg", "in.jpg", "holidays/one.jpg", "holidays/two.webp", "a.png"]:
        small(tmp_path / name)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    _, err = typed(line)
    assert "warning" not in err
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written
    for path in written:
        Image.open(path).load()
