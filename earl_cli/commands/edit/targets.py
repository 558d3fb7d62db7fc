"""The output path of each result of ``earl edit``.

A path is reserved when it is chosen, by an empty file that only one process can create; a path that can't be written is
so found before anything is sampled.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from earl_cli.commands.edit.files import IMAGE_SUFFIXES, MARK, STREAM, WRITABLE, InputFile, kind_of
from earl_cli.console import is_closed
from earl_cli.errors import OutputError, UsageError

EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass
class Targets:
    """Chooses the output paths of one run, each only once.

    ``output`` is a file, a folder (it exists, ends in a slash, or there are several images), ``-``, or None: beside
    the original. Names chosen here are the next free ones; a file named by the user must not exist, unless ``force``.
    As a context manager, it removes the empty files of reserved paths that got no result.
    """

    output: str | None
    force: bool
    several: bool
    _reserved: set[Path] = field(default_factory=set, init=False)
    _held: dict[Path, tuple[int, int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.output is not None and not self.output.strip():
            raise UsageError("the name is empty", where="-o")
        path = self.chosen
        if path is not None and path.suffix.lower() not in WRITABLE:
            raise UsageError("the name needs .png, .jpg or .webp", where=f"-o {path}", hint="a folder's name ends in /")
        if path is not None:
            self._check_file(path)
        elif self.is_folder:
            _check_folder(Path(str(self.output)))

    def __enter__(self) -> Targets:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._held:
            if self._holds(path):
                path.unlink(missing_ok=True)

    @property
    def is_folder(self) -> bool:
        """Whether ``-o`` names a folder."""
        if self.output is None or self.output == STREAM:
            return False
        no_image = Path(self.output).suffix.lower() not in IMAGE_SUFFIXES
        return kind_of(self.output) == "folder" or self.output.endswith("/") or (self.several and no_image)

    def to_stdout(self, sources: Sequence[InputFile], images: int) -> bool:
        """Whether the result goes to stdout. Raises UsageError for more than one result, and for a terminal."""
        piped = self.output is None and len(sources) == 1 and sources[0].path is None
        if not piped and self.output != STREAM:
            if self.chosen is not None and len(sources) > 1:
                raise UsageError("one name for several images", where=f"-o {self.output}", hint="-o FOLDER/")
            return False
        if len(sources) > 1 or images > 1:
            raise UsageError("stdout takes one image", where="-o -", hint="-n 1, or --grid, or -o FILE")
        if sys.stdout.isatty():
            raise UsageError("an image can't be shown on a terminal", where="stdout", hint="-o FILE, or pipe it on")
        if is_closed(sys.stdout):
            raise OutputError("it is closed", where="stdout", hint="-o FILE")
        return True

    def path(self, source: InputFile, kind: str) -> Path:
        """The path of the next result of ``source``; ``kind`` is the format where the name is chosen here.

        Raises OutputError where nothing can be written.
        """
        if self.chosen is not None:
            return self._allot(self.chosen, source)
        if source.is_stream and self.output is None:
            raise OutputError("it has no folder for the edit", where=source.name, hint="say where to: -o FILE")
        folder = Path(self.output) if self.output else source.path.parent if source.path else Path()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"this can't be a folder: {error.strerror}", where=str(folder)) from error
        stem, suffix = (source.path.stem, source.path.suffix) if source.path else ("stdin", "")
        if suffix.lower() not in WRITABLE:
            suffix = EXTENSIONS.get(kind, ".png")
        return self._allot(folder / f"{stem}{MARK}{suffix}", source)

    def beside(self, result: Path, mark: str, source: InputFile) -> Path:
        """The path of a further image beside ``result``: photo.edited.compare.jpg for photo.edited.jpg."""
        return self._allot(result.with_name(f"{result.stem}.{mark}{result.suffix}"), source)

    def still(self, path: Path, source: InputFile) -> Path:
        """``path``, or the next free one if another program has written to ``path`` since it was reserved."""
        if path not in self._held or self._holds(path):
            return path
        return self._next(path, source)

    @property
    def chosen(self) -> Path | None:
        """The file that the user named, if any."""
        return None if self.output is None or self.output == STREAM or self.is_folder else Path(self.output)

    def _allot(self, wanted: Path, source: InputFile) -> Path:
        if self.chosen is None:
            return self._next(wanted, source)
        path = next(self._unused(wanted))
        if not self._reserve(path, source):
            raise _exists(path)
        return path

    def _next(self, wanted: Path, source: InputFile) -> Path:
        return next(each for each in self._unused(wanted) if self._reserve(each, source))

    def _unused(self, path: Path) -> Iterator[Path]:
        """photo.edited.jpg, photo.edited-2.jpg, photo.edited-3.jpg, …, without those that are reserved."""
        names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
        return (each for each in itertools.chain([path], names) if each not in self._reserved)

    def _reserve(self, path: Path, source: InputFile) -> bool:
        """Reserve the path; False if it exists. Raises OutputError if nothing can be written there."""
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _permissions(source))
        except FileExistsError:
            if not self._may_replace(path):
                return False
        except OSError as error:
            raise self._unwritable(path, error.strerror) from error
        else:
            status = os.fstat(file)
            os.close(file)
            self._held[path] = (status.st_dev, status.st_ino)
        self._reserved.add(path)
        return True

    def _may_replace(self, path: Path) -> bool:
        """Whether this run may overwrite what exists. Raises OutputError if it may but can't."""
        if path.exists() and not path.is_file():
            return self.chosen is not None and not path.is_dir()  # a pipe or a device
        if not self.force:
            return False
        if path.exists() and not os.access(path, os.W_OK):
            raise self._unwritable(path, "it is write-protected")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise self._unwritable(path, "no permission to write into its folder")
        return True

    def _holds(self, path: Path) -> bool:
        """Whether the empty file that reserves the path is still there."""
        try:
            status = path.lstat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._held[path] and status.st_size == 0

    def _check_file(self, path: Path) -> None:
        try:
            if not path.parent.is_dir():
                raise OutputError("there is no such folder", where=str(path.parent))
            if (path.is_symlink() or path.exists()) and not self._may_replace(path):
                raise _exists(path)
        except OSError as error:
            raise self._unwritable(path, error.strerror) from error

    def _unwritable(self, path: Path, why: str | None) -> OutputError:
        elsewhere = "-o FILE or -o FOLDER/ puts the edit elsewhere" if self.output is None else None
        return OutputError(f"this can't be written: {why}", where=str(path), hint=elsewhere)


def _exists(path: Path) -> OutputError:
    return OutputError("the file exists already", where=str(path), hint="--force overwrites it")


def _check_folder(folder: Path) -> None:
    there = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise OutputError("this is a file, not a folder", where=str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError("there is no permission to write into this folder", where=str(there))


def _permissions(source: InputFile) -> int:
    """Permissions of a new file: the usual ones that the photo has as well."""
    usual = 0o666
    try:
        own = usual if source.path is None or source.is_stream else source.path.stat().st_mode
    except OSError:  # deleted since it was opened
        own = usual
    return usual & (own | 0o200)
