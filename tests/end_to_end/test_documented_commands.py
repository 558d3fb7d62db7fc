"""Every ``earl edit`` line of docs/COMMANDS.md, typed into a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from earl_cli import app

pytestmark = pytest.mark.slow
ROOT = Path(app.__file__).parents[1]
LINES = re.findall(r"^(earl edit .+?) +#", (ROOT / "docs" / "COMMANDS.md").read_text(encoding="utf-8"), re.MULTILINE)


def small(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with Image.open(ROOT / "docs" / "photos" / "coffee.jpg") as photo:
        photo.resize((120, 80)).save(path)


def test_there_are_examples() -> None:
    assert len(LINES) >= 5


@pytest.mark.parametrize("line", LINES)
def test_documented_command(line: str, tmp_path: Path) -> None:
    for name in ["photo.jpg", "in.jpg", "holidays/one.jpg", "holidays/two.webp", "a.png"]:
        small(tmp_path / name)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs}
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written
    for path in written:
        Image.open(path).load()
