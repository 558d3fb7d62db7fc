"""WebDataset tars as a source: the files of a sample share the name before the first dot, and are adjacent.

``000017.source.png``, ``000017.edited.jpg`` and ``000017.json`` make a row with the columns ``source``, ``edited`` and
those of the JSON object; a second object, ``000017.more.json``, is the column ``more``. Nothing is extracted to disk,
and headers are checked before they are used.
"""

from __future__ import annotations

import hashlib
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from earl_cli.data.image_cells import SUFFIXES
from earl_cli.data.sources.base import (
    BadRowError,
    CellKind,
    Row,
    check_no_lfs_pointer,
    names_below_common_folder,
    select_columns,
)
from earl_cli.errors import InputError
from earl_cli.files import loads

MAX_HEADER_BYTES, MAX_MEMBER_BYTES = 2**20, 2**53
MAX_BYTES = 256_000_000
KEY = "__key__"
TEXTS = ("txt", "text", "cls", "id")


class TarDamageError(ValueError):
    """The members before ``offset`` are valid; what begins there, and all that follows, can't be read."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what)
        self.offset = offset


def tar_members(stream: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar from the position of ``stream``. Raises TarDamageError where it breaks off."""
    begin = here = stream.tell()
    reader = _HeaderReader(stream)
    end = begin - 1
    try:
        with tarfile.open(fileobj=cast(IO[bytes], reader), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                if not 0 <= member.size <= MAX_MEMBER_BYTES or member.offset <= end:
                    raise ValueError("its members overlap, or have an impossible size")
                end = member.offset
                here = tar.offset
                yield member
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError, EOFError) as error:
        what = "its headers are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise TarDamageError(what, here) from None
    if reader.last.strip(b"\0"):  # tarfile takes it for the end
        raise TarDamageError(f"there is no header at byte {here:,}, where one should be", here)


def member_bytes(stream: IO[bytes], member: tarfile.TarInfo, max_bytes: int) -> bytes:
    """The content of a file in a tar. Raises ValueError for one that is sparse, larger than ``max_bytes``, or cut
    short."""
    if member.issparse():
        raise ValueError(f"{member.name} is a sparse file")
    if member.size > max_bytes:
        raise ValueError(f"{member.name} has more than {max_bytes:,} bytes")
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    if len(content) < member.size:
        raise ValueError(f"{member.name} is cut short")
    return content


