"""``earl edit`` as a process of its own: a full disk, Ctrl-C and SIGTERM in the middle, a reader that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
BLOCKS = 40  # of 512 bytes, or of 1024 in some shells


def photos(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index:02}.png")


@pytest.fixture
def start(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def run(*args: str, blocks: int | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "earl_cli", "edit", *args, "--model", str(tiny_model_dir), "--device", "cpu"]
        small_disk = ["sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh"] if blocks else []
        return subprocess.Popen(
            [*small_disk, *command],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in background
        )

    return run


def test_a_full_disk_is_one_message_and_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    photos(tmp_path / "in", 1, side=400)  # noise: its edit is larger than the limit
    process = start("in/00.png", "make it snowy", "-o", "out.png", "--seed", "1", blocks=BLOCKS)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 8, err
    assert "error: out.png: " in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_full_disk_costs_only_what_does_not_fit(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    photos(tmp_path / "in", 2, side=400)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "in" / "small.png")
    process = start("in", "make it snowy", "-o", "out", "--seed", "1", blocks=BLOCKS)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 7, err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.edited.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    photos(tmp_path / "in", 20, side=150)
    process = start("in", "make it snowy", "-n", "8", "-o", "out")
    assert process.stdout is not None
    first = process.stdout.readline()
    assert "out/00.edited.png" in first, first
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert ("stopped" in err) == (number == signal.SIGINT)
    written = list((tmp_path / "out").iterdir())
    assert 0 < len(written) < 20 * 8
    for path in written:
        assert path.suffix == ".png"
        Image.open(path).load()


def test_runs_at_once_lose_no_result(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    photos(tmp_path / "in", 1, side=40)
    runs = [start("in/00.png", "make it snowy", "--grid", "--compare", "--seed", str(seed)) for seed in range(3)]
    result = [process.communicate(timeout=300) for process in runs]
    assert [process.returncode for process in runs] == [0, 0, 0], result
    written = [path for path in (tmp_path / "in").iterdir() if path.name != "00.png"]
    assert len(written) == 9
    seeds = [image.text["seed"] for image in map(Image.open, written)]
    assert sorted(seeds) == ["0"] * 3 + ["1"] * 3 + ["2"] * 3


def test_a_reader_that_goes_away_stops_quietly(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    photos(tmp_path / "in", 1, side=150)
    process = start("in/00.png", "make it snowy", "-o", "-")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=300) == 141, err
    assert "Traceback" not in err
    assert "error" not in err


def test_a_reader_that_goes_away_stops_a_folder(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    photos(tmp_path / "in", 20, side=150)
    process = start("in", "make it snowy", "-n", "8", "-o", "out")
    assert process.stdout is not None
    assert "out/00.edited.png" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=300) == 141, err
    assert "Traceback" not in err
    written = list((tmp_path / "out").iterdir())
    assert 0 < len(written) < 20 * 8
    for path in written:
        Image.open(path).load()
