"""The edits that the embedded model learns do what their names say, at any size."""

from __future__ import annotations

import numpy as np
import pytest
from edits import GLOBAL, Edit, Pixels, catalogue, luma

from earl_cli.models.abilities import expand_pattern

CATALOGUE = catalogue()


def random_image(height: int, width: int) -> Pixels:
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    checks = 0.2 * ((across + down) % 2)
    channels = (across / width, down / height, 0.3 + 0.4 * (across + down) / (width + height))
    return (0.8 * np.stack(channels, axis=-1) + checks[..., None]).astype(np.float32)


def named(kind: str) -> Edit:
    return next(edit for edit in CATALOGUE if edit.kind == kind)


def done(kind: str, pixels: Pixels) -> Pixels:
    return named(kind).apply(pixels, np.random.default_rng(0))


@pytest.mark.parametrize("kind", sorted({edit.kind for edit in CATALOGUE}))
@pytest.mark.parametrize("size", [(96, 96), (64, 144), (40, 30)])
def test_every_edit_keeps_size_and_type_and_changes_something(kind: str, size: tuple[int, int]) -> None:
    pixels = random_image(*size)
    edited = done(kind, pixels)
    assert edited.shape == pixels.shape
    assert edited.dtype == np.float32
    assert np.isfinite(edited).all()
    assert np.abs(np.clip(edited, 0, 1) - pixels).mean() > 0.005


def test_edits_do_what_they_say() -> None:
    pixels = random_image(96, 96)
    mean = luma(pixels).mean()
    assert luma(done("brighter", pixels)).mean() > mean + 0.05
    assert luma(done("darker", pixels)).mean() < mean - 0.05
    assert luma(done("night", pixels)).mean() < 0.5 * mean
    assert luma(done("snow", pixels)).mean() > mean + 0.1
    assert np.ptp(done("black and white", pixels), axis=2).max() < 1e-6
    assert done("contrast", pixels).std() > 1.5 * pixels.std()
    assert np.array_equal(done("mirror", done("mirror", pixels)), pixels)
    np.testing.assert_allclose(done("negative", done("negative", pixels)), pixels, atol=1e-6)
    warm, cool = (done(kind, pixels).mean((0, 1)) for kind in ("warmer", "cooler"))
    assert warm[0] - warm[2] > 0.1 + cool[0] - cool[2]


def test_a_shape_is_where_and_what_its_instruction_says() -> None:
    edit = next(e for e in CATALOGUE if e.kind == "circle" and "add a red circle in the top left" in e.phrases)
    edited = edit.apply(random_image(100, 200), np.random.default_rng(0))
    np.testing.assert_allclose(edited[22, 44], (0.86, 0.12, 0.12), atol=1e-5)
    assert np.array_equal(edited[60:], random_image(100, 200)[60:])


def test_only_flakes_and_drops_are_random() -> None:
    pixels = random_image(48, 48)
    random = set()
    for kind, apply, *_ in GLOBAL:
        if not np.array_equal(apply(pixels, np.random.default_rng(1)), apply(pixels, np.random.default_rng(2))):
            random.add(kind)
    assert random == {"snow", "rain"}


def test_patterns_expand_to_every_choice() -> None:
    assert expand_pattern("{make|turn} it {|very }red") == (
        "make it red",
        "make it very red",
        "turn it red",
        "turn it very red",
    )
