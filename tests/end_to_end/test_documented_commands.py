"""Every line of docs/COMMANDS.md, typed into a shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from earl_cli import app

pytestmark = pytest.mark.slow
ROOT = Path(app.__file__).parents[1]
TEXT = (ROOT / "docs" / "COMMANDS.md").read_text(encoding="utf-8")
LINES = re.findall(r"^(earl edit .+?) +#", TEXT, re.MULTILINE)
TRAINING = re.findall(r"^(earl (?:tokenize|sft|rl) .+?) *(?:#.*)?$", TEXT, re.MULTILINE)
EVALUATION = re.findall(r"^(earl eval .+?) +#", TEXT, re.MULTILINE)


def small(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with Image.open(ROOT / "docs" / "photos" / "coffee.jpg") as photo:
        photo.resize((120, 80)).save(path)


def typed(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs}
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def test_there_are_examples() -> None:
    assert len(LINES) >= 5
    assert len(TRAINING) >= 12
    assert len(EVALUATION) >= 6


def test_from_pairs_to_a_trained_model(tmp_path: Path) -> None:
    rows = []
    for index in range(8):
        names = {"source": f"{index}.png", "edited": f"{index} edited.png"}
        for name in names.values():
            small(tmp_path / "pairs" / name)
        rows.append({"id": str(index), **names, "instruction": "make it warmer", "plan": "red", "objects": "all"})
    (tmp_path / "pairs" / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tables").mkdir()
    pictures = [{name: (tmp_path / "pairs" / row[name]).read_bytes() for name in ("source", "edited")} for row in rows]
    table = pa.Table.from_pylist([{**row, **found} for row, found in zip(rows, pictures, strict=True)])
    pq.write_table(table, tmp_path / "tables" / "train-0.parquet")
    (tmp_path / "my-model").symlink_to(ROOT / "earl_cli" / "models" / "embedded")
    for line in TRAINING:
        typed(line, tmp_path)
    assert json.loads(typed("earl tokenize inspect again/ --json", tmp_path).stdout)["pairs"] == 8
    for name in ("pairs.html", "curves.png", "my-editor/config.json", "my-editor/validation/step-000002.html"):
        assert (tmp_path / name).stat().st_size > 0


def test_from_models_to_a_report(tmp_path: Path) -> None:
    rows = []
    for index in range(2):
        names = {"source": f"{index}.png", "edited": f"{index} edited.png"}
        for name in names.values():
            small(tmp_path / "pairs" / name)
        rows.append({"id": str(index), **names, "instruction": "make it warmer"})
    (tmp_path / "pairs" / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my-model").symlink_to(ROOT / "earl_cli" / "models" / "embedded")
    for line in EVALUATION:
        typed(line, tmp_path)
    for name in ("all.html", "all.tex", "mine/report.html", "first/tables.md"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize("line", LINES)
def test_documented_command(line: str, tmp_path: Path) -> None:
    for name in ["photo.jpg", "in.jpg", "holidays/one.jpg", "holidays/two.webp", "a.png"]:
        small(tmp_path / name)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    done = typed(line, tmp_path)
    assert "warning" not in done.stderr
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written
    for path in written:
        Image.open(path).load()
