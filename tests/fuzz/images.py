"""Images: what `earl edit`, `earl serve` and data sets open."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from fuzzing import Room
from image_files import chunk, file_of, png_of, tiff_of
from PIL import Image, ImageCms

from earl_cli.errors import EarlError
from earl_cli.images.image_file import open_image, save_image


def _good() -> dict[str, bytes]:
    photo = Image.radial_gradient("L").resize((24, 16)).convert("RGB")
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a picture"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    beside = {"exif": exif.tobytes(), "icc_profile": profile}
    return {
        "a.png": file_of(photo, "PNG", **beside),
        "b.png": file_of(photo.convert("RGBA"), "PNG"),
        "c.png": file_of(photo.quantize(8), "PNG"),
        "a.jpg": file_of(photo, "JPEG", **beside),
        "b.jpg": file_of(photo, "JPEG", progressive=True, comment=b"hello"),
        "a.webp": file_of(photo, "WEBP", lossless=True, **beside),
        "a.gif": file_of(photo.quantize(8), "GIF"),
        "a.bmp": file_of(photo, "BMP"),
        "a.tif": file_of(photo, "TIFF", compression="tiff_lzw"),
        "b.tif": tiff_of({256: (4, [4]), 257: (4, [4]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1])}, data=bytes(16)),
        "a.ico": file_of(photo.resize((16, 16)), "ICO"),
        "a.avif": file_of(photo, "AVIF"),
        "a.jp2": file_of(photo, "JPEG2000"),
        "a.ppm": file_of(photo, "PPM"),
    }


BOMB = zlib.compress(bytes(100_000_000), 9)
HOSTILE = [
    ("huge.png", png_of(2**31 - 1, 2**31 - 1, 8, 2, b"")),
    ("wide.png", png_of(200_000_001, 1, 8, 2, b"")),
    ("bomb.png", png_of(8, 8, 8, 2, bytes(200), chunk(b"zTXt", b"Comment\0\0" + BOMB))),
    ("profile.png", png_of(8, 8, 8, 2, bytes(200), chunk(b"iCCP", b"x\0\0" + BOMB))),
    ("text.png", png_of(8, 8, 8, 2, bytes(200), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB))),
    ("pixels.png", png_of(8, 8, 8, 2, bytes(100_000_000))),
    ("huge.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;"),
    ("huge.bmp", file_of(Image.new("RGB", (2, 2)), "BMP")[:18] + b"\xff\xff\xff\x7f" * 2 + bytes(60)),
    ("huge.ppm", b"P6 999999999 999999999 255 "),
    ("comments.ppm", b"P6 #" + b"a" * 1_000_000),
    ("xmp.png", png_of(8, 8, 8, 2, bytes(200), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 100_000))),
    (
        "entities.png",
        png_of(
            *(8, 8, 8, 2, bytes(200)),
            chunk(
                b"iTXt",
                b'XML:com.adobe.xmp\0\0\0\0\0<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
                + b"".join(b'<!ENTITY %c "%s">' % (n + 1, b"&%c;" % n * 10) for n in range(97, 110))
                + b"]><a>&n;</a>",
            ),
        ),
    ),
]


def read(_name: str, content: bytes, _folder: Path) -> str:
    image = open_image(content, name="input")
    if image.pixels.width * image.pixels.height < 1_000_000:
        save_image(image.rgb, io.BytesIO(), like=image)
    return "read"


ROOM = Room("images", _good(), read, (EarlError,), (b"\xff\xd9", b"IDAT", b"Exif\0\0", b"ICC_PROFILE\0"), HOSTILE, 400)
