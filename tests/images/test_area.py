"""The size at which the model sees a picture."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from earl_cli.errors import UsageError
from earl_cli.images.area import area_size, resize_to_area

sides = st.integers(1, 20_000)
usual = st.integers(1, 4096)


@given(sides, sides, st.integers(1, 1_000_000), st.sampled_from((1, 8, 16)))
def test_sides_are_whole_multiples_and_never_vanish(width: int, height: int, area: int, multiple: int) -> None:
    size = area_size(width, height, area, multiple)
    assert all(side >= multiple and side % multiple == 0 for side in size)


@given(usual, usual, st.integers(64 * 64, 512 * 512))
def test_area_is_near_whatever_the_shape(width: int, height: int, area: int) -> None:
    w, h = area_size(width, height, area)
    assert abs(w * h / area - 1) < 0.25


@given(usual, usual, st.integers(64 * 64, 512 * 512))
def test_nothing_around_has_both_a_nearer_area_and_a_nearer_shape(width: int, height: int, area: int) -> None:
    def wrong(w: int, h: int) -> tuple[float, float]:
        return abs(math.log(w * h / area)), abs(math.log(w * height / (h * width)))

    w, h = area_size(width, height, area)
    found = wrong(w, h)
    for other_w in (w - 8, w, w + 8):
        for other_h in (h - 8, h, h + 8):
            if min(other_w, other_h) >= 8:
                other = wrong(other_w, other_h)
                assert not all(o < f - 1e-9 for o, f in zip(other, found, strict=True))


@given(usual, usual)
def test_a_size_that_fits_already_stays(width: int, height: int) -> None:
    w, h = width * 8, height * 8
    assert area_size(w, h, w * h) == (w, h)


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    [
        ((4000, 3000), 65536, (296, 224)),
        ((1024, 1024), 65536, (256, 256)),
        ((1024, 1024), 65636, (256, 256)),  # the published evaluation's own area
        ((1, 1), 9216, (96, 96)),
        ((1, 100_000), 9216, (8, 1152)),
        ((100_000, 1), 9216, (1152, 8)),
        ((300, 200), 1, (8, 8)),
    ],
)
def test_known_sizes(size: tuple[int, int], area: int, expected: tuple[int, int]) -> None:
    assert area_size(*size, area) == expected


def test_an_area_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="too small"):
        area_size(10, 10, 0)


def test_resizing_keeps_a_picture_that_has_the_size() -> None:
    picture = Image.new("RGB", (96, 96))
    assert resize_to_area(picture, 9216) is picture
    assert resize_to_area(Image.new("RGB", (640, 480)), 9216).size == area_size(640, 480, 9216)
