"""A PNG's side blocks, looked at before Pillow does: one that is damaged or too large must not cost the picture.

Also what Pillow doesn't tell: what the colours mean by cICP, or by gAMA and cHRM, and profiles too large for it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from earl_cli.images.color import ColorSpace, coded_space, gamma_space

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_BLOCK = 1 << 20  # unpacked; what Pillow and others take
LARGEST_PROFILE = 1 << 24
LEAST = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"cICP": 4, b"tRNS": 1}
WORDS = {b"iCCP": "the colour profile", b"eXIf": "the EXIF block", b"tRNS": "the transparency"}
TOO_LARGE, DAMAGED = "too large", "damaged"
UNSAID = frozenset((0, 2, 3))  # codes in a cICP that leave open what is meant
ChunkRange = tuple[int, int]
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
CHECKED = (b"iCCP", b"cICP", b"gAMA", b"cHRM", b"sRGB", b"eXIf", b"pHYs", b"tRNS", *TEXTS)


class Png(NamedTuple):
    """``stream``: the file, or a copy without the blocks in its way. ``profile``: one that Pillow would refuse.

    ``space``: what the colours mean if that is neither sRGB nor said by a profile. ``dropped``: what was left out.
    ``has_end``: the file's end is there.
    """

    stream: BinaryIO
    profile: bytes | None
    space: ColorSpace | None
    dropped: tuple[str, ...]
    has_end: bool


def look_through(stream: BinaryIO) -> Png:
    """Look at all side blocks of a PNG, from where ``stream`` stands."""
    start = stream.tell()
    blocks, places, faults = dict[bytes, bytes](), dict[bytes, ChunkRange](), list[ChunkRange]()
    dropped, profile, ends = list[str](), None, False
    for name, at, length in _chunks(stream, start):
        ends = name == b"IEND"
        if name not in CHECKED and not (name[0] & 32 and length > LARGEST_BLOCK):
            continue
        stream.seek(at + 8)
        data, check = stream.read(length), stream.read(4)
        fault = _fault(name, data, check)
        if fault is None:
            blocks.setdefault(name, data)
            places.setdefault(name, (at, at + 12 + length))
            continue
        faults.append((at, at + 12 + length))
        if fault == TOO_LARGE and name == b"iCCP":
            with suppress(zlib.error):
                profile = _unpacked(_packed(name, data), LARGEST_PROFILE)
        if profile is None or name != b"iCCP":
            dropped.append(f"{_in_words(name, data)} is {fault}: left out")
    if UNSAID.isdisjoint(blocks.get(b"cICP", b"\0")[:2]):  # then a profile doesn't count
        profile = None
        faults += [places[b"iCCP"]] if b"iCCP" in places else []
    stream.seek(start)
    return Png(_without(stream, faults) if faults else stream, profile, _space(blocks, profile), tuple(dropped), ends)


def _chunks(stream: BinaryIO, start: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, where, length of its data) of each chunk, as far as the file is in order."""
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


def _fault(name: bytes, data: bytes, check: bytes) -> str | None:
    if zlib.crc32(name + data).to_bytes(4) != check or len(data) < LEAST.get(name, 0):
        return DAMAGED
    if len(data) > LARGEST_BLOCK:
        return TOO_LARGE
    packed = _packed(name, data)
    if packed is None:
        return DAMAGED if name in (b"iCCP", b"zTXt") else None
    try:
        return TOO_LARGE if _unpacked(packed, LARGEST_BLOCK) is None else None
    except zlib.error:
        return DAMAGED


def _packed(name: bytes, data: bytes) -> bytes | None:
    """The deflated part of a block; None if it has none."""
    _, _, rest = data.partition(b"\0")
    if name in (b"iCCP", b"zTXt"):
        return rest[1:] if rest[:1] == b"\0" else None
    if name == b"iTXt" and rest[:2] == b"\1\0":
        return rest[2:].split(b"\0", 2)[-1]
    return None


def _unpacked(packed: bytes | None, most: int) -> bytes | None:
    """What was deflated; None if it is more than ``most`` bytes. zlib.error if it is damaged or cut short."""
    inflater = zlib.decompressobj()
    content = inflater.decompress(packed or b"", most)
    if inflater.unconsumed_tail:
        return None
    if not inflater.eof:
        raise zlib.error
    return content


def _in_words(name: bytes, data: bytes) -> str:
    key = data.partition(b"\0")[0][:40].decode("latin-1")
    return f"the text {key!r}" if name in TEXTS else WORDS.get(name, f"the block {name.decode('latin-1')}")


def _without(stream: BinaryIO, faults: list[ChunkRange]) -> BinaryIO:
    """A copy of the file from where ``stream`` stands, without these ranges of it."""
    start = stream.tell()
    data = stream.read()
    kept, last = io.BytesIO(), 0
    for begin, end in sorted(faults):
        kept.write(data[last : begin - start])
        last = end - start
    kept.write(data[last:])
    kept.seek(0)
    return kept


def _space(blocks: dict[bytes, bytes], profile: bytes | None) -> ColorSpace | None:
    """By the PNG standard's order: cICP, then a profile, sRGB, gAMA with cHRM."""
    if code := blocks.get(b"cICP"):
        return coded_space(code[0], code[1])
    if profile or b"iCCP" in blocks or b"sRGB" in blocks or b"gAMA" not in blocks:
        return None
    gamma = struct.unpack(">I", blocks[b"gAMA"][:4])[0] / 100_000
    xy = struct.unpack(">8I", blocks[b"cHRM"][:32]) if b"cHRM" in blocks else None
    return gamma_space(gamma, tuple(each / 100_000 for each in xy) if xy else None)
