"""Open any image upright in RGB or RGBA, and save an edited one atomically with the metadata of its source.

What can't be read is one InputError, what can't be written one OutputError.
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
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from earl_cli.errors import EarlError, InputError, OutputError, UsageError
from earl_cli.files import atomic_write
from earl_cli.images import png
from earl_cli.images.color import ColorSpace, coded_color_space, on_white, to_pixels
from earl_cli.images.kinds import HEIC, TIFF_SIGNATURES, unsupported_kind, unusual_tiff_storage
from earl_cli.images.metadata import ImageMetadata, orientation, read_metadata, save_options

MAX_PIXELS = 200_000_000
READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "PCX", "SGI", "DIB")
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP"}
MAX_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}
MAGIC_NUMBERS = {  # to distinguish a damaged image from other files
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8",
    "BMP": rb"BM....\0\0\0\0",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp",
    "TIFF": b"|".join(map(re.escape, TIFF_SIGNATURES)),
}
TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HEADER_BYTES = 65536
DAMAGED_HINT = "copy or download it again"
ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]"
ACCEPTED = "a path, bytes, an open binary file, a PIL image, or a NumPy array uint8[height, width, 3]"
_pillow_limit_lock = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")  # about broken files, which are an error or a note here


@dataclass(frozen=True)
class ImageFile:
    """An opened image, and what is needed to save an edit of it as faithfully as its format allows.

    ``pixels`` are upright, RGBA if anything is transparent, else RGB. ``notes`` are for the user: what was converted or
    ignored.
    """

    pixels: Image.Image
    metadata: ImageMetadata
    format: str
    notes: tuple[str, ...]

    @cached_property
    def rgb(self) -> Image.Image:
        """The image on white, the model's input."""
        return on_white(self.pixels)


