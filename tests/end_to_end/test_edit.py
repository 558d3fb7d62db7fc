"""A person with a photo and the model inside the package: what they type, and what they get."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from earl_cli import app

pytestmark = pytest.mark.slow
PHOTOS = Path(app.__file__).parents[1] / "docs" / "photos"


def earl(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "earl_cli", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def pixels(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def saturation(image: NDArray[np.float64]) -> float:
    return float((image.max(axis=-1) - image.min(axis=-1)).mean())


def test_make_it_snowy(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes((PHOTOS / "palace.jpg").read_bytes())
    done = earl("edit", "photo.jpg", "make it snowy", "--seed", "7", "--compare", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = pixels(tmp_path / "photo.jpg"), pixels(tmp_path / "photo.edited.jpg")
    assert after.shape == before.shape
    assert after.mean() > before.mean() + 0.05  # snow is bright
    assert "embedded: " in done.stderr  # device, number type, memory
    assert "warning" not in done.stderr
    assert (tmp_path / "photo.edited.compare.jpg").is_file()


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.float64]]:
    """One photo edited in several ways, by instruction, and itself under "source"; all by the same process."""
    folder = tmp_path_factory.mktemp("edits")
    photo = PHOTOS / "coffee.jpg"
    images = {"source": pixels(photo)}
    for index, words in enumerate(["turn it into night", "make it black and white", "invert the colors", "mirror it"]):
        output = folder / f"{index}.png"
        assert app.run(["edit", str(photo), words, "--seed", "7", "-o", str(output), "--quiet"]) == 0
        images[words] = pixels(output)
    return images


def test_night_is_dark(edited: dict[str, NDArray[np.float64]]) -> None:
    assert edited["turn it into night"].mean() < 0.7 * edited["source"].mean()


def test_black_and_white_has_little_colour(edited: dict[str, NDArray[np.float64]]) -> None:
    assert saturation(edited["make it black and white"]) < 0.4 * saturation(edited["source"])


def test_a_negative_is_the_opposite(edited: dict[str, NDArray[np.float64]]) -> None:
    source, negative = edited["source"], edited["invert the colors"]
    assert np.corrcoef(source.ravel(), negative.ravel())[0, 1] < -0.5


def test_a_mirrored_photo_is_nearer_to_its_mirror_image(edited: dict[str, NDArray[np.float64]]) -> None:
    source, mirrored = edited["source"], edited["mirror it"]
    assert np.square(mirrored - source[:, ::-1]).mean() < np.square(mirrored - source).mean()


def test_edits_keep_the_photos_detail(edited: dict[str, NDArray[np.float64]]) -> None:
    def detail(image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.diff(image.mean(axis=-1), axis=1).ravel()

    source, grey = detail(edited["source"]), detail(edited["make it black and white"])
    assert np.corrcoef(source, grey)[0, 1] > 0.8


def test_an_instruction_outside_its_range_is_reported_beside_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.png"
    assert app.run(["edit", str(PHOTOS / "cat.jpg"), "replace the cat by a dragon", "-o", str(output), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert output.is_file()
    assert not document["abilities"]["in_range"]
    assert "make it" in captured.err
    assert "dragon" in captured.err


def test_many_photos_and_a_broken_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for photo in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(photo) as image:
            image.resize((image.width // 3, image.height // 3)).save(tmp_path / f"small {photo.stem}.webp")
    (tmp_path / "zero.webp").touch()
    assert app.run(["edit", str(tmp_path), "make it snowy", "-o", str(tmp_path / "out"), "--seed", "1"]) == 7
    error = capsys.readouterr().err
    assert "zero.webp" in error.splitlines()[-1]
    assert len(list((tmp_path / "out").glob("small *.edited.webp"))) == 4


def test_doctor_finds_nothing_broken(capsys: pytest.CaptureFixture[str]) -> None:
    code = app.run(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, [check for check in report["checks"] if check["state"] == "broken"]
    assert report["healthy"]


def test_a_cold_edit_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    """What makes a first edit slow is imports; these are the large ones that it must not pay for."""
    script = (
        "import sys\nfrom earl_cli.app import run\n"
        f"run(['edit', {str(PHOTOS / 'cat.jpg')!r}, 'make it snowy', '-o', 'out.png', '--quiet'])\n"
        "print(' '.join(sys.modules))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(done.stdout.split())
    unneeded = {"datasets", "pyarrow", "pandas", "scipy", "sklearn", "torchvision", "rjsonnet", "matplotlib"}
    assert not loaded & unneeded
    assert {"torch", "transformers.models.emu3.modeling_emu3"} <= loaded
