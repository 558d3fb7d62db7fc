"""The size at which the model sees an image."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from earl_cli.errors import UsageError
from earl_cli.images.resize import LEGACY_SHAPES, area_size, describe_shapes, resize_to_area

sides = st.integers(1, 20_000)
usual = st.integers(1, 4096)


@given(sides, sides, st.integers(1, 1_000_000), st.sampled_from((1, 8, 16)))
def test_sides_are_whole_multiples_and_never_vanish(width: int, height: int, area: int, multiple: int) -> None:
    size = area_size(width, height, area, multiple)
    assert all(side >= multiple and side % multiple == 0 for side in size)


def published_grid(width: int, height: int, area: int) -> tuple[int, int]:
    """Columns and rows of the published code: resize to the area, then the encoder drops what is no whole cell."""
    scale = math.sqrt(area / (width * height))
    return int(round(width * scale) / 8), int(round(height * scale) / 8)


@given(usual, usual, st.integers(64 * 64, 512 * 512))
def test_the_grid_is_the_published_one(width: int, height: int, area: int) -> None:
    columns, rows = published_grid(width, height, area)
    if min(columns, rows) >= 1:
        assert area_size(width, height, area) == (8 * columns, 8 * rows)


@given(usual, usual, st.integers(64 * 64, 512 * 512))
def test_a_thin_strip_keeps_its_area(width: int, height: int, area: int) -> None:
    if min(published_grid(width, height, area)) < 1:
        w, h = area_size(width, height, area)
        assert min(w, h) == 8
        assert area - 64 < w * h <= area
        assert (w <= h) == (width <= height)


@given(usual, usual)
def test_a_size_that_fits_already_stays(width: int, height: int) -> None:
    w, h = width * 8, height * 8
    assert area_size(w, h, w * h) == (w, h)


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    [
        ((4000, 3000), 65536, (296, 216)),
        ((1920, 1080), 65536, (336, 192)),
        ((1024, 1024), 65536, (256, 256)),
        ((1024, 1024), 65636, (256, 256)),  # the published evaluation's own area
        ((1, 1), 9216, (96, 96)),
        ((1, 100_000), 9216, (8, 1152)),
        ((100_000, 1), 9216, (1152, 8)),
        ((300, 200), 1, (8, 8)),
        ((900, 2000), 65536, (168, 376)),
    ],
)
def test_known_sizes(size: tuple[int, int], area: int, expected: tuple[int, int]) -> None:
    assert area_size(*size, area) == expected


def test_an_area_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="too small"):
        area_size(10, 10, 0)


def test_resizing_keeps_an_image_that_has_the_size() -> None:
    image = Image.new("RGB", (96, 96))
    assert resize_to_area(image, 9216) is image
    assert resize_to_area(Image.new("RGB", (640, 480)), 9216).size == area_size(640, 480, 9216)


GRIDS = ((9, 16), (12, 12), (16, 9))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((900, 2000), (72, 128)), ((2000, 900), (128, 72)), ((50, 49), (96, 96)), ((1, 9000), (72, 128))],
)
def test_a_model_sees_only_shapes_it_was_trained_on(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_to_area(Image.new("RGB", size), 9216, grids=GRIDS).size == expected


def test_a_squeezed_image_is_whole() -> None:
    strip = Image.new("RGB", (100, 1000), "red")
    strip.paste("blue", (0, 500, 100, 1000))
    small = resize_to_area(strip, 9216, grids=GRIDS)
    assert small.getpixel((0, 0)) == (255, 0, 0)
    assert small.getpixel((71, 127)) == (0, 0, 255)


def test_discs_and_rectangles_are_distinguished() -> None:
    assert len({describe_shapes(()), describe_shapes(GRIDS), describe_shapes(GRIDS[:1]), LEGACY_SHAPES}) == 4
