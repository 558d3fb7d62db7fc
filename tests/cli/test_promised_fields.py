"""The fields of ``--json`` that version 0.1.0 had are all still there: scripts read them.

A field that has to go, or to be called otherwise, leaves promised_fields.json in a commit whose CHANGELOG says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trainings import write_pairs

from earl_cli.app import run

PROMISED: dict[str, list[str]] = json.loads(Path(__file__).with_name("promised_fields.json").read_text())


def fields(document: Any, prefix: str = "", depth: int = 2) -> set[str]:
    """Names of fields and of the fields in them, ``runs[].steps`` for a field of a list's first entry."""
    if isinstance(document, list):
        return fields(document[0], f"{prefix}[]", depth) if document else set()
    if not isinstance(document, dict) or not depth:
        return set()
    names = {name: f"{prefix}.{name}".lstrip(".") for name in document}
    return {*names.values()}.union(*(fields(document[name], path, depth - 1) for name, path in names.items()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores, a published one, and a photo."""
    folder = tmp_path_factory.mktemp("promised")
    for number in (0, 1):
        write_pairs(folder / f"store{number}", 6, seed=number)
    assert run(["tokenize", "export", str(folder / "store0"), "--format", "pth", "-o", str(folder / "published")]) == 0
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "photo.png")
    return folder


@pytest.mark.parametrize("command", PROMISED)
def test_a_document_has_the_promised_fields(
    command: str, folder: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = folder / "store0", folder / "store1"
    cpu = ("--set", "device=cpu", "--dry-run", "-o", tmp_path / "run")
    arguments = {
        "edit": [folder / "photo.png", "make it snowy", "--model", tiny_model_dir, "-o", tmp_path / "edited.png"],
        "sft --dry-run": ["--model", tiny_model_dir, "--data", first, "--set", "max_steps=2", *cpu],
        "rl --dry-run": [
            *("--config", "embedded/rl", "--model", tiny_model_dir, "--data", first),
            *("--set", "episodes_per_iteration=8", *cpu),
        ],
        "tokenize inspect": [first],
        "tokenize verify": [first, second],
        "tokenize merge": [first, second, "-o", tmp_path / "both"],
        "tokenize export": [first, "--format", "jsonl", "-o", tmp_path / "pairs.jsonl"],
        "tokenize import": [folder / "published", "-o", tmp_path / "again", "--model", tiny_model_dir],
        "eval list": [],
    }[command]
    words = command.removesuffix(" --dry-run").split()
    capsys.readouterr()
    assert run([*words, *map(str, arguments), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert fields(document) >= set(PROMISED[command])
