"""Kinds of files that can't be read as images, recognized by content, not by name, each with what to do about it.

A camera's RAW file is often a TIFF whose first image is a thumbnail, so all directories of a TIFF are checked first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

HEADER_BYTES = 4096
FOOTER_BYTES = 26
DEVELOP = "develop it to JPEG, PNG or TIFF, for instance with darktable or the camera's own program"
CONVERT = "save it as JPEG, PNG or TIFF"
MAGICK = "convert it to PNG: magick {name} photo.png"
STILL = "take a still image out of it: ffmpeg -i {name} -frames:v 1 photo.png"
RASTER = "render it first, for instance with Inkscape: inkscape {name} -o image.png"
PDF_PAGE = "render a page first: pdftoppm -png -r 150 {name} page"


@dataclass(frozen=True)
class FileKind:
    """A kind of file. ``name`` follows "this is", ``hint`` says what to do; ``is_photo``: it is one still image."""

    name: str
    hint: str
    is_photo: bool = True


HEIC = FileKind("a HEIC image", 'pip install "earl-cli[heic]", or save it as JPEG')
TGA = FileKind("a TGA image", MAGICK)
CR3 = FileKind("a Canon RAW image (CR3)", DEVELOP)

# (position, the bytes there, the kind); the first match counts.
SIGNATURES = (
    (0, b"8BPS", FileKind("a Photoshop document (PSD)", "save it as PNG or TIFF, flattened")),
    (0, b"gimp xcf", FileKind("a GIMP document (XCF)", "export it as PNG")),
    (0, b"\xff\x0a", FileKind("a JPEG XL image", "convert it: djxl {name} photo.png")),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", FileKind("a JPEG XL image", "convert it: djxl {name} photo.png")),
    (0, b"II\xbc\x01", FileKind("a JPEG XR image", CONVERT)),
    (0, b"FUJIFILMCCD-RAW", FileKind("a Fujifilm RAW image (RAF)", DEVELOP)),
    (0, b"IIU\0", FileKind("a Panasonic RAW image (RW2)", DEVELOP)),
    (0, b"IIRO", FileKind("an Olympus RAW image (ORF)", DEVELOP)),
    (0, b"IIRS", FileKind("an Olympus RAW image (ORF)", DEVELOP)),
    (0, b"MMOR", FileKind("an Olympus RAW image (ORF)", DEVELOP)),
    (0, b"FOVb", FileKind("a Sigma RAW image (X3F)", DEVELOP)),
    (0, b"\0MRM", FileKind("a Minolta RAW image (MRW)", DEVELOP)),
    (6, b"HEAPCCDR", FileKind("a Canon RAW image (CRW)", DEVELOP)),
    (0, b"v/1\x01", FileKind("an OpenEXR image", CONVERT)),
    (0, b"#?RADIANCE", FileKind("a Radiance HDR image", CONVERT)),
    (0, b"#?RGBE", FileKind("a Radiance HDR image", CONVERT)),
    (0, b"DDS ", FileKind("a DDS texture", MAGICK)),
    (0, b"SIMPLE  =", FileKind("a FITS image", CONVERT)),
    (128, b"DICM", FileKind("a DICOM image", CONVERT)),
    (0, b"BPG\xfb", FileKind("a BPG image", CONVERT)),
    (0, b"%PDF-", FileKind("a PDF document", PDF_PAGE, False)),
    (0, b"%!PS", FileKind("a PostScript file", "render it first, for instance with Ghostscript", False)),
    (0, b"\x1aE\xdf\xa3", FileKind("a video (Matroska or WebM)", STILL, False)),
    (8, b"AVI LIST", FileKind("a video (AVI)", STILL, False)),
    (0, b"\0\0\x01\xba", FileKind("a video (MPEG)", STILL, False)),
    (0, b"\0\0\x01\xb3", FileKind("a video (MPEG)", STILL, False)),
    (0, b"0&\xb2u\x8ef\xcf\x11", FileKind("a video (WMV)", STILL, False)),
    (0, b"FLV\x01", FileKind("a video (FLV)", STILL, False)),
    (4, b"moov", FileKind("a video (QuickTime)", STILL, False)),
    (0, b"PK\x03\x04", FileKind("a ZIP archive", "unpack it first", False)),
    (0, b"\x1f\x8b\x08", FileKind("a gzip archive", "unpack it first", False)),
    (
        0,
        b"version https://git-lfs",
        FileKind("a Git LFS pointer, not the image itself", "git lfs pull fetches it", False),
    ),
)
HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Tags of a TIFF, and their values that mean sensor data.
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, MAKE, SUB_IFDS, SAMPLE_FORMAT = 254, 258, 259, 262, 271, 330, 339
CFA_PATTERNS, DNG_VERSION = (33421, 33422), 50706
SENSOR_COLORS = (32803, 34892)  # colour filter array, linear RAW
SENSOR_COMPRESSIONS = (32767, 34713, 65535)  # Sony, Nikon, Pentax
TAGS = (SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, MAKE, SUB_IFDS, SAMPLE_FORMAT, *CFA_PATTERNS, DNG_VERSION)
MAX_DIRECTORIES = 64
RAW_OF = {"nikon": "NEF", "sony": "ARW", "pentax": "PEF", "canon": "CR2", "hasselblad": "3FR", "samsung": "SRW"}


def unsupported_kind(stream: BinaryIO) -> FileKind | None:
    """The kind of a stream's content, None if Pillow alone may read it. The position of ``stream`` doesn't change."""
    start = stream.tell()
    try:
        head = stream.read(HEADER_BYTES)
        for position, signature, kind in SIGNATURES:
            if head.startswith(signature, position):
                return kind
        if head[4:8] == b"ftyp":
            return _media_kind(head)
        if head.startswith(TIFF_SIGNATURES):
            stream.seek(start)
            return _raw_kind(head, list(tiff_directories(stream)))
        return _text_kind(head) or _tga_kind(head, stream)
    finally:
        stream.seek(start)


def _media_kind(head: bytes) -> FileKind | None:
    """By the brands of an ISO media file, the first of which is its major one; Pillow reads AVIF."""
    size = min(int.from_bytes(head[:4]), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
    if AVIF_BRANDS.intersection(brands):
        return None
    if HEIC_BRANDS.intersection(brands):
        return HEIC
    if brands[0] == b"crx ":
        return CR3
    return FileKind("a video (MP4 or QuickTime)", STILL, False)


def _text_kind(head: bytes) -> FileKind | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text.startswith(b"<"):
        return None
    if re.search(rb"<svg[\s>]", text):
        return FileKind("an SVG image", RASTER, False)
    if re.match(rb"<(!doctype html|html|head)", text):
        return FileKind("a web page", "a page was downloaded in place of the image", False)
    return None


def _tga_kind(head: bytes, stream: BinaryIO) -> FileKind | None:
    """By the signature at a TGA's end, or by a header whose fields are all consistent: there is none at its start."""
    stream.seek(0, 2)
    if (size := stream.tell()) > FOOTER_BYTES:
        stream.seek(size - FOOTER_BYTES)
        if b"TRUEVISION-XFILE" in stream.read(FOOTER_BYTES):
            return TGA
    if len(head) < 18:
        return None
    mapped, kind, depth, flags = head[1], head[2], head[16], head[17]
    depths = {1: (8, 16), 2: (15, 16, 24, 32), 3: (8, 16)}.get(kind & 7, ())
    right_kind = kind in (1, 2, 3, 9, 10, 11) and mapped == (kind & 7 == 1)
    right_map = head[7] in (15, 16, 24, 32) if mapped else head[3:8] == bytes(5)
    sized = all(head[12:14].strip(b"\0")) and any(head[12:14]) and any(head[14:16])
    return TGA if right_kind and right_map and sized and depth in depths and flags < 64 else None


