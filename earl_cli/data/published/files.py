"""Files of published data: a folder or a tar with ``list/tokenized_datalist.json`` and the files that it names.

Nothing in them is trusted. Names, links and members of archives that leave their folder are refused before anything is
read, and an archive is never extracted to disk.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import unicodedata
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, cast

from earl_cli.data.image_cells import find_file
from earl_cli.data.published.pth import MAX_BYTES
from earl_cli.data.sources.base import BadRowError
from earl_cli.data.sources.webdataset import tar_members
from earl_cli.errors import InputError
from earl_cli.files import loads

LIST_FOLDER, LIST_NAME, FEATURES = "list", "tokenized_datalist.json", "feature"
TARBALLS = (".tar", ".tar.gz", ".tgz")
MAX_LIST_BYTES = 2**28

_LIST = PurePosixPath(LIST_FOLDER, LIST_NAME)
_ESCAPES = "this data refers to files outside its folder, so it was not read: don't use data from this place"


Contents = Generator[bytes | BadRowError, None, None]


class PublishedFiles(Protocol):
    """The files that a list names, one a row, and their ``sizes`` in bytes, 0 for missing ones.

    ``fingerprint`` changes with the list and the sizes.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def sizes(self) -> Sequence[int]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def where(self) -> str:
        """The folder, or the folder within an archive, in which they were found."""
        ...

    def contents(self, rows: Sequence[int]) -> Contents:
        """The contents of the files of these ascending rows, or an error in their place. Raises InputError if all is
        lost."""
        ...


def is_published(place: Path) -> bool:
    """Whether this is published data: the folder of a list or the one above, the list itself, or a tar with one."""
    if place.is_dir():
        return bool(_bases(place))
    if not place.name.endswith(TARBALLS) or not place.is_file():
        return place.name == LIST_NAME and place.is_file()
    try:
        with _archive(place) as stream:
            return any(PurePosixPath(member.name).parts[-2:] == _LIST.parts for member in tar_members(stream))
    except InputError:
        return False


def find_files(place: Path) -> PublishedFiles:
    """The files of the published data at ``place``. Raises InputError if there are none, or if they are unsafe."""
    if not place.exists():
        raise InputError("no such file or folder", where=str(place))
    if place.is_dir():
        bases = _bases(place)
        if len(bases) == 1:
            _check_inside(bases[0], _roots(place))
            return _in_folder(bases[0], bases[0] / _LIST)
        if bases:
            what = f"several folders hold tokenized data: {', '.join(base.name for base in bases)}"
            raise InputError(what, where=str(place), hint="give the path of one")
        tars = ", ".join(sorted(path.name for path in place.iterdir() if path.name.endswith(TARBALLS)))
        hint = f"there are archives, give the path of one: {tars}" if tars else "earl tokenize makes it from images"
        raise InputError(f"no tokenized data: there is no {_LIST}", where=str(place), hint=hint)
    if place.name.endswith(TARBALLS):
        return _in_tar(place)
    if place.suffix == ".json":
        return _in_folder(place.parent.resolve().parent, place)
    hint = f"give a folder with {_LIST}, that file itself, or an archive ({', '.join(TARBALLS)})"
    raise InputError("no tokenized data", where=str(place), hint=hint)


def _parse_list(content: bytes, where: str) -> tuple[str, list[str]]:
    """The list's prefix, and its names. Raises InputError that quotes the name if one is unsafe."""
    try:
        found = loads(content)
        prefix, names = found.get("prefix"), found["path_list"]
        if not isinstance(names, list):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError('not a list of tokenized data, {"prefix": …, "path_list": […]}', where=where) from None
    if not names:
        raise InputError("this list names no files", where=where)
    return prefix if isinstance(prefix, str) else "", [_safe_name(name, where) for name in names]


def _beside_list(prefix: str) -> list[str]:
    """The names of folders beside ``list/`` that may hold the files: the last part of the prefix, and the usual one."""
    last = PurePosixPath(prefix.replace("\\", "/")).name
    return list(dict.fromkeys((last, FEATURES) if last not in ("", "..") else (FEATURES,)))


def _no_files_error(names: Sequence[str], tried: Sequence[object], where: str) -> InputError:
    what = f"none of the {len(names):,} files that this list names is there, such as {names[0]!r}"
    return InputError(what, where=where, hint=f"they were looked for in {', '.join(map(str, tried))}")


def _safe_name(name: Any, where: str) -> str:
    """A relative path that stays below its folder, in its plain spelling. Raises InputError for any other."""
    if not isinstance(name, str):
        raise InputError(f"this list holds a {type(name).__name__} instead of a file's name", where=where)
    path = Path(name)
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not path.parts or path.anchor or ".." in parts or parts[0] == "/" or "\0" in name:
        raise InputError(f"the name {name!r} leaves the folder", where=where, hint=_ESCAPES)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the name {name!r} is no text", where=where) from None
    return path.as_posix()


