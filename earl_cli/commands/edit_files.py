"""Which pictures an ``earl edit`` line names, what its instruction is, and where each result goes.

Nothing here opens a picture: words in the wrong order and results that may not be overwritten are found at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from earl_cli.errors import EarlError, InputError, OutputError, UsageError

EXAMPLE = 'earl edit photo.jpg "make it snowy"'
STREAM = "-"
MARK = ".edited"
WRITABLE = frozenset((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"))
READABLE = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pnm", ".qoi", ".ico", ".pcx")
PICTURE_SUFFIXES = WRITABLE.union(READABLE)
EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass(frozen=True)
class Source:
    """A picture to edit: a file, or the standard input where ``path`` is None."""

    path: Path | None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path) if self.path else "stdin"


@dataclass(frozen=True)
class Failed:
    """An input that could not be edited, and why."""

    name: str
    error: EarlError


def split_words(words: Sequence[str]) -> tuple[list[str], str]:
    """The words of the command line as (pictures, instruction). UsageError names the mistake in anything else."""
    if not words:
        raise UsageError("no picture and no instruction", hint=EXAMPLE)
    *pictures, instruction = words
    if not instruction.strip():
        raise UsageError("the instruction is empty", hint=EXAMPLE)
    if not pictures:
        if _names_picture(instruction) or _kind(instruction) == "folder":
            raise UsageError("the instruction is missing", where=instruction, hint=EXAMPLE)
        raise UsageError(f'no picture for "{_short(instruction)}"', hint=EXAMPLE)
    if _names_picture(instruction):
        if _names_picture(pictures[0]) or _kind(pictures[0]) == "folder":
            raise UsageError("the instruction is missing: the last word is a picture", where=instruction, hint=EXAMPLE)
        raise UsageError("the instruction comes last, after the pictures", where=_short(pictures[0]), hint=EXAMPLE)
    bare = [index for index, word in enumerate(pictures) if index and _is_bare_word(word)]
    if bare and _names_picture(pictures[0]):
        whole = " ".join([*pictures[bare[0] :], instruction])
        raise UsageError("the instruction is several words", where=_short(whole), hint=f"put it in quotes: {EXAMPLE}")
    return pictures, instruction.strip()


def find_sources(names: Sequence[str]) -> tuple[list[Source], list[Failed]]:
    """The pictures that files, folders, globs and ``-`` stand for, each once, in order; and the names without any."""
    if list(names).count(STREAM) > 1:
        raise UsageError("the standard input can be edited only once", where=STREAM)
    sources: dict[Path | None, Source] = {}
    failed: list[Failed] = []
    for name in names:
        if name == STREAM:
            sources[None] = Source(None)
            continue
        try:
            for path in _expand(name):
                sources.setdefault(path.absolute(), Source(path))
        except EarlError as error:
            failed.append(Failed(name, error))
    return list(sources.values()), failed


def _expand(name: str) -> list[Path]:
    """One word of the line as paths. A file that isn't there is kept: opening it says so."""
    path = Path(name)
    kind = _kind(name)
    try:
        if kind == "folder":
            found = [entry for entry in path.iterdir() if _is_picture(entry) and not _is_result(entry)]
            missing = "no pictures in this folder"
        elif kind is None and set(name) & set("*?["):
            root = Path(path.anchor)
            found = [entry for entry in root.glob(str(path.relative_to(root))) if _is_picture(entry)]
            missing = "no picture matches"
        else:
            return [path]
    except (OSError, ValueError) as error:
        raise InputError(getattr(error, "strerror", None) or str(error), where=name) from error
    if not found:
        raise InputError(missing, where=name)
    return sorted(found)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_result(path: Path) -> bool:
    """Whether an earlier run wrote it, by its name: a folder can be edited again without editing the edits."""
    return any(part == MARK or part.startswith(f"{MARK}-") for part in path.suffixes)


