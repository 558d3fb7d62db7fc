"""Ancillary chunks of a PNG, checked before Pillow reads it, which would refuse a whole image for one damaged chunk.

Also what Pillow doesn't read: the colour space by cICP, or by gAMA and cHRM, and profiles that are too large for it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from earl_cli.images.color import ColorSpace, coded_color_space, gamma_color_space

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNK_BYTES = 1 << 20  # decompressed; what Pillow and others accept
MAX_PROFILE_BYTES = 1 << 24
MIN_CHUNK_BYTES = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"cICP": 4, b"tRNS": 1}
CHUNK_NAMES = {b"iCCP": "the colour profile", b"eXIf": "the EXIF block", b"tRNS": "the transparency"}
TOO_LARGE, DAMAGED = "too large", "damaged"
UNSPECIFIED_CODES = frozenset((0, 2, 3))  # in a cICP
ChunkRange = tuple[int, int]
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
CHECKED_CHUNKS = (b"iCCP", b"cICP", b"gAMA", b"cHRM", b"sRGB", b"eXIf", b"pHYs", b"tRNS", *TEXT_CHUNKS)


class InspectedPng(NamedTuple):
    """``stream`` is the file, or a copy without the chunks that Pillow would refuse, named in ``dropped``.

    ``profile`` is one that is too large for Pillow; ``space`` the colour space if it is neither sRGB nor given by a
    profile. ``has_end`` is False where the file is truncated.
    """

    stream: BinaryIO
    profile: bytes | None
    space: ColorSpace | None
    dropped: tuple[str, ...]
    has_end: bool


def inspect(stream: BinaryIO) -> InspectedPng:
    """Check all ancillary chunks of the PNG that begins at the position of ``stream``."""
    start = stream.tell()
    chunks, ranges, faults = dict[bytes, bytes](), dict[bytes, ChunkRange](), list[ChunkRange]()
    dropped, profile, has_end = list[str](), None, False
    for name, at, length in _chunks(stream, start):
        has_end = name == b"IEND"
        if name not in CHECKED_CHUNKS and not (name[0] & 32 and length > MAX_CHUNK_BYTES):
            continue
        stream.seek(at + 8)
        data, checksum = stream.read(length), stream.read(4)
        fault = _fault(name, data, checksum)
        if fault is None:
            chunks.setdefault(name, data)
            ranges.setdefault(name, (at, at + 12 + length))
            continue
        faults.append((at, at + 12 + length))
        if fault == TOO_LARGE and name == b"iCCP":
            with suppress(zlib.error):
                profile = _decompressed(_compressed_part(name, data), MAX_PROFILE_BYTES)
        if profile is None or name != b"iCCP":
            dropped.append(f"{_describe(name, data)} is {fault}: left out")
    if UNSPECIFIED_CODES.isdisjoint(chunks.get(b"cICP", b"\0")[:2]):  # it takes precedence over a profile
        profile = None
        faults += [ranges[b"iCCP"]] if b"iCCP" in ranges else []
    stream.seek(start)
    stream = _without(stream, faults) if faults else stream
    return InspectedPng(stream, profile, _color_space(chunks, profile), tuple(dropped), has_end)


def _chunks(stream: BinaryIO, start: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, position, length of the data) of each chunk, up to the first invalid one."""
    end = stream.seek(0, io.SEEK_END)
    at = start + len(SIGNATURE)
    while at + 8 <= end:
        stream.seek(at)
        length, name = struct.unpack(">I4s", stream.read(8))
        if not name.isalpha() or (at + 12 + length > end and not name[0] & 32):
            return
        yield name, at, min(length, max(0, end - at - 12))
        if name == b"IEND":
            return
        at += 12 + length


def _fault(name: bytes, data: bytes, checksum: bytes) -> str | None:
    if zlib.crc32(name + data).to_bytes(4) != checksum or len(data) < MIN_CHUNK_BYTES.get(name, 0):
        return DAMAGED
    if len(data) > MAX_CHUNK_BYTES:
        return TOO_LARGE
    compressed = _compressed_part(name, data)
    if compressed is None:
        return DAMAGED if name in (b"iCCP", b"zTXt") else None
    try:
        return TOO_LARGE if _decompressed(compressed, MAX_CHUNK_BYTES) is None else None
    except zlib.error:
        return DAMAGED


def _compressed_part(name: bytes, data: bytes) -> bytes | None:
    """The deflated part of a chunk's data; None if it has none."""
    _, _, rest = data.partition(b"\0")
    if name in (b"iCCP", b"zTXt"):
        return rest[1:] if rest[:1] == b"\0" else None
    if name == b"iTXt" and rest[:2] == b"\1\0":
        return rest[2:].split(b"\0", 2)[-1]
    return None


def _decompressed(compressed: bytes | None, max_bytes: int) -> bytes | None:
    """Inflated data; None if it has more than ``max_bytes``. Raises zlib.error if it is damaged or truncated."""
    inflater = zlib.decompressobj()
    content = inflater.decompress(compressed or b"", max_bytes)
    if inflater.unconsumed_tail:
        return None
    if not inflater.eof:
        raise zlib.error
    return content


def _describe(name: bytes, data: bytes) -> str:
    key = data.partition(b"\0")[0][:40].decode("latin-1")
    return f"the text {key!r}" if name in TEXT_CHUNKS else CHUNK_NAMES.get(name, f"the chunk {name.decode('latin-1')}")


def _without(stream: BinaryIO, faults: list[ChunkRange]) -> BinaryIO:
    """A copy of the rest of ``stream``, without these ranges of it."""
    start = stream.tell()
    data = stream.read()
    kept, last = io.BytesIO(), 0
    for begin, end in sorted(faults):
        kept.write(data[last : begin - start])
        last = end - start
    kept.write(data[last:])
    kept.seek(0)
    return kept


def _color_space(chunks: dict[bytes, bytes], profile: bytes | None) -> ColorSpace | None:
    """In the PNG standard's order: cICP, a profile, sRGB, gAMA with cHRM; None for a profile or sRGB."""
    if code := chunks.get(b"cICP"):
        return coded_color_space(code[0], code[1])
    if profile or b"iCCP" in chunks or b"sRGB" in chunks or b"gAMA" not in chunks:
        return None
    gamma = struct.unpack(">I", chunks[b"gAMA"][:4])[0] / 100_000
    xy = struct.unpack(">8I", chunks[b"cHRM"][:32]) if b"cHRM" in chunks else None
    return gamma_color_space(gamma, tuple(each / 100_000 for each in xy) if xy else None)
