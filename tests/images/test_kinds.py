"""What isn't for Pillow is named for what it is, by its content, and a thumbnail is never taken for the photo."""

from __future__ import annotations

import io
import struct
from importlib.util import find_spec

import numpy as np
import pytest
from image_files import file_of, tiff_of
from PIL import Image

from earl_cli.errors import InputError
from earl_cli.images.image_file import open_image
from earl_cli.images.kinds import unsupported_kind

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))


def media(brand: bytes, *others: bytes) -> bytes:
    names = brand + bytes(4) + b"".join(others or (brand,))
    return struct.pack(">I", 8 + len(names)) + b"ftyp" + names + bytes(600)


def plain(width: int = 8, bits: int = 8, samples: int = 3, **more: int) -> dict[int, tuple[int, list[int]]]:
    """The tags of a TIFF of that size, uncompressed."""
    tags = {256: width, 257: 8, 259: 1, 262: 2 if samples == 3 else 1, 277: samples, 278: 8}
    tags |= {int(name[1:]): value for name, value in more.items()}
    return {tag: (3, [value]) for tag, value in tags.items()} | {258: (3, [bits] * samples)}


SENSOR = plain(64, 16, 1, t262=32803)
PREVIEW = plain(t254=1)
PIXELS = bytes(range(192))
RAWS = {
    "DNG": tiff_of({**PREVIEW, 50706: (2, b"\1\4\0\0")}, data=PIXELS, inner=[SENSOR]),
    "NEF": tiff_of({**PREVIEW, 271: (2, b"NIKON CORPORATION\0")}, data=PIXELS, inner=[plain(), SENSOR]),
    "ARW": tiff_of({**PREVIEW, 271: (2, b"SONY\0")}, data=PIXELS, inner=[plain(64, 12, 1, t259=32767)]),
    "camera": tiff_of(plain(), SENSOR, data=PIXELS),
}
FOREIGN = {
    "HEIC": media(b"heic", b"mif1", b"heic"),
    "HEIC ": media(b"mif1", b"heic"),
    "CR3": media(b"crx "),
    "video": media(b"isom", b"mp42"),
    "video ": media(b"qt  "),
    "JPEG XL": b"\xff\x0a" + bytes(40),
    "JPEG XL ": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40),
    "PSD": b"8BPS\0\1" + bytes(40),
    "TGA": file_of(RGB, "TGA"),
    "TGA ": file_of(RGB, "TGA").removesuffix(b"\0" * 8 + b"TRUEVISION-XFILE.\0"),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(80) + file_of(RGB, "JPEG"),
    "RW2": b"IIU\0\x18\0\0\0" + bytes(40),
    "PDF": file_of(RGB, "PDF"),
    "SVG": b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='9'/>",
    "web page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "WebM": b"\x1aE\xdf\xa3" + bytes(40),
    "AVI": b"RIFF\0\1\0\0AVI LIST" + bytes(40),
    **RAWS,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_unsupported_kind_is_recognized_with_a_hint(name: str) -> None:
    if name.startswith("HEIC") and find_spec("pillow_heif"):
        pytest.skip("is read where pillow-heif is installed")
    with pytest.raises(InputError, match=rf"this is .*{name.strip()}.*can't be read") as caught:
        open_image(FOREIGN[name], name="somewhere/holiday.jpg")
    assert caught.value.hint
    assert "{" not in caught.value.hint


def test_the_hint_shows_the_command_with_the_files_name() -> None:
    with pytest.raises(InputError) as caught:
        open_image(FOREIGN["PDF"], name="folder/my scan.pdf")
    assert "pdftoppm -png -r 150 'my scan.pdf' page" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "PPM", "QOI", "JPEG2000"])
def test_what_pillow_reads_is_supported(kind: str) -> None:
    data = file_of(RGB, kind)
    stream = io.BytesIO(b"before" + data)
    stream.seek(6)
    assert unsupported_kind(stream) is None
    assert stream.tell() == 6
    assert open_image(data).rgb.size == RGB.size


def test_pyramids_and_pages_are_ordinary_tiffs() -> None:
    pages = tiff_of(plain(), plain(), data=PIXELS)
    pyramid = tiff_of(plain(), data=PIXELS, inner=[PREVIEW, PREVIEW])
    for data in (pages, pyramid):
        assert np.array_equal(np.asarray(open_image(data).rgb).ravel(), np.frombuffer(PIXELS, np.uint8))


def test_a_tiff_whose_first_image_is_a_preview_is_refused() -> None:
    for data in (tiff_of(PREVIEW, plain(64), data=PIXELS), tiff_of(PREVIEW, data=PIXELS, inner=[plain(64)])):
        with pytest.raises(InputError, match="preview"):
            open_image(data)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (plain(bits=32, t339=3), "32-bit floating-point RGB"),
        (plain(bits=16, samples=1, t339=3), "16-bit floating-point grey"),
        (plain(bits=24), "24-bit RGB"),
    ],
)
def test_a_tiff_that_cannot_be_read_says_what_it_holds(tags: dict[int, tuple[int, list[int]]], message: str) -> None:
    with pytest.raises(InputError, match=f"TIFF with {message} values") as caught:
        open_image(tiff_of(tags, data=bytes(1024)))
    assert "8 bits a channel" in (caught.value.hint or "")


def test_circular_tiff_directories_end() -> None:
    data = bytearray(tiff_of(plain(), data=PIXELS))
    data[-4:] = b"\0\0\0\0"
    at = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[at : at + 2])[0]
    data[at + 2 + 12 * count : at + 6 + 12 * count] = struct.pack("<I", at)
    assert unsupported_kind(io.BytesIO(bytes(data))) is None


def test_heic_is_read_where_its_decoder_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    ramps = [Image.linear_gradient("L").rotate(angle).resize((96, 64)) for angle in (0, 90, 180)]
    smooth = Image.merge("RGB", ramps)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A maker"
    opened = open_image(file_of(smooth, "HEIF", quality=95, exif=exif.tobytes()))
    assert (opened.format, opened.rgb.size, opened.notes) == ("HEIF", (64, 96), ())
    turned = np.asarray(smooth.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(np.asarray(opened.rgb) - turned).mean() < 3
    assert opened.metadata.exif is not None
    assert b"A maker" in opened.metadata.exif
    with pytest.raises(InputError, match="HEIC is damaged"):
        open_image(FOREIGN["HEIC"])