def open_image(source: Path | bytes | BinaryIO, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> ImageFile:
    """Open an image from a path, from bytes or from a stream (also one that can't seek, such as a pipe).

    ``name`` is what errors call it. Raises InputError if it is missing, unreadable, no image, truncated, or larger than
    ``max_pixels``, which is checked before any pixel is decoded.
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
        raise InputError("this is a folder, not an image", where=where) from error
    except PermissionError as error:
        raise InputError("no permission to read this file", where=where) from error
    except OSError as error:
        raise InputError(f"this file can't be read: {error.strerror or error}", where=where) from error


def open_input(source: ImageInput, *, name: str, max_pixels: int = MAX_PIXELS) -> ImageFile:
    """As `open_image`, also of a PIL image and of an array uint8[h, w, 3] (RGB), [h, w, 4] (RGBA) or [h, w] (grey).

    Arrays are sRGB. ``name`` is what errors call anything but a path. ``source`` isn't changed. Raises InputError.
    """
    if isinstance(source, str | os.PathLike):
        return open_image(Path(source), name=os.fspath(source), max_pixels=max_pixels)
    if isinstance(source, np.ndarray):
        source = _of_array(source, name)
    if isinstance(source, Image.Image):
        return _of_pillow(source, name, max_pixels)
    if not isinstance(source, bytes) and hasattr(source, "encoding"):
        raise InputError("the file is open as text", where=name, hint='open(path, "rb"), or pass the path')
    if isinstance(source, bytes) or hasattr(source, "read"):
        return open_image(source, name=name, max_pixels=max_pixels)
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
        return _image_file(copy, None, None, (), ())
    except Exception as error:  # of a file that Pillow hasn't read to its end, or that was closed
        raise InputError(f"the image can't be decoded: {error}", where=where) from error


def _check_pixels(image: Image.Image, where: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        size = f"{image.width * image.height:,} pixels ({image.width} x {image.height})"
        what = f"the image has {size}, more than the limit of {max_pixels:,}"
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
    head = stream.read(HEADER_BYTES)
    stream.seek(start)
    if not head:
        raise InputError("the file is empty", where=where)
    formats = _formats(stream, where)
    profile, space, dropped, has_end = None, _nclx_space(head), tuple[str, ...](), True
    if head.startswith(png.SIGNATURE):
        stream, profile, space, dropped, has_end = png.inspect(stream)
    try:
        with _without_pillow_limits():
            image = Image.open(stream, formats=formats)
    except Exception as error:  # of a broken header, Pillow's parsers raise any error
        raise _unreadable(stream, start, head, where) from error
    _check_pixels(image, where, max_pixels)
    notes = _bit_depth_notes(image, head)
    try:
        try:
            image.load()
        except OSError as error:
            if image.format not in ("JPEG", "MPO") or "truncated" not in str(error):
                raise
            stream.seek(start)
            with _without_pillow_limits():
                completed = _with_end_marker(stream.read())
                if completed is None:
                    raise
                image, has_end = Image.open(io.BytesIO(completed), formats=formats), False
            image.load()
        if not has_end:
            notes += ("the file's end is missing, but no pixel is",)
        return _image_file(image, profile, space, notes, dropped)
    except Exception as error:  # as above, of damaged pixel data
        truncated = "truncated" in str(error) or isinstance(error, EOFError)
        what = "the image is cut short" if truncated else "the image is damaged"
        raise InputError(f"{what} and can't be decoded", where=where, hint=DAMAGED_HINT) from error


def _formats(stream: BinaryIO, where: str) -> tuple[str, ...]:
    """The formats that Pillow may open ``stream`` as. Raises InputError for a known kind that can't be opened."""
    kind = unsupported_kind(stream)
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
    known = next((name for name, magic in MAGIC_NUMBERS.items() if re.match(magic, head, re.DOTALL)), None)
    if known == "TIFF":
        stream.seek(start)
        if storage := unusual_tiff_storage(stream):
            what = f"this is a TIFF with {storage}, which can't be read"
            return InputError(what, where=where, hint="save it as PNG, or as TIFF with 8 bits a channel")
    if known:
        return InputError(f"this {known} is damaged or cut short at its start", where=where, hint=DAMAGED_HINT)
    what = "this isn't an image that can be read"
    return InputError(what, where=where, hint=f"formats: {', '.join(READABLE[:8])}")


@contextlib.contextmanager
def _without_pillow_limits() -> Iterator[None]:
    """Without Pillow's own check of the size while a header is read: the caller's limit is checked instead."""
    with _pillow_limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _nclx_space(head: bytes) -> ColorSpace | None:
    """The colour space of an AVIF or HEIC, which Pillow doesn't read."""
    code = re.search(rb"colrnclx(..)(..)", head, re.DOTALL) if head[4:8] == b"ftyp" else None
    return coded_color_space(int.from_bytes(code[1]), int.from_bytes(code[2])) if code else None


def _bit_depth_notes(image: Image.Image, head: bytes) -> tuple[str, ...]:
    """A note if colours have more bits than they are read with; for grey images the conversion makes it."""
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


def _image_file(
    image: Image.Image,
    profile: bytes | None,
    space: ColorSpace | None,
    notes: tuple[str, ...],
    dropped: tuple[str, ...],
) -> ImageFile:
    """From a loaded image; ``profile`` is one that Pillow didn't read."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes = ("several frames: only the first is used", *notes)
    pixels, icc, conversions = to_pixels(image, profile or image.info.get("icc_profile") or None, space)
    pixels.info = {}  # Pillow would save it with the edited image
    transpose = TRANSPOSE_OF_ORIENTATION.get(orientation(image))
    swaps_axes = transpose is not None and transpose >= Image.Transpose.ROTATE_90
    metadata = read_metadata(image, icc, swaps_axes, dropped)
    upright = pixels.transpose(transpose) if transpose is not None else pixels
    kind = "JPEG" if image.format == "MPO" else image.format or "PNG"
    return ImageFile(upright, metadata, kind, (*notes, *conversions))


def output_format(path: Path) -> str:
    """Pillow's name of the format of a file name's extension. Raises UsageError for one that can't be written."""
    try:
        return WRITABLE[path.suffix.lower()]
    except KeyError:
        known = ", ".join(WRITABLE)
        what = f"can't write images as {path.suffix}" if path.suffix else "the name has no extension to tell the format"
        raise UsageError(what, where=str(path), hint=f"use one of {known}") from None


def save_image(
    image: Image.Image,
    target: Path | BinaryIO,
    *,
    like: ImageFile | None = None,
    format: str | None = None,
    texts: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write ``image``, RGB or RGBA, as PNG, JPEG (quality 95) or WebP to a file, atomically, or to a stream.

    The format is ``format`` or the name's extension; for a stream ``like``'s own if it can be written, else PNG. The
    metadata of ``like`` are saved too; ``texts`` become text chunks of a PNG. Returns descriptions of what was lost.
    Raises UsageError for an unknown format, OutputError if the result can't be written.
    """
    if format is None:
        fallback = like.format if like is not None and like.format in WRITABLE.values() else "PNG"
        kind = output_format(target) if isinstance(target, Path) else fallback
    else:
        kind = {"JPG": "JPEG"}.get(format.upper(), format.upper())
        if kind not in WRITABLE.values():
            raise UsageError(f"can't write images as {format}", hint="use one of png, jpeg, webp")
    where = str(target) if isinstance(target, Path) else str(getattr(target, "name", "output"))
    options, lost = save_options(like.metadata if like is not None else ImageMetadata(), kind, texts or {})
    if kind == "JPEG" and image.mode == "RGBA":
        image, lost = on_white(image), (*lost, "a JPEG has no transparency: what was transparent is white")
    data = _encoded(image, kind, options, where)
    try:
        if isinstance(target, Path):
            _write(target, data)
        else:
            target.write(data)
            target.flush()
    except OSError as error:
        raise OutputError(f"the image can't be written: {error.strerror or error}", where=where) from error
    return lost


def _encoded(image: Image.Image, kind: str, options: Mapping[str, object], where: str) -> bytes:
    if max(image.size) > MAX_SIDE[kind]:
        size, limit = f"{image.width} x {image.height}", MAX_SIDE[kind]
        raise OutputError(f"{size} pixels don't fit into {kind}: {limit} a side", where=where, hint="use .png")
    quality = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}[kind]
    encoded = io.BytesIO()
    try:
        image.save(encoded, kind, **options, **quality)
    except (OSError, ValueError) as error:
        raise OutputError(f"the image can't be stored as {kind}: {error}", where=where, hint="use .png") from error
    return encoded.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write ``path`` atomically; devices and pipes are written to directly."""
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


# -- a JPEG without its end marker -------------------------------------------------------------------------------------

JPEG_END = b"\xff\xd9"
# What would be decoded next if anything were missing. Each begins anew at a restart marker.
CONTINUATIONS = (b"", b"\xaa", b"\x55", b"\xcc", b"\xff\x00")


def _with_end_marker(data: bytes) -> bytes | None:
    """A JPEG's ``data`` with an end marker if all of its pixels are there; None if some are missing.

    They are there if all scans are, and several continuations all decode to the same pixels.
    """
    data = data.removesuffix(b"\xff")
    if not _has_all_scans(data):
        return None
    restarts = [*re.finditer(rb"\xff([\xd0-\xd7])", data)]
    next_restart = restarts[-1][1][0] + 1 if restarts else 0
    decoded = {_pixel_digest(data + _continuation(bits, next_restart) + JPEG_END) for bits in CONTINUATIONS}
    return data + JPEG_END if len(decoded) == 1 else None


def _continuation(bits: bytes, next_restart: int) -> bytes:
    """``bits`` repeatedly, each followed by a restart marker, from number ``next_restart`` on."""
    if not bits:
        return b""
    return b"".join(bits * 64 + bytes((0xFF, 0xD0 + (next_restart + step) % 8)) for step in range(16))


def _pixel_digest(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return sha256(image.tobytes()).digest()


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans hold every coefficient of every component to its last bit (ITU-T T.81, B.2.3 and G.1)."""
    components, done = list[int](), set[tuple[int, int]]()
    at = 2
    while marker := re.compile(rb"\xff+([\x01-\xfe])").search(data, at):
        kind, at = marker.group(1)[0], marker.end()
        if 0xD0 <= kind <= 0xD9 or kind == 1:
            continue
        length = int.from_bytes(data[at : at + 2])
        segment, at = data[at + 2 : at + length], at + length
        if len(segment) < length - 2:
            return False
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            components = [segment[6 + 3 * each] for each in range(segment[5])]
        elif kind == 0xDA:
            count = segment[0]
            first, last, bit = segment[1 + 2 * count], segment[2 + 2 * count], segment[3 + 2 * count] & 15
            if bit == 0:
                done |= {(segment[1 + 2 * each], k) for each in range(count) for k in range(first, last + 1)}
    return bool(components) and all((each, k) in done for each in components for k in range(64))
