"""``--engine vllm`` as a user runs it: the same image by edit and serve, arguments that reach the engine or don't."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openai
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


def test_both_engines_sample_the_same_image(tmp_path: Path) -> None:
    images = []
    for engine, more in (("transformers", []), ("vllm", ["--engine-arg", "kv-cache-memory-bytes=200000000"])):
        done = edit(tmp_path / f"{engine}.png", "--engine", engine, *more)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["engine"] == engine
        images.append(np.asarray(Image.open(tmp_path / f"{engine}.png"), dtype=np.int16))
    assert np.abs(images[0] - images[1]).mean() < 1


def test_an_argument_that_vllm_does_not_have_is_one_message(tmp_path: Path) -> None:
    done = edit(tmp_path / "out.png", "--engine", "vllm", "--engine-arg", "speed=3")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["where"].startswith("--engine-arg")
    assert "Traceback" not in done.stderr


def test_a_server_samples_what_the_command_samples(tmp_path: Path) -> None:
    done = edit(tmp_path / "edited.png", "--engine", "transformers")
    assert done.returncode == 0, done.stderr
    command = [
        sys.executable,
        "-m",
        "earl_cli",
        "--json",
        "serve",
        "--port",
        "0",
        "--device",
        "cpu",
        "--engine",
        "vllm",
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            about = json.loads(b"".join(iter(server.stdout.readline, b"}\n")) + b"}")
            assert about["engine"] == "vllm"
            client = openai.OpenAI(base_url=about["api_base"], api_key="none", max_retries=0, timeout=120)
            answer = client.images.edit(image=PHOTO.read_bytes(), prompt="make it snowy", extra_body={"seed": 7})
        finally:
            server.terminate()
    generated = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    pixels = [
        np.asarray(each.convert("RGB"), dtype=np.int16) for each in (generated, Image.open(tmp_path / "edited.png"))
    ]
    assert np.abs(pixels[0] - pixels[1]).mean() < 1
    assert server.returncode == 143
