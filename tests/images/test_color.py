"""Colours of what is transparent, of grey with a profile, and of files whose fourth channel is no opacity."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import file_of
from PIL import Image, ImageCms, ImageFilter

from earl_cli.images.color import fill_transparent, on_white
from earl_cli.images.image_file import open_image

RAMP = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
COLORS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_invisible_pixels_get_colours_in_the_visible_range(width: int, height: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    colors = rng.integers(60, 100, (height, width, 3), dtype=np.uint8)
    alpha = np.where(rng.random((height, width)) < share, rng.integers(1, 256, (height, width)), 0).astype(np.uint8)
    stored = np.where(alpha[..., None] > 0, colors, 0).astype(np.uint8)
    result = np.asarray(fill_transparent(Image.fromarray(stored), Image.fromarray(alpha)))
    assert np.array_equal(result[alpha > 0], stored[alpha > 0])
    if alpha.any():
        assert 58 <= result.min() <= result.max() <= 101
    else:
        assert (result == 255).all()


def test_invisible_pixels_get_the_nearest_colours() -> None:
    stored = np.zeros((64, 64, 3), np.uint8)
    stored[:, :20], stored[:, 44:] = (200, 30, 30), (30, 30, 200)
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, :20] = alpha[:, 44:] = 255
    result = np.asarray(fill_transparent(Image.fromarray(stored), Image.fromarray(alpha))).astype(int)
    assert np.abs(result[:, 21] - (200, 30, 30)).max() < 25
    assert np.abs(result[:, 42] - (30, 30, 200)).max() < 25


def test_stored_colours_of_invisible_pixels_dont_show() -> None:
    pixels = np.dstack([COLORS, np.zeros((12, 16), np.uint8)])
    pixels[:, 8:, 3] = 255
    pixels[:, :8, :3] = (0, 255, 0)
    opened = open_image(file_of(Image.fromarray(pixels)))
    soft = np.asarray(opened.pixels.convert("RGB").filter(ImageFilter.GaussianBlur(2)))
    assert np.abs(soft[:, 8].astype(int) - COLORS[:, 8]).mean() < 25
    assert (np.asarray(opened.rgb)[:, :8] == 255).all()


def bmp(alpha: int) -> bytes:
    rows = np.dstack([COLORS[..., ::-1], np.full((12, 16), alpha, np.uint8)])[::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, 16, 12, 1, 32, 3, len(rows), 2835, 2835, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(64)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows


def test_a_bitmap_whose_opacity_is_all_zero_is_opaque() -> None:
    opened = open_image(bmp(0))
    assert opened.pixels.mode == "RGB"
    assert np.array_equal(np.asarray(opened.rgb), COLORS)
    assert open_image(bmp(128)).pixels.mode == "RGBA"


def test_a_fully_transparent_png_has_a_note() -> None:
    opened = open_image(file_of(Image.fromarray(np.dstack([COLORS, np.zeros((12, 16), np.uint8)]))))
    assert (np.asarray(opened.rgb) == 255).all()
    assert opened.notes == ("every pixel is transparent",)


@pytest.fixture(scope="module")
def grey_profile() -> bytes:
    """A grey profile of gamma 1, put together by hand."""
    curve = b"curv" + bytes(4) + (1).to_bytes(4) + b"\1\0\0\0"
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    text = b"desc" + bytes(4) + (2).to_bytes(4) + b"g\0" + bytes(78)
    tags, at = b"", 132 + 36
    for name, content in ((b"desc", text), (b"wtpt", white), (b"kTRC", curve)):
        tags += name + at.to_bytes(4) + len(content).to_bytes(4)
        at += len(content)
    body = (3).to_bytes(4) + tags + text + white + curve
    head = bytes(4) + bytes(4) + b"\2\x10\0\0mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28)
    head = (128 + len(body)).to_bytes(4) + (head + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)).ljust(128, b"\0")[4:]
    return head + body


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_counts_with_and_without_transparency(mode: str, grey_profile: bytes) -> None:
    ImageCms.ImageCmsProfile(io.BytesIO(grey_profile))
    image = Image.fromarray(RAMP)
    if mode == "LA":
        image.putalpha(Image.fromarray(np.maximum(RAMP, 1)))
    opened = open_image(file_of(image, icc_profile=grey_profile))
    light = np.asarray(opened.pixels)[..., 0] / 255
    light = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    assert np.abs(light - RAMP / 255).max() < 0.02
    assert opened.metadata.icc is None


def test_a_profile_that_cant_be_used_has_a_note() -> None:
    whole = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    damaged = open_image(file_of(Image.fromarray(COLORS), icc_profile=whole[:-100]))
    assert damaged.metadata.icc is None
    assert damaged.notes == ("the colour profile is damaged: colours are taken as sRGB",)
    profile = bytearray(whole)
    profile[16:20] = b"CMYK"
    opened = open_image(file_of(Image.fromarray(COLORS), icc_profile=bytes(profile)))
    assert np.array_equal(np.asarray(opened.rgb), COLORS)
    assert "another kind" in opened.notes[0]


def test_on_white_is_what_a_viewer_shows() -> None:
    pixels = np.uint8([[[255, 0, 0, 128], [10, 20, 30, 255], [0, 0, 0, 0]]])
    assert np.asarray(on_white(Image.fromarray(pixels)))[0].tolist() == [[255, 127, 127], [10, 20, 30], [255, 255, 255]]