class _HeaderReader:
    """A stream that limits the size of headers: tarfile reads one at once, of whatever size it claims to have."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.seek, self.tell = stream, stream.seek, stream.tell
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size:,} bytes")
        self.last = self._stream.read(size)
        return self.last


@dataclass(frozen=True, eq=False)
class TarSource:
    """The samples of tars; ``positions`` int64[n, 3] are the tar, the first header's offset and the last one's."""

    name: str
    files: tuple[Path, ...]
    columns: Mapping[str, CellKind]
    fingerprint: str
    positions: NDArray[np.int64]
    base: None = None

    @property
    def bounds(self) -> NDArray[np.int64]:
        return np.arange(len(self.positions) + 1)

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """As `Source.read`."""
        for number in rows:
            tar, first, last = (int(value) for value in self.positions[number])
            where = f"{self.files[tar]}, sample {number + 1}"
            try:
                values = _read_sample(self.files[tar], first, last)
            except TarDamageError as error:
                yield BadRowError("data", f"this tar breaks off here, what follows is lost: {error}", where=where)
            except (OSError, ValueError) as error:
                yield BadRowError("data", f"the sample can't be read: {error}", where=where)
            else:
                where = f"{self.files[tar]}, {values[KEY]}"
                yield Row(int(number), where, select_columns(values, columns))


def open_tars(name: str, files: Sequence[Path]) -> TarSource:
    """Scan the tars. Raises InputError, naming the file, if one is no uncompressed tar or none has a sample."""
    positions: list[tuple[int, int, int]] = []
    columns: dict[str, CellKind] = {KEY: "other"}
    digest = hashlib.sha256()
    for index, (file, name_below) in enumerate(
        zip(files, names_below_common_folder([file.as_posix() for file in files]), strict=True)
    ):
        digest.update(repr((name_below, file.stat().st_size)).encode())
        try:
            with file.open("rb") as stream:
                positions += [(index, *position) for position in _find_samples(stream, columns)]
        except (TarDamageError, OSError) as error:
            check_no_lfs_pointer(file)
            hint = "unpack .gz first: samples are read from their positions"
            raise InputError(f"not a readable tar: {error}", where=str(file), hint=hint) from None
    if not positions:
        raise InputError("there is no sample in these tars", where=name)
    return TarSource(name, tuple(files), columns, digest.hexdigest()[:16], np.array(positions, dtype=np.int64))


def _find_samples(stream: IO[bytes], columns: dict[str, CellKind]) -> Iterator[tuple[int, int]]:
    """The offsets of the first and the last header of each sample; ``columns`` is extended by those that it has.

    Where a tar breaks off after its first sample, that offset is the last sample, which becomes a reject.
    """
    key, first, last = "", -1, -1
    damage = -1
    try:
        for member in tar_members(stream):
            if not _is_sample_file(member):
                continue
            here, suffix = _key(member.name)
            if here != key:
                if first >= 0:
                    yield first, last
                key, first = here, member.offset
            last = member.offset
            name, content = _column(suffix)
            if name and content != "unknown":
                columns[name] = content
            elif name:
                columns.setdefault(name, content)
            else:
                with suppress(ValueError):  # it becomes a reject when it is read
                    fields = _json_fields(member_bytes(stream, member, MAX_BYTES))
                    columns |= dict.fromkeys(fields.keys() - columns.keys(), "unknown")
    except TarDamageError as error:
        if first < 0:
            raise
        damage = error.offset
    if first >= 0:
        yield first, last
    if damage >= 0:
        yield damage, damage


def _is_sample_file(member: tarfile.TarInfo) -> bool:
    return member.isfile() and not PurePosixPath(member.name).name.startswith(".")


def _read_sample(file: Path, first: int, last: int) -> dict[str, Any]:
    """The sample's values; files come before fields of the same name. Raises ValueError for two files of one column."""
    fields: dict[str, Any] = {}
    files: dict[str, Any] = {}
    with file.open("rb") as stream:
        stream.seek(first)
        for member in tar_members(stream):
            if _is_sample_file(member):
                files[KEY], suffix = _key(member.name)
                name, value = _read(member_bytes(stream, member, MAX_BYTES), suffix)
                if suffix.endswith("json"):
                    fields |= {name: value} if name else value
                elif name in files:
                    raise ValueError(f"there are two files for {name}")
                else:
                    files[name] = value
            if member.offset >= last:
                break
    if KEY not in files:
        raise TarDamageError("nothing follows", first)
    return fields | files


def _key(name: str) -> tuple[str, str]:
    """The name of a file's sample, and its suffix: ``a/17.source.png`` is ``a/17`` and ``source.png``."""
    folder, _, file = unicodedata.normalize("NFC", name).rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _column(suffix: str) -> tuple[str, CellKind]:
    """The column of a file, and what it holds; no name for a JSON object whose fields are columns themselves."""
    stem, _, kind = suffix.rpartition(".")
    if kind == "json":
        return stem, "unknown"
    if kind in TEXTS:
        return stem or kind, "text"
    return (stem or suffix, "image") if kind in SUFFIXES else (suffix, "other")


def _read(content: bytes, suffix: str) -> tuple[str, Any]:
    name, _ = _column(suffix)
    kind = suffix.rpartition(".")[2]
    if kind == "json":
        return name, _json_fields(content)
    return name, content.decode("utf-8").strip() if kind in TEXTS else content


def _json_fields(content: bytes) -> dict[str, Any]:
    try:
        fields = loads(content)
    except ValueError as error:
        raise ValueError(f"its .json is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("its .json is no object")
    return fields
