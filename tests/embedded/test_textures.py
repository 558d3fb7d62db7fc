"""What the vision tokenizer is shown to learn fine structure: pure functions of an image and a random generator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import finer_vision
import numpy as np
import pytest
import textures
import torch
from edits import Pixels
from PIL import Image

PICTURE = np.random.default_rng(0).uniform(0, 1, (64, 96, 3)).astype(np.float32)


@pytest.mark.parametrize("texture", [*dict.fromkeys(textures.TEXTURES), textures.any_texture])
def test_a_texture_changes_a_copy_in_the_same_way_every_time(
    texture: Callable[[Pixels, np.random.Generator], Pixels],
) -> None:
    before = PICTURE.copy()
    first, again, other = (texture(PICTURE, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(PICTURE, before)
    assert first.shape == PICTURE.shape
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_batch_depends_on_its_step_alone(tmp_path: Path) -> None:
    for size in ((300, 200), (130, 400)):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{size[0]}.png")
    batch = finer_vision.batch_of(tmp_path, 7, 5, count=4)
    assert batch.shape == (4, 3, finer_vision.SIDE, finer_vision.SIDE)
    assert -1 <= batch.min() < batch.max() <= 1
    assert torch.equal(batch, finer_vision.batch_of(tmp_path, 7, 5, count=4))
    assert not torch.equal(batch, finer_vision.batch_of(tmp_path, 7, 6, count=4))
