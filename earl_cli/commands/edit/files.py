"""The images and the instruction of an ``earl edit`` command line.

No image is decoded here: words in the wrong order, and words that can't name an image, are refused at once. Files in a
folder that have no extension of an image are recognized by their first bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from earl_cli.console import console, listed, shortened
from earl_cli.errors import EarlError, InputError, UsageError

if TYPE_CHECKING:
    from earl_cli.images.kinds import FileKind

EXAMPLE = 'earl edit photo.jpg "make it snowy"'
STREAM = "-"
MARK = ".edited"
WRITABLE = frozenset((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"))
READABLE = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pnm", ".qoi", ".ico", ".pcx")
# Camera and program formats that may need another program; the error when one is opened names it.
FOREIGN = (".heic", ".heif", ".hif", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2")
IMAGE_SUFFIXES = WRITABLE.union(READABLE, FOREIGN)
OTHERS_SHOWN = 3
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)
_RESULT = re.compile(rf"(?P<photo>.+){re.escape(MARK)}(?:-\d+)?(?:\.(?:grid|compare)(?:-\d+)?)?\.\w+")


@dataclass(frozen=True)
class InputFile:
    """An image to edit: a file, or the standard input where ``path`` is None."""

    path: Path | None

    @property
    def name(self) -> str:
        """Its name in messages."""
        return str(self.path) if self.path else "stdin"

    @property
    def is_stream(self) -> bool:
        """Whether it is a pipe or a device, as from <(…), which has no folder for results."""
        return self.path is not None and self.path.exists() and not self.path.is_file()


@dataclass(frozen=True)
class Failed:
    """An input that could not be edited, and its error."""

    name: str
    error: EarlError


@dataclass(frozen=True)
class ExpandedLine:
    """The images that a command line names, each once, in order; ``failed`` are the words that name none.

    ``earlier`` are results of earlier runs that were left out.
    """

    sources: list[InputFile]
    failed: list[Failed]
    earlier: list[Path]


def split_words(words: Sequence[str]) -> tuple[list[str], str]:
    """The words of the command line as (images, instruction). Raises UsageError that names the mistake."""
    from earl_cli.models.abilities import MAX_INSTRUCTION

    if not words:
        raise UsageError("no image and no instruction", hint=EXAMPLE)
    *images, instruction = words
    if not instruction.strip():
        raise UsageError("the instruction is empty", hint=EXAMPLE)
    if not images:
        if _names_image(instruction) or kind_of(instruction) == "folder":
            raise UsageError("the instruction is missing", where=instruction, hint=EXAMPLE)
        raise UsageError(f'no image for "{shortened(instruction)}"', hint=EXAMPLE)
    if _names_image(instruction):
        if _names_image(images[0]) or kind_of(images[0]) == "folder":
            raise UsageError("the instruction is missing: the last word is an image", where=instruction, hint=EXAMPLE)
        raise UsageError("the instruction comes last, after the images", where=shortened(images[0]), hint=EXAMPLE)
    _check_words(images, instruction)
    if len(instruction) > MAX_INSTRUCTION:
        what = f"the instruction has {len(instruction):,} characters, more than {MAX_INSTRUCTION:,}"
        raise UsageError(what, where=shortened(instruction))
    return images, instruction.strip()


def _check_words(images: Sequence[str], instruction: str) -> None:
    """Raise UsageError where the words before the last are a URL, or an instruction without its quotes."""
    for word in images:
        if _URL.match(word) and not _is_local(word) and kind_of(word) is None:
            hint = "download it first; earl edit takes files"
            raise UsageError("this is a URL, not a file", where=shortened(word), hint=hint)
    bare = [index for index, word in enumerate(images) if _is_bare_word(word)]
    unquoted = len(bare) == len(images) and " " not in instruction.strip()
    if not unquoted and not (bare and _names_image(images[0])):
        return
    whole = shortened(" ".join([*images[bare[0] :], instruction]))
    hint = f"put it in quotes: {EXAMPLE}"
    if unquoted:
        raise UsageError(f'no image, only words: "{whole}"', hint=f"name an image; {hint}")
    raise UsageError("the instruction is several words", where=whole, hint=hint)


def find_sources(names: Sequence[str]) -> ExpandedLine:
    """The images that files, folders, globs and ``-`` stand for.

    Results of earlier runs are left out of folders and globs, and of a list of files that also names their photo: a
    shell expands a glob into such a list.
    """
    if list(names).count(STREAM) > 1:
        raise UsageError("the standard input can be edited only once", where=STREAM)
    sources: dict[Path | None, InputFile] = {}
    failed: list[Failed] = []
    earlier: list[Path] = []
    for name in names:
        if name == STREAM:
            sources[None] = InputFile(None)
            continue
        try:
            for path in _expand(name, earlier):
                sources.setdefault(path.absolute(), InputFile(path))
        except EarlError as error:
            failed.append(Failed(name, error))
    photos = {path.with_suffix("") for path in sources if path}
    for path in [path for path in sources if path]:
        if (result := _RESULT.fullmatch(path.name)) and path.with_name(result["photo"]) in photos:
            earlier.append(Path(sources.pop(path).name))
    return ExpandedLine(list(sources.values()), failed, list(dict.fromkeys(earlier)))


def _expand(name: str, earlier: list[Path]) -> list[Path]:
    """One word of the command line as paths. A missing file is kept, as opening it gives the error.

    Results of earlier runs go to ``earlier``, unless the word names one.
    """
    kind = kind_of(name)
    try:
        path = _on_disk(name)
        if kind == "folder":
            found = _photos(name, path.iterdir())
            missing = "no images in this folder"
        elif kind is None and set(name) & set("*?["):
            found = _photos(name, _matching(Path(name)))
            missing = "no image matches"
        else:
            return [path]
    except (OSError, ValueError) as error:
        raise InputError(getattr(error, "strerror", None) or str(error), where=name) from error
    if found and kind is None and MARK in path.name:
        return sorted(found)
    photos = sorted(entry for entry in found if not _RESULT.fullmatch(entry.name))
    earlier += sorted(set(found).difference(photos))
    if not photos:
        results = " but results of earlier runs" if found else ""
        raise InputError(missing + results, where=name, hint="name one to edit it again" if found else None)
    return photos


def _matching(pattern: Path) -> list[Path]:
    """What a glob matches, in every Unicode normal form that names on the disk may have."""
    root, rest = Path(pattern.anchor), str(pattern.relative_to(pattern.anchor))
    forms = dict.fromkeys([rest, normalize("NFC", rest), normalize("NFD", rest)])
    return list(dict.fromkeys(entry for form in forms for entry in root.glob(form)))


def _photos(name: str, entries: Iterable[Path]) -> list[Path]:
    """The images among files: by extension, else by content. Videos and other known formats are noted as left out."""
    found, others = [], []
    for path in entries:
        if path.name.startswith(".") or not path.is_file():
            continue
        kind = None if path.suffix.lower() in IMAGE_SUFFIXES else _foreign_kind(path)
        if path.suffix.lower() in IMAGE_SUFFIXES or (kind is not None and kind.is_photo):
            found.append(path)
        elif kind is not None:
            others.append(f"{path.name} ({kind.name})")
    if others:
        console.note(f"{name}: left out: {listed(sorted(others), OTHERS_SHOWN)}")
    return found


def _foreign_kind(path: Path) -> FileKind | None:
    from earl_cli.images.kinds import unsupported_kind

    try:
        with path.open("rb") as file:
            return unsupported_kind(file)
    except OSError:
        return None


def kind_of(name: str) -> str | None:
    """ "file", "folder", or None for what doesn't exist (or can't be a path, such as a long instruction)."""
    try:
        path = _on_disk(name)
        return "folder" if path.is_dir() else "file" if path.exists() else None
    except (OSError, ValueError):
        return None


def _on_disk(name: str) -> Path:
    """The path of a name, which may be a file: URL, in the Unicode normal form that it has on the disk."""
    path = Path(unquote(urlsplit(name).path)) if _is_local(name) else Path(name)
    if name.isascii() or path.exists():
        return path
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        inside = found / part
        if not inside.exists() and found.is_dir():
            wanted = normalize("NFC", part)
            inside = next((each for each in found.iterdir() if normalize("NFC", each.name) == wanted), inside)
        found = inside
    return found


def _is_local(word: str) -> bool:
    return word.lower().startswith(("file:///", "file://localhost/"))


def _names_image(word: str) -> bool:
    if word == STREAM or kind_of(word) == "file":
        return True
    return Path(word).suffix.lower() in IMAGE_SUFFIXES or (word.endswith("/") and kind_of(word) == "folder")


def _is_bare_word(word: str) -> bool:
    return word != STREAM and kind_of(word) is None and not set(word) & set("./\\*?[")
