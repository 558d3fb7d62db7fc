"""The published baselines with their own weights, from the Hub, on a GPU; only `make gpu-check` runs this."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earl_cli.evaluation.baselines import BASELINES, open_baseline
from earl_cli.evaluation.editors import EditTask

PHOTO = Path(__file__).parents[2] / "docs" / "photos" / "palace.jpg"


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_a_published_baseline_edits_a_photo(name: str) -> None:
    photo = Image.open(PHOTO).convert("RGB")
    editor = open_baseline(name, device="cuda")
    task = EditTask("palace", photo, "make it snowy", 7)
    first, second = (editor.edit([task])[0] for _ in range(2))
    assert first.image is not None and second.image is not None
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    assert 0.8 * 512**2 < first.image.width * first.image.height < 1.2 * 512**2
    small = np.asarray(photo.resize(first.image.size), dtype=float)
    change = np.abs(np.asarray(first.image, dtype=float) - small).mean()
    assert 3 < change < 128  # neither the same image nor noise
