"""XMP goes on to the edited picture, without what it says about the old file's own storage."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

# Everything in these namespaces is about a gain map, a film, depth or a preview that the edited file doesn't have.
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
MARKS = re.compile("|".join(re.escape(mark) for mark in (*STALE_SPACES, *(name.split("}")[1] for name in STALE_NAMES))))
BEGIN, END = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n', '\n<?xpacket end="w"?>'


def kept_xmp(packet: object) -> tuple[bytes | None, tuple[str, ...]]:
    """(what of an XMP packet is true of an edited picture, as it stands where nothing is stale; notes)."""
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
        return _without_stale(events.root).encode() if MARKS.search(text) else packet, ()  # type: ignore[attr-defined]
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
