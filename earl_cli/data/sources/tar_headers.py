"""The members of a tar from front to back, in flat memory; nothing that a header claims is believed without a look."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, cast

MOST_HEADER_BYTES, LARGEST_MEMBER = 2**20, 2**53


class TarDamageError(ValueError):
    """The members before ``offset`` are as they should be; what begins there can't be read, nor what follows."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what)
        self.offset = offset


def headers(stream: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar that begins where ``stream`` is. Raises TarDamageError where it breaks off."""
    begin = here = stream.tell()
    sparing = _Sparing(stream)
    end = begin - 1
    try:
        with tarfile.open(fileobj=cast(IO[bytes], sparing), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
                if not 0 <= member.size <= LARGEST_MEMBER or member.offset <= end:
                    raise ValueError("its members overlap, or have a size that can't be")
                end = member.offset
                here = tar.offset
                yield member
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError, EOFError) as error:
        what = "its headers have headers without end" if isinstance(error, RecursionError) else str(error)
        raise TarDamageError(what, here) from None
    if sparing.last.strip(b"\0"):  # which tarfile takes for the end
        raise TarDamageError(f"there is no header at byte {here:,}, where one should be", here)


def member_bytes(stream: IO[bytes], member: tarfile.TarInfo, most: int) -> bytes:
    """What is in a file of a tar. Raises ValueError for one that is sparse, larger than ``most``, or cut short."""
    if member.issparse():
        raise ValueError(f"{member.name} is a sparse file")
    if member.size > most:
        raise ValueError(f"{member.name} has more than {most:,} bytes")
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    if len(content) < member.size:
        raise ValueError(f"{member.name} is cut short")
    return content


class _Sparing:
    """A stream for headers: tarfile reads one in one go, of whatever size it claims to have."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.seek, self.tell = stream, stream.seek, stream.tell
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER_BYTES:
            raise ValueError(f"a header of {size:,} bytes")
        self.last = self._stream.read(size)
        return self.last