def _fingerprint(names: Sequence[str], sizes: Mapping[str, int]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(repr((name, sizes.get(name))).encode())
    return digest.hexdigest()[:16]


def _missing() -> BadRowError:
    return BadRowError("missing", "there is no such file")


def _too_large(size: int) -> BadRowError:
    return BadRowError("size", f"it has {size:,} bytes, more than {MAX_BYTES:,}")


def _repeated() -> BadRowError:
    return BadRowError("duplicate", "the list names it more than once")


# -- in a folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _FolderFiles:
    """Files in ``folder``, in the order of the list; ``spelled`` are the paths of those that the disk spells
    differently.

    Rows in ``repeated`` name a file that an earlier row names.
    """

    folder: Path
    names: tuple[str, ...]
    sizes: Sequence[int]
    fingerprint: str
    repeated: frozenset[int]
    spelled: Mapping[str, Path]

    @property
    def where(self) -> str:
        return str(self.folder)

    def contents(self, rows: Sequence[int]) -> Contents:
        for row in rows:
            name = self.names[row]
            yield _repeated() if row in self.repeated else _content(self.spelled.get(name, self.folder / name))


def _content(path: Path) -> bytes | BadRowError:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
            return content if len(content) <= MAX_BYTES else _too_large(path.stat().st_size)
    except FileNotFoundError:
        return _missing()
    except OSError as error:
        return BadRowError("missing", f"it can't be read: {error.strerror}")


def _bases(place: Path) -> list[Path]:
    """The folders that hold ``list/``: this one, or those directly below."""
    if (place / _LIST).is_file():
        return [place]
    with os.scandir(place) as entries:  # of which there may be a million images
        below = sorted(entry.name for entry in entries if entry.is_dir())
    return [place / name for name in below if (place / name / _LIST).is_file()]


def _in_folder(base: Path, listing: Path) -> _FolderFiles:
    roots = _roots(base)
    _check_inside(listing, roots)
    with listing.open("rb") as file:
        content = file.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise InputError(f"this list has more than {MAX_LIST_BYTES:,} bytes", where=str(listing))
    prefix, names = _parse_list(content, str(listing))
    given = []
    with suppress(OSError):  # a text that is too long for a path
        given = [Path(prefix)] if Path(prefix).is_absolute() and Path(prefix).is_dir() else []
    tried = [*given, base, *(base / name for name in _beside_list(prefix))]
    best = _FoundFiles(base, roots, {}, {})
    for folder in tried:
        found = _look_in(folder, names, _roots(folder) if folder in given else roots)
        best = found if len(found.sizes) > len(best.sizes) else best
        if len(best.sizes) == len(set(names)):
            break
    if not best.sizes:
        raise _no_files_error(names, tried, str(listing))
    for inner in {best.folder, *((best.folder / name).parent for name in best.sizes)}:
        _check_inside(inner, best.roots)
    rows = {name: row for row, name in reversed(list(enumerate(names)))}
    repeated = frozenset(row for row, name in enumerate(names) if rows[name] != row)
    fingerprint = _fingerprint(names, {name: best.sizes.get(name, -1) for name in names})
    counted = [0 if row in repeated else best.sizes.get(name, 0) for row, name in enumerate(names)]
    return _FolderFiles(best.folder, tuple(names), counted, fingerprint, repeated, best.spelled)


@dataclass(frozen=True)
class _FoundFiles:
    """Those of a list's files that are in a folder: their sizes, and the paths of those that it spells differently."""

    folder: Path
    roots: Sequence[Path]
    sizes: Mapping[str, int]
    spelled: Mapping[str, Path]


def _look_in(folder: Path, names: Sequence[str], roots: Sequence[Path]) -> _FoundFiles:
    """Raises InputError for a link that leaves ``roots`` and for what is no regular file."""
    sizes: dict[str, int] = {}
    spelled: dict[str, Path] = {}
    there: set[str] = set()
    with suppress(OSError):  # one listing spares a million questions for files that aren't there
        there = {_normalized(PurePosixPath(path.name)).partition("/")[0] for path in folder.iterdir()}
    for name in dict.fromkeys(names):
        if _normalized(PurePosixPath(name)).partition("/")[0] not in there:
            continue
        path = folder / name
        if not os.path.lexists(path) and not (name.isascii() and "\\" not in name):
            path = spelled[name] = find_file(folder, name) or path
        size = _size(path, roots)
        if size >= 0:
            sizes[name] = size
    return _FoundFiles(folder, roots, sizes, spelled)


def _roots(base: Path) -> tuple[Path, ...]:
    """Where files may be: in the folder itself, and for one in the Hub's cache also in the cache's folder of blobs."""
    base = base.resolve()
    snapshots = (path for path in (base, *base.parents) if path.parent.name == "snapshots")
    return base, *(path.parent.parent / "blobs" for path in snapshots)


def _check_inside(path: Path, roots: Sequence[Path]) -> None:
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(root) for root in roots):
        raise InputError(f"this is a link that leaves the folder, to {target}", where=str(path), hint=_ESCAPES)


