"""Open any picture as an upright RGB photo, and save an edited one without losing what came with it or half a file.

Whatever can't be read ends in one InputError, whatever can't be written in one OutputError; a file under the wanted
name is always complete.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from earl_cli.errors import EarlError, InputError, OutputError, UsageError
from earl_cli.files import whole_file
from earl_cli.images.color import to_rgb_and_alpha

MAX_PIXELS = 200_000_000
READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "PCX", "SGI", "DIB")
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP"}
LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}

ORIENTATION = 0x0112
EXIF_IFD = 0x8769
STALE_EXIF = (40962, 40963)  # pixel width and height, which a rotation swaps
# Tags of a TIFF file that describe its own storage; they mean nothing in another file.
STORAGE_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, *range(317, 326), 330, *range(337, 342), 347}
    | {*range(512, 522), *range(529, 533), 700, 33723, 34377, 34675}
)
JPEG_EXIF_LIMIT = 65533
_opening = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")  # what a broken file makes Pillow say becomes our error or nothing


@dataclass(frozen=True)
class Picture:
    """A photo as the model takes it, and what is needed to save an edit of it as faithfully as the format allows.

    ``rgb`` is upright, flattened onto white; ``alpha`` (mode "L", same size) is None where nothing is transparent;
    ``icc`` describes ``rgb``; ``exif`` has no orientation any more; ``notes`` say what a reader should know.
    """

    rgb: Image.Image
    alpha: Image.Image | None
    icc: bytes | None
    exif: bytes | None
    format: str
    notes: tuple[str, ...]


def open_picture(source: Path | bytes | BinaryIO, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Open a picture from a path, from bytes or from a stream (also one that can't seek, such as a pipe).

    ``name`` is what errors call it. InputError if it is missing, unreadable, not a picture, cut short, or larger than
    ``max_pixels`` (which is known, and refused, before any pixel is decoded).
    """
    where = name or (str(source) if isinstance(source, Path) else str(getattr(source, "name", "image")))
    try:
        with _stream(source) as stream:
            return _read(stream, where, max_pixels)
    except EarlError:
        raise
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=where) from error
    except IsADirectoryError as error:
        raise InputError("this is a folder, not a picture", where=where) from error
    except PermissionError as error:
        raise InputError("no permission to read this file", where=where) from error
    except OSError as error:
        raise InputError(f"this file can't be read: {error.strerror or error}", where=where) from error


@contextlib.contextmanager
def _stream(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, Path):
        with source.open("rb") as file:
            yield file if file.seekable() else io.BytesIO(file.read())
    else:
        yield source if source.seekable() else io.BytesIO(source.read())


def _read(stream: BinaryIO, where: str, max_pixels: int) -> Picture:
    if not stream.read(1):
        raise InputError("the file is empty", where=where)
    stream.seek(-1, os.SEEK_CUR)
    try:
        with _without_pillow_limits():
            image = Image.open(stream, formats=READABLE)
    except Exception as error:  # Pillow's parsers raise whatever a broken header trips them into
        formats = ", ".join(READABLE[:8])
        what = "this isn't a picture that can be read, or its start is damaged"
        raise InputError(what, where=where, hint=f"formats: {formats}") from error
    pixels = image.width * image.height
    if pixels > max_pixels:
        size = f"{pixels:,} pixels ({image.width} x {image.height})"
        what = f"the picture has {size}, more than the limit of {max_pixels:,}"
        raise InputError(what, where=where, hint="make it smaller, or raise the limit")
    try:
        return _upright_rgb(image)
    except Exception as error:  # as above, for damaged pixel data
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        what = "the picture is cut short" if cut else "the picture is damaged"
        raise InputError(f"{what} and can't be decoded", where=where, hint="get it again from where it came") from error


