"""Side blocks of a PNG, however broken, don't cost the image, and colours mean what the file says."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from image_files import chunk, file_of, png_of, with_chunks
from numpy.typing import NDArray
from PIL import Image, ImageCms

from earl_cli.errors import InputError
from earl_cli.images.image_file import open_image, save_image

COLORS = np.arange(12 * 16 * 3, dtype=np.uint32).reshape(12, 16, 3).astype(np.uint8)
PLAIN = file_of(Image.fromarray(COLORS))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def broken(block: bytes) -> bytes:
    return block[:-1] + bytes([block[-1] ^ 1])


def large(profile: bytes) -> bytes:
    """The profile with a private tag of 1.6 MB, as a monitor's calibration leaves it."""
    count = int.from_bytes(profile[128:132])
    entries = [profile[at : at + 12] for at in range(132, 132 + 12 * count, 12)]
    moved = b"".join(each[:4] + (int.from_bytes(each[4:8]) + 12).to_bytes(4) + each[8:] for each in entries)
    blob = b"data" + bytes(4) + b"\0\0\0\1" + b"\1\2\3\4" * 400_000
    moved += b"priv" + (len(profile) + 12).to_bytes(4) + len(blob).to_bytes(4)
    made = profile[:128] + (count + 1).to_bytes(4) + moved + profile[132 + 12 * count :] + blob
    return len(made).to_bytes(4) + made[4:]


