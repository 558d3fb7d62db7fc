"""WebDataset tars as a source: the files of a sample share the name before the first dot, and stand together.

``000017.source.png``, ``000017.edited.jpg`` and ``000017.json`` make a row with the columns ``source``, ``edited`` and
those of the JSON object. Nothing is ever extracted to the disk.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earl_cli.data.sources import BadRowError, Row
from earl_cli.errors import InputError

MOST_BYTES = 256_000_000
TEXTS = ("txt", "text", "cls", "id")
_PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "ppm", "avif")


@dataclass(frozen=True, eq=False)
class TarSource:
    """The samples of some tars; ``places`` int64[n, 3] are the tar, the first header's offset and the last one's."""

    name: str
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    fingerprint: str
    places: NDArray[np.int64]
    base: None = None

    @property
    def bounds(self) -> NDArray[np.int64]:
        return np.arange(len(self.places) + 1)

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """As `Source.read`."""
        for number in rows:
            tar, first, last = (int(value) for value in self.places[number])
            where = f"{self.files[tar]}, sample {number + 1}"
            try:
                values = _sample(self.files[tar], first, last)
            except (tarfile.TarError, OSError, ValueError) as error:
                yield BadRowError("data", f"the sample can't be read: {error}", where=where)
            else:
                where = f"{self.files[tar]}, {values['__key__']}"
                yield Row(int(number), where, {name: values[name] for name in columns if name in values})


def open_tars(name: str, files: Sequence[Path]) -> TarSource:
    """Raises InputError, naming the file, if one is no plain tar or there is no sample in any."""
    places: list[tuple[int, int, int]] = []
    digest = hashlib.sha256()
    for index, file in enumerate(files):
        digest.update(repr((file.name, file.stat().st_size)).encode())
        try:
            with tarfile.open(file, "r:") as tar:
                places += [(index, *place) for place in _samples(tar)]
        except (tarfile.TarError, OSError) as error:
            hint = "unpack .gz first: samples are read from their place"
            raise InputError(f"not a tar that can be read: {error}", where=str(file), hint=hint) from None
    if not places:
        raise InputError("there is no sample in these tars", where=name)
    columns = tuple(_sample(files[places[0][0]], *places[0][1:]))
    return TarSource(name, tuple(files), columns, digest.hexdigest()[:16], np.array(places, dtype=np.int64))


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[int, int]]:
    """Where the first and the last file of each sample begin."""
    key, first, last = "", -1, -1
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header of the tar in memory
        if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
            continue
        here, _ = _key(member.name)
        if here != key:
            if first >= 0:
                yield first, last
            key, first = here, member.offset
        last = member.offset
    if first >= 0:
        yield first, last


def _sample(file: Path, first: int, last: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    with file.open("rb") as stream:
        stream.seek(first)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    if member.size > MOST_BYTES:
                        raise ValueError(f"{member.name} has more than {MOST_BYTES:,} bytes")
                    values["__key__"], suffix = _key(member.name)
                    values |= _column(suffix, content.read())
                if member.offset >= last:
                    break
    return values


def _key(name: str) -> tuple[str, str]:
    """A file's sample, and what distinguishes it within the sample: ``a/17.source.png`` is ``a/17``, ``source.png``."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _column(suffix: str, content: bytes) -> dict[str, Any]:
    if suffix == "json":
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise ValueError("its .json is no object")
        return fields
    stem, _, kind = suffix.rpartition(".")
    if kind in TEXTS:
        return {stem or kind: content.decode("utf-8").strip()}
    return {stem if stem and kind in _PICTURES else suffix: content}
