"""The whole path as a person types it: a folder of pairs, a store, a trained model, an edited photo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earl_cli.app import run


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "my pairs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index in range(6):
        for name in ("before", "after"):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{name}-{index}.png")
        rows.append(
            {
                "source": f"before-{index}.png",
                "edited": f"after-{index}.png",
                "instruction": "make it snowy",
                "id": index,
            }
        )
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


TRAINING = ["max_steps=3", "batch_size=2", "warmup_steps=1", "checkpoint_every=2", "log_every=1", "device=cpu"]


def sets() -> list[str]:
    return [part for value in TRAINING for part in ("--set", value)]


@pytest.mark.slow
def test_pairs_to_edited_photo(
    pairs: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, store, editor = str(tiny_model_dir), str(tmp_path / "store"), str(tmp_path / "editor")
    assert run(["tokenize", str(pairs), "--model", model, "-o", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 6
    command = ["sft", "--config", "embedded/sft", "--model", model, "--data", store, "-o", editor, *sets(), "--json"]
    assert run(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["steps"], first["resumed_from"]) == (3, 0)
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["resumed_from"] == 3
    photo = pairs / "before-0.png"
    edited = str(tmp_path / "out.png")
    assert run(["edit", str(photo), "make it snowy", "--model", editor, "-o", edited, "--seed", "1"]) == 0
    assert Image.open(edited).size == (40, 40)


def test_bad_input_is_one_message_and_an_exit_code(
    pairs: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, store = str(tiny_model_dir), str(tmp_path / "store")
    (pairs / "before-3.png").write_bytes(b"not a picture")
    assert run(["tokenize", str(pairs), "--model", model, "-o", store]) == 0
    assert "left out 3" in "".join(capsys.readouterr())
    assert run(["tokenize", str(pairs), "--model", model, "-o", store, "--image-area", "4096"]) == 2
    assert "made differently: image_area 1024 there, 4096 now" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(["tokenize", str(tmp_path / "empty"), "--model", model, "-o", store]) == 3
    assert "no data of a kind" in capsys.readouterr().err
    assert run(["sft", "--model", model, "--data", str(pairs), "-o", str(tmp_path / "x")]) == 3
    assert "not a token store" in capsys.readouterr().err
    assert run(["sft", "--model", model, "--data", store, "-o", str(tmp_path / "x"), "--set", "epoch=3"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err
