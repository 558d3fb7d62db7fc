"""Open any picture upright in RGB or RGBA, and save an edited one without losing what came with it or half a file.

Whatever can't be read ends in one InputError, whatever can't be written in one OutputError; a file under the wanted
name is always complete.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from earl_cli.errors import EarlError, InputError, OutputError, UsageError
from earl_cli.files import atomic_write
from earl_cli.images import jpeg, png
from earl_cli.images.color import ColorSpace, coded_space, on_white, to_pixels
from earl_cli.images.kinds import HEIC, TIFF_HEADS, foreign_kind, tiff_trouble
from earl_cli.images.sidedata import SideData, orientation, saving_options, side_data

MAX_PIXELS = 200_000_000
READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "PCX", "SGI", "DIB")
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP"}
LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}
HEADS = {  # to tell a damaged picture from something else
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8",
    "BMP": rb"BM....\0\0\0\0",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp",
    "TIFF": b"|".join(map(re.escape, TIFF_HEADS)),
}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HEAD = 65536
AGAIN = "get it again from where it came"
ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]"
ACCEPTED = "a path, bytes, an open binary file, a PIL image, or a NumPy array uint8[height, width, 3]"
_opening = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")  # what a broken file makes Pillow say becomes our error or nothing


@dataclass(frozen=True)
class ImageFile:
    """A photo as the model takes it, and what is needed to save an edit of it as faithfully as the format allows.

    ``pixels`` are upright; RGBA where something is transparent, else RGB. ``side`` is what the file holds beside them.
    ``notes`` say what a reader should know.
    """

    pixels: Image.Image
    side: SideData
    format: str
    notes: tuple[str, ...]

    @cached_property
    def rgb(self) -> Image.Image:
        """As it looks on white, which is what a model sees."""
        return on_white(self.pixels)


def open_picture(
    source: Path | bytes | BinaryIO, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> ImageFile:
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


def open_input(source: ImageInput, *, name: str, max_pixels: int = MAX_PIXELS) -> ImageFile:
    """As `open_picture`, also of a PIL image and of an array uint8[h, w, 3] (RGB), [h, w, 4] (RGBA) or [h, w] (grey).

    Arrays are sRGB. A path is called by itself in errors, anything else ``name``. The image that was passed isn't
    changed. Raises InputError.
    """
    if isinstance(source, str | os.PathLike):
        return open_picture(Path(source), name=os.fspath(source), max_pixels=max_pixels)
    if isinstance(source, np.ndarray):
        source = _of_array(source, name)
    if isinstance(source, Image.Image):
        return _of_pillow(source, name, max_pixels)
    if isinstance(source, bytes) or hasattr(source, "read"):
        return open_picture(source, name=name, max_pixels=max_pixels)
    raise InputError(f"a {type(source).__name__} is no image", where=name, hint=ACCEPTED)


def _of_array(array: NDArray[np.uint8], where: str) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or not array.size:
        what = f"an array {array.dtype}[{', '.join(map(str, array.shape))}] is no image"
        hint = "uint8[height, width, 3], RGB from 0 to 255; of floats from 0 to 1: np.uint8(np.round(255 * array))"
        raise InputError(what, where=where, hint=hint)
    return Image.fromarray(np.ascontiguousarray(array))


def _of_pillow(image: Image.Image, where: str, max_pixels: int) -> ImageFile:
    _check_pixels(image, where, max_pixels)
    try:
        image.load()
        copy = image.copy()
        with contextlib.suppress(Exception):  # a broken EXIF block is no reason to refuse a photo
            copy = ImageOps.exif_transpose(image)
        copy.format = image.format
        return _picture(copy, None, None, (), ())
    except Exception as error:  # of a file that Pillow hasn't read to its end, or that was closed
        raise InputError(f"the image can't be decoded: {error}", where=where) from error


def _check_pixels(image: Image.Image, where: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        size = f"{image.width * image.height:,} pixels ({image.width} x {image.height})"
        what = f"the picture has {size}, more than the limit of {max_pixels:,}"
        raise InputError(what, where=where, hint="make it smaller, or raise the limit")


@contextlib.contextmanager
def _stream(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, Path):
        with source.open("rb") as file:
            yield file if file.seekable() else io.BytesIO(file.read())
    else:
        yield source if source.seekable() else io.BytesIO(source.read())


def _read(stream: BinaryIO, where: str, max_pixels: int) -> ImageFile:
    start = stream.tell()
    head = stream.read(HEAD)
    stream.seek(start)
    if not head:
        raise InputError("the file is empty", where=where)
    formats = _formats(stream, where)
    profile, space, lost, has_end = None, _coded(head), tuple[str, ...](), True
    if head.startswith(png.SIGNATURE):
        stream, profile, space, lost, has_end = png.look_through(stream)
    try:
        with _without_pillow_limits():
            image = Image.open(stream, formats=formats)
    except Exception as error:  # Pillow's parsers raise whatever a broken header trips them into
        raise _unreadable(stream, start, head, where) from error
    _check_pixels(image, where, max_pixels)
    notes = _deep(image, head)
    try:
        try:
            image.load()
        except OSError as error:
            if image.format not in ("JPEG", "MPO") or "truncated" not in str(error):
                raise
            stream.seek(start)
            with _without_pillow_limits():
                whole = jpeg.completed(stream.read())
                if whole is None:
                    raise
                image, has_end = Image.open(io.BytesIO(whole), formats=formats), False
            image.load()
        if not has_end:
            notes += ("the file's end is missing, but no pixel is",)
        return _picture(image, profile, space, notes, lost)
    except Exception as error:  # as above, for damaged pixel data
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        what = "the picture is cut short" if cut else "the picture is damaged"
        raise InputError(f"{what} and can't be decoded", where=where, hint=AGAIN) from error


def _formats(stream: BinaryIO, where: str) -> tuple[str, ...]:
    """What to open it as. InputError for what is known and can't be opened."""
    kind = foreign_kind(stream)
    if kind is HEIC:
        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
            return ("HEIF",)
    if kind is not None:
        hint = kind.hint.format(name=shlex.quote(Path(where).name))
        raise InputError(f"this is {kind.name}, which can't be read", where=where, hint=hint)
    return READABLE