@dataclass
class Targets:
    """Chooses the names of one run's results; what it has given out once, it doesn't give again.

    ``output`` is a file, a folder (it exists, ends in a slash, or there are several pictures), ``-``, or None: beside
    the original. A name chosen here is the next free one; a name the person chose must be free, unless ``force``.
    """

    output: str | None
    force: bool
    several: bool
    given: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.output is not None and not self.output.strip():
            raise UsageError("the name is empty", where="-o")
        path = self._chosen
        if path is None:
            return
        if path.suffix.lower() not in WRITABLE:
            raise UsageError("the name needs .png, .jpg or .webp", where=f"-o {path}", hint="a folder's name ends in /")
        if not path.parent.is_dir():
            raise OutputError("there is no such folder", where=str(path.parent))
        self._refuse_existing(path)

    @property
    def is_folder(self) -> bool:
        """Whether ``-o`` names a folder."""
        if self.output is None or self.output == STREAM:
            return False
        no_picture = Path(self.output).suffix.lower() not in PICTURE_SUFFIXES
        return _kind(self.output) == "folder" or self.output.endswith("/") or (self.several and no_picture)

    def to_stdout(self, sources: Sequence[Source], pictures: int) -> bool:
        """Whether the one result goes to stdout. UsageError where there is more than one, or stdout is a terminal."""
        piped = self.output is None and len(sources) == 1 and sources[0].path is None
        if not piped and self.output != STREAM:
            if self._chosen is not None and len(sources) > 1:
                raise UsageError("one name for several pictures", where=f"-o {self.output}", hint="-o FOLDER/")
            return False
        if len(sources) > 1 or pictures > 1:
            raise UsageError("stdout takes one picture", where="-o -", hint="-n 1, or --grid, or -o FILE")
        if sys.stdout.isatty():
            raise UsageError("a picture can't be shown on a terminal", where="stdout", hint="-o FILE, or pipe it on")
        return True

    def path(self, source: Source, kind: str) -> Path:
        """Where the next result of ``source`` goes. ``kind`` is its format where the name is chosen here."""
        if self._chosen is not None:
            return self._give(self._chosen)
        folder = Path(self.output) if self.output else source.path.parent if source.path else Path()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"this can't be a folder: {error.strerror}", where=str(folder)) from error
        stem, suffix = (source.path.stem, source.path.suffix) if source.path else ("stdin", "")
        if suffix.lower() not in WRITABLE:
            suffix = EXTENSIONS.get(kind, ".png")
        return self._give(folder / f"{stem}{MARK}{suffix}")

    def beside(self, result: Path, mark: str) -> Path:
        """Where a further picture about ``result`` goes: photo.edited.compare.jpg for photo.edited.jpg."""
        return self._give(result.with_name(f"{result.stem}.{mark}{result.suffix}"))

    @property
    def _chosen(self) -> Path | None:
        """The file that the person named."""
        return None if self.output is None or self.output == STREAM or self.is_folder else Path(self.output)

    def _give(self, wanted: Path) -> Path:
        path = next(each for each in _numbered(wanted) if each not in self.given and self._may_use(each))
        self.given.add(path)
        return path

    def _may_use(self, path: Path) -> bool:
        if self._chosen is not None:
            self._refuse_existing(path)
            return True
        return self.force or not (path.exists() or path.is_symlink())

    def _refuse_existing(self, path: Path) -> None:
        if path.is_dir():
            raise OutputError("this is a folder", where=str(path))
        if path.is_file() and not self.force:
            raise OutputError("the file exists already", where=str(path), hint="--force overwrites it")


def _numbered(path: Path) -> Iterator[Path]:
    """photo.edited.jpg, photo.edited-2.jpg, photo.edited-3.jpg, …"""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def _kind(name: str) -> str | None:
    """ "file", "folder", or None for what isn't there (or can't be a path, as a long instruction)."""
    try:
        path = Path(name)
        return "folder" if path.is_dir() else "file" if path.exists() else None
    except (OSError, ValueError):
        return None


def _names_picture(word: str) -> bool:
    if word == STREAM or _kind(word) == "file":
        return True
    return Path(word).suffix.lower() in PICTURE_SUFFIXES or (word.endswith("/") and _kind(word) == "folder")


def _is_bare_word(word: str) -> bool:
    return word != STREAM and _kind(word) is None and not set(word) & set("./\\*?[")


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