def _raw_kind(head: bytes, directories: list[Mapping[int, Any]]) -> FileKind | None:
    """The kind of a TIFF that is a camera's RAW file, or begins with a preview of its image; None for others."""
    maker = str(directories[0].get(MAKE, "")).strip() if directories else ""
    if any(DNG_VERSION in each for each in directories):
        return FileKind("a RAW image (DNG)", DEVELOP)
    if head[8:10] == b"CR" or any(map(_is_sensor_data, directories)):
        short = next((form for name, form in RAW_OF.items() if maker.lower().startswith(name)), "")
        return FileKind(f"a RAW image ({' '.join((maker, short)).strip() or 'from a camera'})", DEVELOP)
    if directories and directories[0].get(SUBFILE, 0) & 1 and any(not each.get(SUBFILE, 0) & 1 for each in directories):
        return FileKind("a TIFF that begins with a preview of its image", "save its full image alone")
    return None


def _is_sensor_data(directory: Mapping[int, Any]) -> bool:
    return (
        directory.get(PHOTOMETRIC) in SENSOR_COLORS
        or directory.get(COMPRESSION) in SENSOR_COMPRESSIONS
        or any(tag in directory for tag in CFA_PATTERNS)
    )


def tiff_directories(stream: BinaryIO) -> Iterator[Mapping[int, Any]]:
    """The tags of each image in a TIFF, main images before their sub-images; stops where the file is damaged."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    start = stream.tell()
    try:
        head = stream.read(8)
        head += stream.read(8) if head[2] == 43 or head[3] == 43 else b""
        pending, seen = [ImageFileDirectory_v2(head).next], set[int]()
        while pending and len(seen) < MAX_DIRECTORIES:
            at = pending.pop(0)
            if not at or at in seen:
                continue
            seen.add(at)
            stream.seek(start + at)
            directory = ImageFileDirectory_v2(head)
            directory.load(stream)
            found = {tag: _single(directory[tag]) for tag in TAGS if tag in directory}
            yield found
            inner = found.get(SUB_IFDS, ())
            pending = [directory.next, *pending, *(inner if isinstance(inner, tuple) else (inner,))]
    except Exception:  # of a damaged directory, Pillow's parser raises any error
        return


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def unusual_tiff_storage(stream: BinaryIO) -> str | None:
    """A description of a valid TIFF's unusual pixel format; None if it is usual."""
    first = next(tiff_directories(stream), {})
    bits, form, color = first.get(BITS, 1), first.get(SAMPLE_FORMAT, 1), first.get(PHOTOMETRIC)
    most = max(bits) if isinstance(bits, tuple) else bits
    floating = (max(form) if isinstance(form, tuple) else form) == 3
    colors = {0: "grey", 1: "grey", 2: "RGB", 5: "CMYK", 6: "YCbCr", 8: "Lab"}.get(color or 0, "other")
    if floating:
        return f"{most}-bit floating-point {colors} values"
    return f"{most}-bit {colors} values" if most not in (1, 2, 4, 8) else None
