"""Any image comes in upright and in RGB, or with one clear error."""

from __future__ import annotations

import io
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import file_of, png_of
from numpy.typing import NDArray
from PIL import Image, ImageCms

from earl_cli.errors import InputError
from earl_cli.images.image_file import ImageFile, open_image

RAMP = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
COLORS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def pixels(opened: ImageFile) -> NDArray[np.int64]:
    assert opened.rgb.mode == "RGB"
    return np.asarray(opened.rgb).astype(np.int64)


def grey(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.repeat(values[..., None], 3, axis=-1).astype(np.int64)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "QOI"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    opened = open_image(file_of(Image.fromarray(COLORS), kind))
    assert np.array_equal(pixels(opened), COLORS)
    assert (opened.pixels.mode, opened.metadata.icc, opened.notes) == ("RGB", None, ())
    assert opened.format == kind


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_once_and_its_tag_removed(kind: str, orientation: int) -> None:
    stored = Image.new("RGB", (16, 8), "white")
    stored.paste("black", (0, 0, 4, 4))  # marks the stored image's top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description"
    opened = open_image(file_of(stored, kind, exif=exif))
    assert opened.rgb.size == ((8, 16) if orientation >= 5 else (16, 8))
    right, bottom = (side - 1 for side in opened.rgb.size)
    corners = {"top left": (0, 0), "top right": (right, 0), "bottom right": (right, bottom), "bottom left": (0, bottom)}
    where = ["top left", "top right", "bottom right", "bottom left"]  # by the EXIF standard, twice
    expected = (where * 2)[orientation - 1] if orientation <= 4 else where[orientation - 5]
    dark = [name for name, place in corners.items() if opened.rgb.getpixel(place)[0] < 100]  # type: ignore[index]
    assert dark == [expected]
    assert opened.metadata.exif is not None
    kept = Image.Exif()
    kept.load(opened.metadata.exif)
    assert 0x0112 not in kept
    assert kept[0x010E] == "a description"


def test_tiff_storage_tags_are_not_kept_as_exif() -> None:
    opened = open_image(file_of(Image.fromarray(COLORS), "TIFF"))
    assert opened.metadata.exif is None


def test_transparency_is_flattened_onto_white_and_kept() -> None:
    alpha = np.zeros((12, 16), np.uint8)
    alpha[:, 8:] = 255
    opened = open_image(file_of(Image.fromarray(np.dstack([COLORS, alpha]))))
    assert (pixels(opened)[:, :8] == 255).all()
    assert np.array_equal(pixels(opened)[:, 8:], COLORS[:, 8:])
    assert np.array_equal(np.asarray(opened.pixels)[..., 3], alpha)
    assert np.array_equal(np.asarray(opened.pixels)[:, 8:, :3], COLORS[:, 8:])


def test_opaque_alpha_is_dropped() -> None:
    assert open_image(file_of(Image.fromarray(COLORS).convert("RGBA"))).pixels.mode == "RGB"


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "L", "1", "RGB"])
def test_every_kind_of_transparency(mode: str) -> None:
    if mode in ("LA", "PA"):
        image = Image.fromarray(np.dstack([RAMP, np.where(RAMP == 255, 0, RAMP).astype(np.uint8)]), "LA")
        data = file_of(image, "PNG" if mode == "LA" else "TIFF")
    elif mode == "RGB":
        data = file_of(Image.fromarray(COLORS), transparency=(0, 176, 15))
    else:
        image = Image.fromarray(RAMP)
        data = file_of(image.convert(mode) if mode != "P" else image.quantize(16), transparency=0)
    opened = open_image(data)
    hidden = np.asarray(opened.pixels)[..., 3] == 0
    assert hidden.any()
    assert (pixels(opened)[hidden] == 255).all()