def _unreadable(stream: BinaryIO, start: int, head: bytes, where: str) -> InputError:
    known = next((name for name, magic in HEADS.items() if re.match(magic, head, re.DOTALL)), None)
    if known == "TIFF":
        stream.seek(start)
        if trouble := tiff_trouble(stream):
            what = f"this is a TIFF with {trouble}, which can't be read"
            return InputError(what, where=where, hint="save it as PNG, or as TIFF with 8 bits a channel")
    if known:
        return InputError(f"this {known} is damaged or cut short at its start", where=where, hint=AGAIN)
    what = "this isn't a picture that can be read"
    return InputError(what, where=where, hint=f"formats: {', '.join(READABLE[:8])}")


@contextlib.contextmanager
def _without_pillow_limits() -> Iterator[None]:
    """Pillow's own bomb check off while a header is read: the caller's limit is checked instead."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _coded(head: bytes) -> ColorSpace | None:
    """What the colours of an AVIF or HEIC mean, which Pillow doesn't tell."""
    code = re.search(rb"colrnclx(..)(..)", head, re.DOTALL) if head[4:8] == b"ftyp" else None
    return coded_space(int.from_bytes(code[1]), int.from_bytes(code[2])) if code else None


def _deep(image: Image.Image, head: bytes) -> tuple[str, ...]:
    """A note if colours have more bits than they are read with (of grey ones the conversion tells)."""
    if image.mode not in ("RGB", "RGBA", "CMYK", "LA"):
        return ()
    bits = 8
    stored = {"AVIF": rb"pixi\0{4}.(.)", "HEIF": rb"pixi\0{4}.(.)", "JPEG2000": rb"\xff\x4f\xff\x51.{38}(.)"}
    if image.format in stored:
        found = re.search(stored[image.format], head, re.DOTALL)
        bits = found[1][0] + (image.format == "JPEG2000") if found else 8
    elif image.format == "PPM":
        maximum = re.match(rb"P[36]\s+(?:#.*\s+)*\d+\s+\d+\s+(\d+)", head)
        bits = int(maximum[1]).bit_length() if maximum else 8
    elif ";16" in repr(getattr(image, "tile", ())):
        bits = 16
    return (f"{bits} bits a channel read with 8",) if bits > 8 else ()


