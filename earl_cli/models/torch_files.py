"""Files of torch.save, as zip archive or in the legacy format: the value, by `pickles`, and where tensors' bytes are.

An archive must look the same to every reader: its members are uncompressed, unique and within the file.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from earl_cli.models.pickles import ELEMENT_BYTES, Constructor, PickleBytes, PickleError, Storage, read_pickle

ZIP_MAGIC, LEGACY_MAGIC = b"PK\x03\x04", b"\x80\x02"
MAX_MEMBERS = 100_000
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_LOCAL = struct.Struct("<4s22xHH")  # a member's local header: signature, lengths of name and extra field
_COUNT = struct.Struct("<q")
_TAIL = 1 << 26
_PICKLE = "/data.pkl"


@dataclass(frozen=True)
class StoragePlace:
    """Bytes in a file, and their checksum where the format has one."""

    offset: int
    length: int
    checksum: int | None = None

    def read(self, content: PickleBytes) -> bytes:
        """The bytes. Raises PickleError if the checksum differs."""
        found = content[self.offset : self.offset + self.length]
        if self.checksum is not None and zlib.crc32(found) != self.checksum:
            raise PickleError("its bytes are damaged")
        return found


@dataclass(frozen=True)
class SavedFile:
    """A file's value, and the places of its storages by key.

    ``content`` is the whole file, ``pickle`` the pickled value, ``big_endian`` the byte order of elements.
    """

    value: Any
    content: PickleBytes
    pickle: bytes
    places: Mapping[str, StoragePlace]
    big_endian: bool

    def find_storage(self, storage: Storage) -> StoragePlace:
        """Where a storage's bytes are. Raises PickleError if the file has fewer or more of them."""
        place = self.places.get(storage.key)
        if place is None or place.length != storage.size:
            raise PickleError(f"the storage {storage.key[:40]!r} is missing, or of another size")
        return place

    def read_storage(self, storage: Storage) -> bytes:
        """A storage's bytes. Raises PickleError as `find_storage`, and for a wrong checksum."""
        return self.find_storage(storage).read(self.content)


def read_torch_file(content: PickleBytes, constructors: Mapping[str, Constructor]) -> SavedFile:
    """Raises PickleError, or its ForeignNameError, for anything that torch.save doesn't write."""
    if content[:4] == ZIP_MAGIC:
        return _read_archive(content, constructors)
    if content[:2] == LEGACY_MAGIC:
        return _read_legacy(content, constructors)
    raise PickleError("it isn't a file of torch.save")


def _read_archive(content: PickleBytes, constructors: Mapping[str, Constructor]) -> SavedFile:
    members = _read_members(content)
    pickles = [name for name in members if name.endswith(_PICKLE)]
    if len(pickles) != 1:
        raise PickleError(f"it has {len(pickles)} files data.pkl")
    root = pickles[0].removesuffix(_PICKLE)

    def member(name: str) -> bytes:
        return members[f"{root}/{name}"].read(content)

    prefix = f"{root}/data/"
    places = {name.removeprefix(prefix): place for name, place in members.items() if name.startswith(prefix)}
    big_endian = f"{root}/byteorder" in members and member("byteorder") == b"big"
    pickle = member("data.pkl")
    return SavedFile(read_pickle(pickle, constructors).value, content, pickle, places, big_endian)


def _read_members(content: PickleBytes) -> dict[str, StoragePlace]:
    """The members of an archive by name."""
    if content[max(0, len(content) - _TAIL) :].count(b"PK\x01\x02") > MAX_MEMBERS:
        raise PickleError(f"it has more than {MAX_MEMBERS:,} members")
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with zipfile.ZipFile(stream) as archive:  # type: ignore[arg-type]  # a map has the methods of a file that zipfile needs
            files = archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, OSError, NotImplementedError, EOFError) as error:
        raise PickleError(f"its archive is damaged: {error}") from None
    found: dict[str, StoragePlace] = {}
    end = 0
    for file in sorted(files, key=lambda file: file.header_offset):
        if file.compress_type != zipfile.ZIP_STORED or file.compress_size != file.file_size:
            raise PickleError("it is compressed, as torch.save never does")
        header = content[file.header_offset : file.header_offset + _LOCAL.size]
        if file.header_offset < end or len(header) < _LOCAL.size or file.filename in found:
            raise PickleError("its archive is damaged: members overlap, or have the same name")
        signature, name_length, extra_length = _LOCAL.unpack(header)
        start = file.header_offset + _LOCAL.size + name_length + extra_length
        end = start + file.file_size
        if signature != ZIP_MAGIC or end > len(content):
            raise PickleError("its archive is cut short")
        found[file.filename] = StoragePlace(start, file.file_size, file.CRC)
    return found


def _read_legacy(content: PickleBytes, constructors: Mapping[str, Constructor]) -> SavedFile:
    """The legacy format: pickles of a magic number, a version, the machine, the value, the keys of storages; then, for
    each key, a number of elements and their bytes."""
    magic = read_pickle(content, {})
    version = read_pickle(content, {}, magic.end)
    machine = read_pickle(content, {}, version.end)
    if magic.value != _MAGIC or version.value != _VERSION or type(machine.value) is not dict:
        raise PickleError("it isn't a file of torch.save")
    found = read_pickle(content, constructors, machine.end)
    listed = read_pickle(content, {}, found.end)
    keys, place = listed.value, listed.end
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise PickleError("it doesn't list its storages")
    places: dict[str, StoragePlace] = {}
    for key in keys:
        if key not in found.storages or key in places:
            raise PickleError("it lists storages that it doesn't have, or twice")
        (count,) = _COUNT.unpack(content[place : place + _COUNT.size].ljust(_COUNT.size, b"\xff"))
        length = count * ELEMENT_BYTES[found.storages[key].kind]
        places[key] = StoragePlace(place + _COUNT.size, length)
        place += _COUNT.size + length
        if count < 0 or place > len(content):
            raise PickleError("it is cut short")
    big_endian = machine.value.get("little_endian") is False
    return SavedFile(found.value, content, content[machine.end : found.end], places, big_endian)