def test_palette_grayscale_and_one_bit() -> None:
    quantized = Image.fromarray(COLORS).quantize(8)
    assert np.array_equal(pixels(open_image(file_of(quantized))), np.asarray(quantized.convert("RGB")))
    assert np.array_equal(pixels(open_image(file_of(Image.fromarray(RAMP)))), grey(RAMP))
    bits = Image.fromarray(RAMP > 90)
    assert bits.mode == "1"
    assert np.array_equal(pixels(open_image(file_of(bits))), grey(np.where(RAMP > 90, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_sixteen_bits_become_eight(kind: str, dtype: type) -> None:
    opened = open_image(file_of(Image.fromarray(RAMP.astype(dtype) * 257), kind))
    assert np.array_equal(pixels(opened), grey(RAMP))
    assert "8 bits" in opened.notes[0]


def test_sixteen_bit_color_png() -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", *(value * 257 for value in (255, 0, 128, 1, 2, 3))) for _ in range(2))
    assert pixels(open_image(png_of(2, 2, 16, 2, rows)))[0].tolist() == [[255, 0, 128], [1, 2, 3]]


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0])
def test_floats_in_a_common_range_are_not_stretched(scale: float) -> None:
    values = (RAMP / 255 * scale).astype(np.float32)
    opened = open_image(file_of(Image.fromarray(values), "TIFF"))
    assert np.abs(pixels(opened) - grey(RAMP)).max() <= 1


def test_other_floats_are_stretched_and_nan_is_black() -> None:
    values = RAMP.astype(np.float32) - 1000
    values[0, 0] = np.nan
    opened = open_image(file_of(Image.fromarray(values), "TIFF"))
    assert pixels(opened).min() == 0
    assert pixels(opened).max() == 255
    assert "stretched" in opened.notes[0]


def test_cmyk_jpeg_as_photoshop_writes_it() -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    data = file_of(flat.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data  # inverted, as everybody reads it
    opened = open_image(data)
    assert np.abs(pixels(opened) - (200, 40, 90)).max() <= 6
    assert "CMYK" in opened.notes[0]


def test_broken_cmyk_profile_still_gives_the_image() -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"CMYK"
    data = file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", icc_profile=bytes(profile))
    opened = open_image(data)
    assert pixels(opened)[0, 0].tolist() == [255, 0, 0]
    assert opened.metadata.icc is None
    assert "approximate" in opened.notes[0]


def test_lab_is_converted() -> None:
    lab = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (255, 128, 128)])
    assert np.abs(pixels(open_image(file_of(lab, "TIFF"))) - 255).max() <= 2


def test_rgb_profile_is_kept_and_a_gray_one_is_not() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    opened = open_image(file_of(Image.fromarray(COLORS), icc_profile=profile))
    assert opened.metadata.icc == profile
    assert np.array_equal(pixels(opened), COLORS)
    gray = bytearray(profile)
    gray[16:20] = b"GRAY"
    assert open_image(file_of(Image.fromarray(RAMP), icc_profile=bytes(gray))).metadata.icc is None


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_used_with_a_note(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    opened = open_image(file_of(first, kind, save_all=True, append_images=[second]))
    assert pixels(opened)[4, 4].tolist() in ([255, 0, 0], [254, 0, 0], [255, 1, 0])
    assert "first" in opened.notes[0]


def test_one_pixel() -> None:
    assert open_image(file_of(Image.new("RGB", (1, 1), "red"))).rgb.size == (1, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"certainly no image", "isn't an image"),
        (b"\x89PNG\r\n\x1a\n", "this PNG is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ],
)
def test_what_is_no_image_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_image(data, name="holiday.jpg")
    assert caught.value.where == "holiday.jpg"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_file_cut_short_is_an_error(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = file_of(Image.fromarray(noise), kind)
    with pytest.raises(InputError, match=r"cut short|damaged"):
        open_image(data[: len(data) // 2])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_damage_gives_an_image_or_one_clear_error(kind: str, data: st.DataObject) -> None:
    whole = bytearray(file_of(Image.fromarray(COLORS), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        opened = open_image(bytes(whole), max_pixels=10**6)
    except InputError:
        return
    assert opened.rgb.mode == "RGB"


def test_an_image_that_is_too_large_is_refused_before_decoding() -> None:
    bomb = png_of(60_000, 60_000, 8, 2, b"")
    with pytest.raises(InputError, match=r"3,600,000,000 pixels \(60000 x 60000\).*limit of 200,000,000"):
        open_image(bomb)
    small = file_of(Image.fromarray(COLORS))
    with pytest.raises(InputError, match="192 pixels"):
        open_image(small, max_pixels=191)
    assert open_image(small, max_pixels=192).rgb.size == (16, 12)


def test_missing_folders_and_forbidden_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="folder"):
        open_image(tmp_path)
    if os.geteuid() != 0:  # root may read everything
        locked = tmp_path / "locked.png"
        locked.write_bytes(file_of(Image.fromarray(COLORS)))
        locked.chmod(0)
        with pytest.raises(InputError, match="permission"):
            open_image(locked)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = file_of(Image.fromarray(COLORS))
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert np.array_equal(pixels(open_image(pipe)), COLORS)
    writer.join()
    assert np.array_equal(pixels(open_image(io.BytesIO(data))), COLORS)


def test_pillows_own_limit_is_restored() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    open_image(file_of(Image.fromarray(COLORS)))
    with pytest.raises(InputError):
        open_image(b"nothing")
    assert limit == Image.MAX_IMAGE_PIXELS