def _picture(
    image: Image.Image,
    profile: bytes | None,
    space: ColorSpace | None,
    notes: tuple[str, ...],
    lost: tuple[str, ...],
) -> ImageFile:
    """From a loaded picture; ``profile`` is its own where Pillow has none."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes = ("several frames: only the first is used", *notes)
    pixels, icc, said = to_pixels(image, profile or image.info.get("icc_profile") or None, space)
    pixels.info = {}  # Pillow would save from there what no longer is true of them
    turn = UPRIGHT.get(orientation(image))
    side = side_data(image, icc, turn is not None and turn >= Image.Transpose.ROTATE_90, lost)
    kind = "JPEG" if image.format == "MPO" else image.format or "PNG"
    return ImageFile(pixels.transpose(turn) if turn is not None else pixels, side, kind, (*notes, *said))


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
    image: Image.Image,
    target: Path | BinaryIO,
    *,
    like: ImageFile | None = None,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write ``image``, RGB or RGBA, as PNG, JPEG (quality 95) or WebP to a file or a stream, whole or not at all.

    The format is ``format`` or the name's extension; for a stream ``like``'s own where it can be written, else PNG.
    ``like`` gives its side data. ``metadata`` becomes text chunks of a PNG. Gives back what was lost, in words.
    UsageError for an unknown format, OutputError where the result can't be written.
    """
    if format is None:
        fallback = like.format if like is not None and like.format in WRITABLE.values() else "PNG"
        kind = output_format(target) if isinstance(target, Path) else fallback
    else:
        kind = {"JPG": "JPEG"}.get(format.upper(), format.upper())
        if kind not in WRITABLE.values():
            raise UsageError(f"can't write pictures as {format}", hint="use one of png, jpeg, webp")
    where = str(target) if isinstance(target, Path) else str(getattr(target, "name", "output"))
    options, lost = saving_options(like.side if like is not None else SideData(), kind, metadata or {})
    if kind == "JPEG" and image.mode == "RGBA":
        image, lost = on_white(image), (*lost, "a JPEG has no transparency: what was transparent is white")
    data = _encoded(image, kind, options, where)
    try:
        if isinstance(target, Path):
            _write_whole(target, data)
        else:
            target.write(data)
            target.flush()
    except OSError as error:
        raise OutputError(f"the picture can't be written: {error.strerror or error}", where=where) from error
    return lost


def _encoded(image: Image.Image, kind: str, options: Mapping[str, object], where: str) -> bytes:
    if max(image.size) > LONGEST_SIDE[kind]:
        size, limit = f"{image.width} x {image.height}", LONGEST_SIDE[kind]
        raise OutputError(f"{size} pixels don't fit into {kind}: {limit} a side", where=where, hint="use .png")
    quality = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}[kind]
    encoded = io.BytesIO()
    try:
        image.save(encoded, kind, **options, **quality)
    except (OSError, ValueError) as error:
        raise OutputError(f"the picture can't be stored as {kind}: {error}", where=where, hint="use .png") from error
    return encoded.getvalue()


def _write_whole(path: Path, data: bytes) -> None:
    """Write a temporary file beside ``path`` and rename it; devices and pipes, which have no beside, are written to."""
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return
    with atomic_write(path) as aside:
        aside.write_bytes(data)
