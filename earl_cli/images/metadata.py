"""Metadata of an image file (EXIF, XMP, ICC, comments): what stays true of an edit, and what a format can't hold."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from PIL import Image
from PIL.PngImagePlugin import PngInfo

# Everything in these namespaces describes a gain map, a video, depth or a preview, which the edited file doesn't have.
STALE_SPACES = (
    "http://ns.adobe.com/hdr-gain-map/1.0/",
    "http://ns.apple.com/HDRGainMap/1.0/",
    "http://ns.google.com/photos/1.0/camera/",
    "http://ns.google.com/photos/1.0/container/",
    "http://ns.google.com/photos/1.0/depthmap/",
    "http://ns.google.com/photos/1.0/image/",
    "http://ns.adobe.com/xap/1.0/g/img/",
)
TIFF, EXIF, XAP, NOTE = (
    "{http://ns.adobe.com/tiff/1.0/}",
    "{http://ns.adobe.com/exif/1.0/}",
    "{http://ns.adobe.com/xap/1.0/}",
    "{http://ns.adobe.com/xmp/note/}",
)
STALE_NAMES = frozenset(
    {f"{TIFF}{name}" for name in ("Orientation", "ImageWidth", "ImageLength")}
    | {f"{EXIF}{name}" for name in ("PixelXDimension", "PixelYDimension")}
    | {f"{XAP}Thumbnails", f"{NOTE}HasExtendedXMP"}
)
STALE_PATTERN = re.compile(
    "|".join(re.escape(mark) for mark in (*STALE_SPACES, *(name.split("}")[1] for name in STALE_NAMES)))
)
BEGIN, END = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n', '\n<?xpacket end="w"?>'
ORIENTATION = 0x0112
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
EXIF_IFD = 0x8769
STALE_EXIF = (40962, 40963)  # pixel width and height, which a rotation swaps
# Tags of a TIFF file that describe its own storage; they mean nothing in another file.
STORAGE_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, *range(317, 326), 330, *range(337, 342), 347}
    | {*range(512, 522), *range(529, 533), 700, 33723, 34377, 34675}
)
IPTC = 0x0404  # the number of the IPTC block among Photoshop's blocks
MARKER_LIMIT = 65533
XMP_LIMIT = MARKER_LIMIT - 29
OTHER_TEXT_KEYS = ("XML:com.adobe.xmp", "Raw profile type")  # text chunks of a PNG that hold other metadata


def clean_xmp(packet: object) -> tuple[bytes | None, tuple[str, ...]]:
    """(an XMP packet without what isn't true of an edited image, unchanged if all of it is; notes)."""
    if isinstance(packet, str):
        packet = packet.encode()
    if not isinstance(packet, bytes) or not packet.strip(b"\0 \r\n"):
        return None, ()
    packet = packet.rstrip(b"\0")
    try:
        text = packet.decode("utf-8-sig")
        if "<!DOCTYPE" in text:
            raise ValueError
        events = ElementTree.iterparse(io.StringIO(text), events=("start-ns", "end"))
        for event, value in events:
            if event == "start-ns" and not re.fullmatch(r"ns\d+", value[0]):
                ElementTree.register_namespace(*value)
        return _without_stale(events.root).encode() if STALE_PATTERN.search(text) else packet, ()  # type: ignore[attr-defined]
    except (ValueError, ElementTree.ParseError, RecursionError):
        return None, ("the XMP block is damaged: left out",)


def _without_stale(root: ElementTree.Element) -> str:
    for element in list(root.iter()):
        for name in [name for name in element.attrib if _is_stale(name)]:
            del element.attrib[name]
        for child in [child for child in element if _is_stale(child.tag)]:
            element.remove(child)
    return BEGIN + ElementTree.tostring(root, "unicode") + END


def _is_stale(name: str) -> bool:
    return name in STALE_NAMES or name.removeprefix("{").startswith(STALE_SPACES)


@dataclass(frozen=True)
class ImageMetadata:
    """``icc`` describes the pixels; ``exif`` has no orientation; ``dpi`` is (horizontal, vertical); ``texts`` are a
    PNG's text chunks by key. ``lost`` describes what can't be saved in any other file.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    comment: bytes | None = None
    texts: tuple[tuple[str, str], ...] = ()
    lost: tuple[str, ...] = ()


def read_metadata(image: Image.Image, icc: bytes | None, swaps_axes: bool, lost: tuple[str, ...] = ()) -> ImageMetadata:
    """The metadata of a loaded image. ``swaps_axes``: its width is the height of the upright image."""
    exif, exif_notes = _clean_exif(image)
    xmp, xmp_notes = clean_xmp(image.info.get("xmp"))
    return ImageMetadata(
        icc=icc,
        exif=exif,
        xmp=xmp,
        iptc=_iptc(image),
        dpi=_dpi(image, swaps_axes),
        comment=_comment(image),
        texts=_texts(image),
        lost=(*lost, *exif_notes, *xmp_notes, *_other_content(image)),
    )


def orientation(image: Image.Image) -> int:
    """The orientation in EXIF, 1 to 8; 1 if it is missing or can't be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block is no reason to refuse a photo; Pillow raises any error here
        return 1


def _clean_exif(image: Image.Image) -> tuple[bytes | None, tuple[str, ...]]:
    """The EXIF block without orientation and descriptions of the file's own storage, None if nothing is left; notes."""
    try:
        exif = image.getexif()
        if not len(exif) and image.info.get("exif"):
            raise ValueError
        for tag in [tag for tag in exif if tag == ORIENTATION or tag in STORAGE_TAGS]:
            del exif[tag]
        details = exif.get_ifd(EXIF_IFD)
        for tag in STALE_EXIF:
            details.pop(tag, None)
        return exif.tobytes() if len(exif) else None, ()
    except Exception:  # as above
        return None, ("the EXIF block is damaged: left out",)


def _dpi(image: Image.Image, swaps_axes: bool) -> tuple[float, float] | None:
    """The resolution that the file states; Pillow's default of 72 for a JPEG is none."""
    dpi = image.info.get("dpi")
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        try:
            dpi = dpi if X_RESOLUTION in image.getexif() else None
        except Exception:  # as above
            dpi = None
    try:
        horizontal, vertical = (float(each) for each in dpi or ())
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    is_valid = all(1 <= each <= MARKER_LIMIT for each in (horizontal, vertical))  # false for NaN too
    return ((vertical, horizontal) if swaps_axes else (horizontal, vertical)) if is_valid else None


def _iptc(image: Image.Image) -> bytes | None:
    blocks = image.info.get("photoshop")
    content = blocks.get(IPTC) if isinstance(blocks, dict) else None
    return content if isinstance(content, bytes) and content else None


def _comment(image: Image.Image) -> bytes | None:
    comment = image.info.get("comment") if image.format != "PNG" else None  # there it is one of the texts
    comment = comment.encode("utf-8", "replace") if isinstance(comment, str) else comment
    return comment if isinstance(comment, bytes) and 0 < len(comment) <= MARKER_LIMIT else None


def _texts(image: Image.Image) -> tuple[tuple[str, str], ...]:
    texts = getattr(image, "text", None) if image.format == "PNG" else None
    return tuple((key, str(value)) for key, value in (texts or {}).items() if not key.startswith(OTHER_TEXT_KEYS))


def _other_content(image: Image.Image) -> tuple[str, ...]:
    """Notes on further images and videos in the file, which aren't kept."""
    xmp = image.info.get("xmp")
    xmp = xmp if isinstance(xmp, bytes) else b""
    segments: list[tuple[str, bytes]] = getattr(image, "applist", [])
    gains = b"hdrgm:Version" in xmp or any(b"urn:iso:std:iso:ts:21496" in content[:64] for _, content in segments)
    gains = gains or "hdrgainmap" in str(image.info.get("aux"))  # of a HEIC
    notes = []
    if gains:
        notes.append("the gain map for HDR screens isn't kept: the result is in standard range")
    elif image.format == "MPO" and getattr(image, "n_frames", 1) > 1:
        notes.append("a second image in this file (such as a gain map, a depth map or the other eye's) isn't kept")
    if b'MotionPhoto="1"' in xmp or b'MicroVideo="1"' in xmp:
        notes.append("the video of this motion photo isn't kept")
    return tuple(notes)


def save_options(
    metadata: ImageMetadata, kind: str, texts: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(Pillow's options to save ``metadata`` and, in a PNG, ``texts``; descriptions of what is lost).

    ``kind`` is PNG, JPEG or WEBP.
    """
    options: dict[str, Any] = {"icc_profile": metadata.icc, "exif": metadata.exif, "xmp": metadata.xmp}
    lost = list(metadata.lost)
    if kind == "JPEG":
        for name, limit in (("exif", MARKER_LIMIT), ("xmp", XMP_LIMIT)):
            if len(options[name] or b"") > limit:
                options[name] = None
                lost.append(f"the {name.upper()} block is larger than a JPEG can hold: left out")
        options |= {"comment": metadata.comment, "dpi": metadata.dpi}
        if metadata.iptc and len(metadata.iptc) < MARKER_LIMIT - 64:
            options["extra"] = _photoshop_segment(metadata.iptc)
    elif metadata.iptc:
        lost.append(f"the IPTC block has no place in a {kind}: left out")
    if kind == "PNG":
        options |= {"pnginfo": _png_chunks(metadata, texts), "dpi": metadata.dpi, "xmp": None}
    elif metadata.texts and (names := [key for key, _ in metadata.texts if key not in texts]):
        lost.append(f"text chunks have no place in a {kind}: {', '.join(names)} left out")
    if kind == "WEBP":
        options["exif"] = _with_resolution(metadata.exif, metadata.dpi)
        if metadata.comment:
            lost.append("the comment has no place in a WEBP: left out")
    return {key: value for key, value in options.items() if value}, tuple(lost)


def _png_chunks(metadata: ImageMetadata, texts: Mapping[str, str]) -> PngInfo:
    chunks = PngInfo()
    comment = {"Comment": metadata.comment.decode("utf-8", "replace")} if metadata.comment else {}
    for key, value in {**dict(metadata.texts), **comment, **texts}.items():
        readable = value.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
        (chunks.add_text if readable.isascii() else chunks.add_itxt)(key, readable)
    if metadata.xmp:
        chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp)
    return chunks


def _photoshop_segment(iptc: bytes) -> bytes:
    block = b"8BIM" + IPTC.to_bytes(2) + bytes(2) + len(iptc).to_bytes(4) + iptc + bytes(len(iptc) % 2)
    content = b"Photoshop 3.0\0" + block
    return b"\xff\xed" + (len(content) + 2).to_bytes(2) + content


def _with_resolution(block: bytes | None, dpi: tuple[float, float] | None) -> bytes | None:
    """EXIF with the resolution, for a format that has no other place for it."""
    exif = Image.Exif()
    if block:
        exif.load(block)
    if dpi is None or X_RESOLUTION in exif:
        return block
    exif[X_RESOLUTION], exif[Y_RESOLUTION], exif[RESOLUTION_UNIT] = (*dpi, 2)
    return exif.tobytes()