def _size(path: Path, roots: Sequence[Path]) -> int:
    """The size of a file in bytes, -1 if there is none."""
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            _check_inside(path, roots)
            found = path.stat()
    except OSError:
        return -1
    if not stat.S_ISREG(found.st_mode):
        raise InputError("this is no plain file", where=str(path), hint=_ESCAPES)
    return found.st_size


# -- in a tar ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _TarFiles:
    """Files in an archive, in its order: ``places`` are their offsets and sizes. Rows without one come last."""

    archive: Path
    names: tuple[str, ...]
    fingerprint: str
    places: Sequence[tuple[int, int]]
    absent: int
    folder: PurePosixPath

    @property
    def sizes(self) -> Sequence[int]:
        there = [size for _, size in self.places]
        return there + [0] * (len(self.names) - len(there))

    @property
    def where(self) -> str:
        return f"{self.archive}: {self.folder}"

    def contents(self, rows: Sequence[int]) -> Contents:
        with _archive(self.archive) as stream:
            for row in rows:
                if row >= len(self.places):
                    yield _missing() if row < len(self.places) + self.absent else _repeated()
                    continue
                offset, size = self.places[row]
                if size > MAX_BYTES:
                    yield _too_large(size)
                    continue
                stream.seek(offset)
                yield stream.read(size)


def _in_tar(archive: Path) -> _TarFiles:
    lists: dict[PurePosixPath, bytes] = {}
    members: dict[str, tuple[int, int]] = {}
    with _archive(archive) as stream:
        for member in tar_members(stream):
            path = _safe_member(member, archive)
            if not member.isfile():
                continue
            members[_normalized(path)] = member.offset_data, member.size
            if path.parts[-2:] == _LIST.parts:
                lists[path] = _list_content(stream, member, archive)
        while stream.read(2**20):  # to the checksum at the end
            pass
    if len(lists) != 1:
        what = "several lists: " + ", ".join(map(str, lists)) if lists else f"there is no {_LIST}"
        raise InputError(f"not one set of tokenized data: {what}", where=str(archive))
    ((listing, content),) = lists.items()
    prefix, names = _parse_list(content, f"{archive}: {listing}")
    base = listing.parent.parent
    unique = dict.fromkeys(names)
    tried = [base, *(base / name for name in _beside_list(prefix))]

    def holding(folder: PurePosixPath) -> dict[str, tuple[int, int]]:
        return {name: members[key] for name in unique if (key := _normalized(folder / name)) in members}

    folder = max(tried, key=lambda each: len(holding(each)))
    places = holding(folder)
    if not places:
        raise _no_files_error(names, tried, f"{archive}: {listing}")
    ordered = sorted(places, key=places.__getitem__)
    absent = [name for name in unique if name not in places]
    names = [*ordered, *absent, *_repeats(names)]
    fingerprint = _fingerprint(names, {name: size for name, (_, size) in places.items()})
    return _TarFiles(archive, tuple(names), fingerprint, [places[name] for name in ordered], len(absent), folder)


def _normalized(path: PurePosixPath) -> str:
    """A path in one Unicode form, with slashes."""
    return unicodedata.normalize("NFC", str(path).replace("\\", "/"))


def _repeats(names: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _list_content(stream: IO[bytes], member: tarfile.TarInfo, archive: Path) -> bytes:
    if member.size > MAX_LIST_BYTES:
        raise InputError(f"this list has more than {MAX_LIST_BYTES:,} bytes", where=f"{archive}: {member.name}")
    stream.seek(member.offset_data)
    return stream.read(member.size)


def _safe_member(member: tarfile.TarInfo, archive: Path) -> PurePosixPath:
    """A member's path. Raises InputError if it leaves the folder, or is anything but a regular file or a folder."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        what = "its name leaves the folder"
    elif member.issym() or member.islnk():
        what = f"it is a link, to {member.linkname}"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        what = "it is neither a file nor a folder"
    else:
        return path
    raise InputError(f"the archive has an unsafe member {member.name!r}: {what}", where=str(archive), hint=_ESCAPES)


@contextmanager
def _archive(place: Path) -> Iterator[IO[bytes]]:
    """The content of a tar, decompressed on the fly; seeking backwards is slow then. Raises InputError for damage."""
    try:
        with place.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
    except (
        tarfile.TarError,
        EOFError,
        zlib.error,
        gzip.BadGzipFile,
        ValueError,
        LookupError,
        ArithmeticError,
    ) as error:
        raise InputError(f"this archive is damaged: {error}", where=str(place), hint="fetch it again") from None
