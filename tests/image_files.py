"""Image files as bytes, also such as no library writes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence

from PIL import Image

FORMATS = {2: "s", 3: "H", 4: "I"}


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """One of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, depth: int, color: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG of these filtered rows; ``more`` chunks stand before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more, data, chunk(b"IEND", b"")])


def with_chunks(png: bytes, *more: bytes) -> bytes:
    """``more`` put behind the head of a PNG."""
    return png[:33] + b"".join(more) + png[33:]


Tags = Mapping[int, tuple[int, Sequence[int] | bytes]]


def tiff_of(*directories: Tags, data: bytes = b"", inner: Sequence[Tags] = ()) -> bytes:
    """A little-endian TIFF of these directories (tag: type, values), the first of which has ``inner`` as SubIFDs.

    Every directory's strip is ``data``.
    """
    where = 8 + len(data)
    parts = list[bytes]()
    places = list[int]()
    for number, tags in enumerate([*inner, *directories]):
        entries = dict(tags) | {273: (4, [8]), 279: (4, [len(data)])}
        if inner and number == len(inner):
            entries[330] = (4, places[: len(inner)])
        places.append(where)
        body, beyond = b"", b""
        start = where + 2 + 12 * len(entries) + 4
        for tag, (kind, values) in sorted(entries.items()):
            packed = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{FORMATS[kind]}", *values)
            body += struct.pack("<HHI", tag, kind, len(values))
            body += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", start + len(beyond))
            beyond += packed if len(packed) > 4 else b""
        end = start + len(beyond)
        following = end if number >= len(inner) and number + 1 < len(inner) + len(directories) else 0
        parts.append(struct.pack("<H", len(entries)) + body + struct.pack("<I", following) + beyond)
        where = end
    return b"II*\0" + struct.pack("<I", places[len(inner)]) + data + b"".join(parts)
