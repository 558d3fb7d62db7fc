"""Every block of docs/TUTORIAL.md, run in order in one folder, on a tiny scale; what it shows and names comes to be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from earl_cli import app

pytestmark = [pytest.mark.slow, pytest.mark.full]
ROOT = Path(app.__file__).parents[1]
TEXT = (ROOT / "docs" / "TUTORIAL.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python|text)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
NAMED = re.findall(r"^\| (`.+?) \|", TEXT, re.MULTILINE)
FILES = [name for cell in NAMED for name in re.findall(r"`(\S+\.\w+)`", cell)]
SMALLER = {
    'write_pairs("pairs", paths[:-1], 40)': 'write_pairs("pairs", paths[:-1], 2)',
    'write_pairs("held-out", paths[-1:], 8)': 'write_pairs("held-out", paths[-1:], 1)',
    "--sample 8": "--sample 1",
    "max_steps=120": "max_steps=1",
    "batch_size=8": "batch_size=1",
    "warmup_steps=10": "warmup_steps=1",
    "validate_every=40": "validate_every=1",
    "--iterations 20": "--iterations 1",
    "episodes_per_iteration=32": "episodes_per_iteration=8",
    "validation_examples=8": "validation_examples=1",
    "--limit 4": "--limit 1",
}
"""What the test writes in place of the tutorial's numbers, and all that it changes."""


def smaller(block: str) -> str:
    for number, less in SMALLER.items():
        block = block.replace(number, less)
    return block


OF_SHORT_RUNS = re.compile(
    "the only (checkpoint|validation) is|still rising at the end|validated is at the start and at the end"
)


def run(kind: str, block: str, folder: Path) -> str:
    """What a block prints. It has to succeed, without a warning but those of a run that was made shorter here."""
    program = ["sh", "-ec"] if kind == "sh" else [sys.executable, "-c"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*program, smaller(block)],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, f"{block}\n{printed}"
    warnings = [line for line in printed.splitlines() if "warning" in line and not OF_SHORT_RUNS.search(line)]
    assert not warnings, f"{block}\n{printed}"
    return printed


def without_numbers(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"-?\d+(?:[.,]\d+)*", "#", text)).strip()


def test_the_tutorial(tmp_path: Path) -> None:
    assert all(number in TEXT for number in SMALLER)
    shutil.copytree(ROOT / "docs" / "photos", tmp_path / "photos", ignore=shutil.ignore_patterns("*.md"))
    printed = ""
    for kind, block in BLOCKS:
        if kind != "text":
            printed = run(kind, block, tmp_path)
            continue
        for line in block.splitlines():
            assert without_numbers(line) in without_numbers(printed), f"{line!r} isn't among\n{printed}"
    assert len(FILES) >= 12
    for name in FILES:
        found = list(tmp_path.glob(re.sub(r"\d+", "*", name)))
        assert found and all(path.stat().st_size > 0 for path in found), f"{name} isn't there"