def wide(profile: bytes) -> bytes:
    """The same with red and blue exchanged, so that to convert by it shows."""
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    made = bytearray(profile)
    made[red : red + 4], made[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(made)


BLOCKS = {
    "a text that unpacks to 3 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
    "an international one": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
    "a plain one": chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
    "a text with a wrong sum": broken(chunk(b"tEXt", b"Comment\0hello")),
    "a text that can't be unpacked": chunk(b"zTXt", b"Comment\0\0nothing packed"),
    "EXIF with a wrong sum": broken(chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")),
    "a short gAMA": chunk(b"gAMA", b"\1"),
    "a profile that can't be unpacked": chunk(b"iCCP", b"name\0\0nothing packed"),
    "a profile that ends too soon": chunk(b"iCCP", b"name\0\0" + zlib.compress(SRGB)[:200]),
    "a profile packed in an unknown way": chunk(b"iCCP", b"name\0\1" + zlib.compress(SRGB)),
    "a private block of 2 MB": chunk(b"prVt", bytes(2_000_000)),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_damaged_or_too_large_chunk_is_left_out_with_a_note(name: str, place: str) -> None:
    data = with_chunks(PLAIN, BLOCKS[name]) if place == "before" else PLAIN[:-12] + BLOCKS[name] + PLAIN[-12:]
    opened = open_image(data)
    assert np.array_equal(np.asarray(opened.rgb), COLORS)
    assert opened.notes == ()
    (lost,) = save_image(opened.pixels, io.BytesIO(), like=opened)
    assert "left out" in lost


def test_a_large_profile_is_applied_and_a_broken_one_left_out() -> None:
    usual = file_of(Image.fromarray(COLORS), icc_profile=wide(SRGB))
    converted = ImageCms.profileToProfile(
        Image.fromarray(COLORS), ImageCms.ImageCmsProfile(io.BytesIO(wide(SRGB))), ImageCms.createProfile("sRGB")
    )
    opened = open_image(file_of(Image.fromarray(COLORS), icc_profile=large(wide(SRGB))))
    assert opened.metadata.icc is None
    assert np.abs(np.asarray(opened.rgb).astype(int) - np.asarray(converted)).max() <= 2
    assert not np.array_equal(np.asarray(opened.rgb), COLORS)
    assert "converted to sRGB" in opened.notes[0]
    assert open_image(usual).metadata.icc == wide(SRGB)


def test_missing_pixels_are_an_error_and_a_missing_end_is_not() -> None:
    opened = open_image(PLAIN[:-12])
    assert np.array_equal(np.asarray(opened.rgb), COLORS)
    assert opened.notes == ("the file's end is missing, but no pixel is",)
    assert open_image(PLAIN + b"junk" * 100).notes == ()
    for cut in (30, 100):
        with pytest.raises(InputError, match=r"cut short|damaged"):
            open_image(PLAIN[:-cut])


def light(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB, decoded."""
    parts = values / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def shown(*blocks: bytes) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    opened = open_image(with_chunks(PLAIN, *blocks))
    return np.asarray(opened.rgb), opened.notes


def gamma(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def corners(*xy: float) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(each * 100_000) for each in xy)))


SRGB_CORNERS = corners(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
P3_CORNERS = corners(0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


def test_cicp_takes_precedence_over_a_profile() -> None:
    profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(wide(SRGB)))
    for code, kept in ((bytes((1, 13, 0, 1)), False), (bytes((2, 2, 0, 1)), True)):
        opened = open_image(with_chunks(PLAIN, chunk(b"cICP", code), profile))
        assert (opened.metadata.icc is not None) == kept
        assert np.array_equal(np.asarray(opened.rgb), COLORS)


def test_linear_light_is_brought_to_srgb() -> None:
    pixels, notes = shown(gamma(100_000))
    assert np.abs(light(pixels) - COLORS / 255).max() < 0.005
    assert notes == ("gamma 1 converted to sRGB",)


@pytest.mark.parametrize(
    "blocks",
    [
        [gamma(45455)],
        [gamma(45455), SRGB_CORNERS],
        [gamma(0)],
        [P3_CORNERS],
        [chunk(b"sRGB", b"\0"), gamma(100_000)],
        [chunk(b"cICP", bytes((1, 13, 0, 1))), gamma(100_000)],
        [chunk(b"iCCP", b"name\0\0" + zlib.compress(SRGB)), gamma(100_000)],
    ],
)
def test_colours_that_are_srgb_or_have_a_profile_stay(blocks: list[bytes]) -> None:
    pixels, notes = shown(*blocks)
    assert np.array_equal(pixels, COLORS)
    assert notes == ()


@pytest.mark.parametrize("blocks", [[gamma(45455), P3_CORNERS], [chunk(b"cICP", bytes((12, 13, 0, 1)))]])
def test_wide_colours_are_brought_to_srgb_and_white_and_grey_stay(blocks: list[bytes]) -> None:
    swatch = np.uint8([[[255, 255, 255], [90, 90, 90], [120, 100, 100], [255, 0, 0]]])
    opened = open_image(with_chunks(file_of(Image.fromarray(swatch)), *blocks))
    white, grey, dull, red = np.asarray(opened.rgb)[0].astype(int).tolist()
    assert (white, grey, red) == ([255] * 3, [90] * 3, [255, 0, 0])
    # P3's matrix into sRGB: 1.2249 -0.2247 | -0.0420 1.0419 | -0.0197 -0.0786 1.0979
    lights = np.float64([[1.2249, -0.2249, 0], [-0.0420, 1.0420, 0], [-0.0197, -0.0786, 1.0983]]) @ light(swatch)[0, 2]
    assert np.abs(light(np.uint8(dull)) - lights).max() < 0.004
    assert "converted to sRGB" in opened.notes[0]


@pytest.mark.parametrize(("code", "white"), [(16, 0.58069), (18, 0.75)])
def test_a_white_page_in_hdr_is_white(code: int, white: float) -> None:
    row = np.uint8([[[0] * 3, [round(white * 127)] * 3, [round(white * 255)] * 3, [255] * 3]])
    opened = open_image(with_chunks(file_of(Image.fromarray(row)), chunk(b"cICP", bytes((9, code, 0, 1)))))
    dark, below, page, bright = np.asarray(opened.rgb)[0, :, 0].tolist()
    assert dark == 0 < below < 200
    assert page >= 253
    assert bright == 255
    assert "highlights" in opened.notes[0]


def test_sixteen_bits_and_transparency_by_one_colour() -> None:
    rows = b"".join(b"\0" + struct.pack(">4H", 0, 257, 30_000, 65_535) for _ in range(2))
    grey = open_image(png_of(4, 2, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 30_000))))
    assert np.asarray(grey.pixels)[0, :, 3].tolist() == [255, 255, 0, 255]
    rows = b"".join(b"\0" + struct.pack(">6H", 1000, 2000, 3000, 65_535, 65_535, 65_535) for _ in range(2))
    colored = open_image(png_of(2, 2, 16, 2, rows, chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))))
    assert np.asarray(colored.pixels)[0, :, 3].tolist() == [0, 255]
    assert colored.notes == ("16 bits a channel read with 8",)
