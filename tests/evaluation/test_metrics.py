"""The metrics against a known target: by hand, by an own SSIM, and at sizes that windows don't fit into."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from earl_cli.errors import MissingExtraError, ModelError, UsageError
from earl_cli.evaluation.metrics import DEFAULT, METRICS, MOST_PSNR, available, measure, versions
from earl_cli.evaluation.results import COLUMNS
from earl_cli.rewards.reward import Pixels

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
SAME = {"l1": 0.0, "l2": 0.0, "psnr": MOST_PSNR, "ssim": 1.0}
Floats = NDArray[np.float64]


def flat(value: int, height: int = 12, width: int = 16) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def noise(seed: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ssim_by_definition(a: Floats, b: Floats) -> float:
    """Wang et al. 2004, equations 13 to 17, for one colour: a window around each pixel, mirrored beyond the edges."""
    weights = np.exp(-(np.arange(-5, 6)[:, None] ** 2 + np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    a_padded, b_padded = np.pad(a, 5, mode="reflect"), np.pad(b, 5, mode="reflect")
    values = []
    for row in range(a.shape[0]):
        for column in range(a.shape[1]):
            x, y = (each[row : row + 11, column : column + 11] for each in (a_padded, b_padded))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
            values.append(luminance * (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2))
    return float(np.mean(values))


def test_the_names_are_columns_and_versions_are_known() -> None:
    assert set(METRICS) <= set(COLUMNS)
    assert METRICS[:-1] == DEFAULT
    assert {"torch", "torchmetrics", "pillow"} <= versions().keys()
    assert ("torchvision" in versions()) == HAS_TORCHVISION


def test_flat_images_by_hand() -> None:
    found = measure(flat(51), flat(102))
    assert list(found) == list(DEFAULT)
    assert found["l1"] == pytest.approx(0.2)
    assert found["l2"] == pytest.approx(0.04)
    assert found["psnr"] == pytest.approx(-10 * math.log10(0.04))
    assert found["ssim"] == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), abs=1e-3)


def test_only_the_named_metrics_in_their_order() -> None:
    assert list(measure(flat(1), flat(2), ("ssim", "l1"))) == ["ssim", "l1"]
    assert measure(flat(1), flat(2), ()) == {}


def test_noise_against_numpy() -> None:
    edited, target = noise(1, 23, 17), noise(2, 23, 17)
    difference = (edited.astype(np.float64) - target) / 255
    found = measure(edited, target)
    assert found["l1"] == pytest.approx(np.abs(difference).mean())
    assert found["l2"] == pytest.approx((difference**2).mean())
    assert found["psnr"] == pytest.approx(-10 * math.log10((difference**2).mean()))


@pytest.mark.parametrize(("height", "width"), [(19, 14), (7, 30), (6, 6)])
def test_ssim_is_what_its_paper_says(height: int, width: int) -> None:
    target = noise(3, height, width)
    edited = (0.7 * target + 0.3 * noise(4, height, width)).astype(np.uint8)
    colours = [ssim_by_definition(edited[..., each] / 255, target[..., each] / 255) for each in range(3)]
    assert measure(edited, target, ("ssim",))["ssim"] == pytest.approx(float(np.mean(colours)), abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 5), (7, 300), (300, 2)], ids=str)
def test_any_size_has_all_metrics(size: tuple[int, int]) -> None:
    edited, target = noise(5, *size), noise(6, *size)
    assert all(math.isfinite(value) for value in measure(edited, target).values())
    assert measure(target, target) == SAME


def test_grey_images_have_the_metrics_of_one_colour() -> None:
    edited, target = (np.repeat(noise(seed, 15, 15)[..., :1], 3, axis=2) for seed in (7, 8))
    found = measure(edited, target)
    assert found["ssim"] == pytest.approx(ssim_by_definition(edited[..., 0] / 255, target[..., 0] / 255), abs=1e-5)


def test_equal_images_are_the_best_there_is_and_near_ones_no_better() -> None:
    target = noise(9, 1000, 1000)
    near = target.copy()
    near[0, 0, 0] ^= 1
    assert measure(target, target, ("psnr",)) == {"psnr": MOST_PSNR}
    assert measure(near, target, ("psnr",)) == {"psnr": MOST_PSNR}


def test_an_edit_of_another_size_is_brought_to_the_targets() -> None:
    target = noise(10, 20, 30)
    larger = np.asarray(Image.fromarray(target).resize((60, 40), Image.Resampling.BICUBIC))
    back = np.asarray(Image.fromarray(larger).resize((30, 20), Image.Resampling.BICUBIC))
    assert measure(larger, target) == measure(back, target)
    assert measure(flat(240, 1, 1), flat(240, 300, 7)) == SAME


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 100))
def test_metrics_are_symmetric_and_stay_in_their_range(height: int, width: int, seed: int) -> None:
    a, b = noise(seed, height, width), noise(seed + 1, height, width)
    there, back = measure(a, b), measure(b, a)
    assert there == pytest.approx(back, abs=1e-5)
    assert 0 <= there["l2"] <= there["l1"] <= 1
    assert -1 <= there["ssim"] <= 1
    assert 0 <= there["psnr"] <= MOST_PSNR


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="no metric 'fid'"):
        available(("l1", "fid"))


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is here")
def test_lpips_without_torchvision_is_one_clear_error() -> None:
    available(DEFAULT)
    for failing in (lambda: available(METRICS), lambda: measure(flat(1), flat(2), ("lpips",))):
        with pytest.raises(MissingExtraError, match="lpips needs the package torchvision") as caught:
            failing()
        assert caught.value.hint == "pip install torchvision"


def test_lpips_of_real_images() -> None:
    pytest.importorskip("torchvision")
    try:
        far = measure(noise(1, 64, 48), flat(128, 64, 48), ("lpips",))["lpips"]
    except ModelError as error:
        pytest.skip(str(error))
    near = measure(flat(120, 64, 48), flat(128, 64, 48), ("lpips",))["lpips"]
    assert 0 < near < far
    assert measure(flat(1, 1, 7), flat(1, 1, 7), ("lpips",)) == {"lpips": 0.0}


def test_torch_waits_until_something_is_measured() -> None:
    code = "import sys, earl_cli.evaluation.metrics as m; m.available(m.DEFAULT); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
