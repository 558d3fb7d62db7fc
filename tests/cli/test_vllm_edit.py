"""``earl edit --engine vllm`` as a user runs it: the same picture, and arguments that reach the engine or don't."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from needs_vllm import need_vllm
from PIL import Image

need_vllm()
pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PHOTO = Path(__file__).parents[2] / "docs" / "photos" / "palace.jpg"


def edit(output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "earl_cli", "--json", "edit", str(PHOTO), "make it snowy", "-o", str(output)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--seed", "7", "--device", "cpu", *more],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_both_engines_draw_the_same_picture(tmp_path: Path) -> None:
    pictures = []
    for engine, more in (("transformers", []), ("vllm", ["--engine-arg", "kv-cache-memory-bytes=200000000"])):
        done = edit(tmp_path / f"{engine}.png", "--engine", engine, *more)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["engine"] == engine
        pictures.append(np.asarray(Image.open(tmp_path / f"{engine}.png"), dtype=np.int16))
    assert np.abs(pictures[0] - pictures[1]).mean() < 1


def test_an_argument_that_vllm_does_not_have_is_one_message(tmp_path: Path) -> None:
    done = edit(tmp_path / "out.png", "--engine", "vllm", "--engine-arg", "speed=3")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["where"] == "--engine-arg"
    assert "Traceback" not in done.stderr
