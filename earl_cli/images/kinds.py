"""What a file is that Pillow can't read as a picture, by its content and not by its name.

A camera's RAW file is often a TIFF whose first picture is a thumbnail, so TIFFs are looked through before any is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

HEAD = 4096
FOOT = 26
DEVELOP = "develop it to JPEG, PNG or TIFF, for instance with darktable or the camera's own program"
CONVERT = "save it as JPEG, PNG or TIFF"
MAGICK = "convert it to PNG: magick {name} photo.png"
STILL = "take a still picture out of it: ffmpeg -i {name} -frames:v 1 photo.png"
RASTER = "draw it as pixels first, for instance with Inkscape: inkscape {name} -o picture.png"
PDF_PAGE = "draw a page as pixels first: pdftoppm -png -r 150 {name} page"


@dataclass(frozen=True)
class FileKind:
    """A kind of file. ``name`` follows "this is", ``hint`` says what to do; ``is_photo`` if it is one still picture."""

    name: str
    hint: str
    is_photo: bool = True


HEIC = FileKind("a HEIC picture", 'pip install "earl-cli[heic]", or save it as JPEG')
TGA = FileKind("a TGA picture", MAGICK)
CR3 = FileKind("a Canon RAW picture (CR3)", DEVELOP)

# (where, the bytes there, what it is); the first match counts.
SIGNATURES = (
    (0, b"8BPS", FileKind("a Photoshop document (PSD)", "save it as PNG or TIFF, flattened")),
    (0, b"gimp xcf", FileKind("a GIMP document (XCF)", "export it as PNG")),
    (0, b"\xff\x0a", FileKind("a JPEG XL picture", "convert it: djxl {name} photo.png")),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", FileKind("a JPEG XL picture", "convert it: djxl {name} photo.png")),
    (0, b"II\xbc\x01", FileKind("a JPEG XR picture", CONVERT)),
    (0, b"FUJIFILMCCD-RAW", FileKind("a Fujifilm RAW picture (RAF)", DEVELOP)),
    (0, b"IIU\0", FileKind("a Panasonic RAW picture (RW2)", DEVELOP)),
    (0, b"IIRO", FileKind("an Olympus RAW picture (ORF)", DEVELOP)),
    (0, b"IIRS", FileKind("an Olympus RAW picture (ORF)", DEVELOP)),
    (0, b"MMOR", FileKind("an Olympus RAW picture (ORF)", DEVELOP)),
    (0, b"FOVb", FileKind("a Sigma RAW picture (X3F)", DEVELOP)),
    (0, b"\0MRM", FileKind("a Minolta RAW picture (MRW)", DEVELOP)),
    (6, b"HEAPCCDR", FileKind("a Canon RAW picture (CRW)", DEVELOP)),
    (0, b"v/1\x01", FileKind("an OpenEXR picture", CONVERT)),
    (0, b"#?RADIANCE", FileKind("a Radiance HDR picture", CONVERT)),
    (0, b"#?RGBE", FileKind("a Radiance HDR picture", CONVERT)),
    (0, b"DDS ", FileKind("a DDS texture", MAGICK)),
    (0, b"SIMPLE  =", FileKind("a FITS picture", CONVERT)),
    (128, b"DICM", FileKind("a DICOM picture", CONVERT)),
    (0, b"BPG\xfb", FileKind("a BPG picture", CONVERT)),
    (0, b"%PDF-", FileKind("a PDF document", PDF_PAGE, False)),
    (0, b"%!PS", FileKind("a PostScript file", "draw it as pixels first, for instance with Ghostscript", False)),
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
        FileKind("a Git LFS pointer, not the picture itself", "git lfs pull fetches it", False),
    ),
)
HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Tags of a TIFF, and the values of theirs that mean sensor data.
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, MAKE, SUB_IFDS, SAMPLE_FORMAT = 254, 258, 259, 262, 271, 330, 339
CFA_PATTERNS, DNG_VERSION = (33421, 33422), 50706
SENSOR_COLORS = (32803, 34892)  # colour filter array, linear RAW
SENSOR_COMPRESSIONS = (32767, 34713, 65535)  # Sony, Nikon, Pentax
TAGS = (SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, MAKE, SUB_IFDS, SAMPLE_FORMAT, *CFA_PATTERNS, DNG_VERSION)
MOST_DIRECTORIES = 64
RAW_OF = {"nikon": "NEF", "sony": "ARW", "pentax": "PEF", "canon": "CR2", "hasselblad": "3FR", "samsung": "SRW"}


def foreign_kind(stream: BinaryIO) -> FileKind | None:
    """What a stream holds if that is known and isn't for Pillow alone; None for anything else. It stays where it is."""
    start = stream.tell()
    try:
        head = stream.read(HEAD)
        for where, signature, kind in SIGNATURES:
            if head.startswith(signature, where):
                return kind
        if head[4:8] == b"ftyp":
            return _media_kind(head)
        if head.startswith(TIFF_HEADS):
            stream.seek(start)
            return _raw_kind(head, list(tiff_directories(stream)))
        return _text_kind(head) or _tga_kind(head, stream)
    finally:
        stream.seek(start)