@contextlib.contextmanager
def _without_pillow_limits() -> Iterator[None]:
    """Pillow's own bomb check off while a header is read: the caller's limit is checked instead."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright_rgb(image: Image.Image) -> Picture:
    kind = "JPEG" if image.format == "MPO" else image.format or "PNG"
    frames = getattr(image, "is_animated", False) and image.format != "MPO"
    image.load()
    icc = image.info.get("icc_profile") or None
    upright = ImageOps.exif_transpose(image)
    exif = _kept_exif(image)
    rgb, alpha, icc, notes = to_rgb_and_alpha(upright, icc)
    if frames:
        notes = ("several frames: only the first is used", *notes)
    return Picture(rgb, alpha, icc, exif, kind, notes)


def _kept_exif(image: Image.Image) -> bytes | None:
    """The EXIF block without orientation and without what only described the old file; None if empty or broken."""
    try:
        exif = image.getexif()
        for tag in [tag for tag in exif if tag == ORIENTATION or tag in STORAGE_TAGS]:
            del exif[tag]
        details = exif.get_ifd(EXIF_IFD)
        for tag in STALE_EXIF:
            details.pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except Exception:  # a broken EXIF block is no reason to refuse a photo; Pillow raises anything here
        return None


def output_format(path: Path) -> str:
    """Pillow's name of the format that a file name asks for; UsageError for one that can't be written."""
    try:
        return WRITABLE[path.suffix.lower()]
    except KeyError:
        known = ", ".join(WRITABLE)
        what = (
            f"can't write pictures as {path.suffix}" if path.suffix else "the name has no extension to tell the format"
        )
        raise UsageError(what, where=str(path), hint=f"use one of {known}") from None


def save_picture(
    rgb: Image.Image,
    target: Path | BinaryIO,
    *,
    like: Picture | None = None,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``rgb`` as PNG, JPEG (quality 95) or WebP to a file or a stream, whole or not at all.

    The format is ``format`` or the name's extension; for a stream ``like``'s own where it can be written, else PNG.
    ``like`` gives its EXIF, its ICC profile and, unless JPEG, its alpha (where the sizes agree). ``metadata`` becomes
    text chunks of a PNG. UsageError for an unknown format, OutputError where the result can't be written.
    """
    if format is None:
        fallback = like.format if like is not None and like.format in WRITABLE.values() else "PNG"
        kind = output_format(target) if isinstance(target, Path) else fallback
    else:
        kind = {"JPG": "JPEG"}.get(format.upper(), format.upper())
        if kind not in WRITABLE.values():
            raise UsageError(f"can't write pictures as {format}", hint="use one of png, jpeg, webp")
    where = str(target) if isinstance(target, Path) else str(getattr(target, "name", "output"))
    data = _encode(rgb, kind, like, metadata or {}, where)
    try:
        if isinstance(target, Path):
            _write_whole(target, data)
        else:
            target.write(data)
            target.flush()
    except OSError as error:
        raise OutputError(f"the picture can't be written: {error.strerror or error}", where=where) from error


def _encode(rgb: Image.Image, kind: str, like: Picture | None, metadata: Mapping[str, str], where: str) -> bytes:
    if max(rgb.size) > LONGEST_SIDE[kind]:
        size, limit = f"{rgb.width} x {rgb.height}", LONGEST_SIDE[kind]
        raise OutputError(f"{size} pixels don't fit into {kind}: {limit} a side", where=where, hint="use .png")
    image, options = rgb, dict[str, object]()
    if like is not None:
        exif = None if kind == "JPEG" and like.exif and len(like.exif) > JPEG_EXIF_LIMIT else like.exif
        options |= {key: value for key, value in (("icc_profile", like.icc), ("exif", exif)) if value}
        if like.alpha is not None and kind != "JPEG" and like.alpha.size == rgb.size:
            image = _with_alpha(rgb, like.alpha)
    if kind == "PNG":
        chunks = PngInfo()
        for key, value in metadata.items():
            readable = value.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
            (chunks.add_text if readable.isascii() else chunks.add_itxt)(key, readable)
        options["pnginfo"] = chunks
    elif kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    else:
        options["quality"] = 95
    encoded = io.BytesIO()
    try:
        image.save(encoded, kind, **options)
    except (OSError, ValueError) as error:
        raise OutputError(f"the picture can't be stored as {kind}: {error}", where=where, hint="use .png") from error
    return encoded.getvalue()


def _with_alpha(flat: Image.Image, alpha: Image.Image, strip: int = 512) -> Image.Image:
    """RGBA that gives ``flat`` on white: the white that shows through is taken out of the colours again."""
    result = Image.new("RGBA", flat.size)
    for top in range(0, flat.height, strip):
        box = (0, top, flat.width, min(flat.height, top + strip))
        color = np.asarray(flat.crop(box), dtype=np.float32)
        opacity = np.asarray(alpha.crop(box))[..., None]
        own = 255 - (255 - color) * (255 / np.maximum(opacity, 1))
        pixels = np.concatenate([np.clip(own + 0.5, 0, 255).astype(np.uint8), opacity], axis=2)
        result.paste(Image.fromarray(pixels), box)
    return result


def _write_whole(path: Path, data: bytes) -> None:
    """Write a temporary file beside ``path`` and rename it; devices and pipes, which have no beside, are written to."""
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return
    with whole_file(path) as aside:
        aside.write_bytes(data)