def _media_kind(head: bytes) -> FileKind | None:
    """By the brands of an ISO media file, of which the first is the main one; AVIF pictures are Pillow's."""
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
        return FileKind("an SVG drawing", RASTER, False)
    if re.match(rb"<(!doctype html|html|head)", text):
        return FileKind("a web page", "the download gave a page in place of the picture", False)
    return None


def _tga_kind(head: bytes, stream: BinaryIO) -> FileKind | None:
    """A TGA has no signature at its start: the one at its end, or a head without any contradiction."""
    stream.seek(0, 2)
    if (size := stream.tell()) > FOOT:
        stream.seek(size - FOOT)
        if b"TRUEVISION-XFILE" in stream.read(FOOT):
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
    """Whether a TIFF is a camera's RAW file, or one that shows only a preview of a picture that lies deeper."""
    maker = str(directories[0].get(MAKE, "")).strip() if directories else ""
    if any(DNG_VERSION in each for each in directories):
        return FileKind("a RAW picture (DNG)", DEVELOP)
    if head[8:10] == b"CR" or any(map(_is_sensor_data, directories)):
        short = next((form for name, form in RAW_OF.items() if maker.lower().startswith(name)), "")
        return FileKind(f"a RAW picture ({' '.join((maker, short)).strip() or 'from a camera'})", DEVELOP)
    if directories and directories[0].get(SUBFILE, 0) & 1 and any(not each.get(SUBFILE, 0) & 1 for each in directories):
        return FileKind("a TIFF that begins with a mere preview of its picture", "save its full picture alone")
    return None


def _is_sensor_data(directory: Mapping[int, Any]) -> bool:
    return (
        directory.get(PHOTOMETRIC) in SENSOR_COLORS
        or directory.get(COMPRESSION) in SENSOR_COMPRESSIONS
        or any(tag in directory for tag in CFA_PATTERNS)
    )


def tiff_directories(stream: BinaryIO) -> Iterator[Mapping[int, Any]]:
    """The tags of each picture in a TIFF, those of the main row first; it ends where the file is damaged."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    start = stream.tell()
    try:
        head = stream.read(8)
        head += stream.read(8) if head[2] == 43 or head[3] == 43 else b""
        waiting, seen = [ImageFileDirectory_v2(head).next], set[int]()
        while waiting and len(seen) < MOST_DIRECTORIES:
            at = waiting.pop(0)
            if not at or at in seen:
                continue
            seen.add(at)
            stream.seek(start + at)
            directory = ImageFileDirectory_v2(head)
            directory.load(stream)
            found = {tag: _single(directory[tag]) for tag in TAGS if tag in directory}
            yield found
            inner = found.get(SUB_IFDS, ())
            waiting = [directory.next, *waiting, *(inner if isinstance(inner, tuple) else (inner,))]
    except Exception:  # a damaged directory: Pillow's parser raises anything
        return


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def tiff_trouble(stream: BinaryIO) -> str | None:
    """What of an undamaged TIFF's storage is unusual, in words; None if nothing is."""
    first = next(tiff_directories(stream), {})
    bits, form, color = first.get(BITS, 1), first.get(SAMPLE_FORMAT, 1), first.get(PHOTOMETRIC)
    most = max(bits) if isinstance(bits, tuple) else bits
    floating = (max(form) if isinstance(form, tuple) else form) == 3
    colors = {0: "grey", 1: "grey", 2: "RGB", 5: "CMYK", 6: "YCbCr", 8: "Lab"}.get(color or 0, "other")
    if floating:
        return f"{most}-bit floating-point {colors} values"
    return f"{most}-bit {colors} values" if most not in (1, 2, 4, 8) else None
