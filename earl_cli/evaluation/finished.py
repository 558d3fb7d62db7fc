"""Editors that draw nothing: pictures that somebody else made, and the source itself, the floor of every table."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earl_cli.errors import InputError
from earl_cli.evaluation.editors import Drawn, Editor, OnProgress, Task
from earl_cli.images.image_file import open_picture

AT_ONCE = 16
HASHED_BYTES = 256_000_000
EXTENSIONS = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".avif")
"""Of several pictures of one name the first one in this order is taken."""

_ODD = re.compile(r"[^\w.-]")


def open_finished(folder: Path) -> Editor:
    """The pictures in ``folder`` as an editor of the folder's name. Raises InputError if there is no such folder.

    A sample's picture is `<id>.<seed>.png`, or `<id>.png` for every seed; any of `EXTENSIONS` will do. In a file's
    name each character of the id that is no letter, digit, underscore, dot or hyphen may be an underscore instead,
    and a slash has to be: `a/b c` is `a_b_c.png` or `a_b c.png`. Folders within aren't looked into, nor links to
    another place.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.is_file())
        place = folder.resolve()
    except OSError as error:
        what = f"this folder of pictures can't be read: {error.strerror or error}"
        raise InputError(what, where=str(folder), hint="a picture's name is the sample's id, such as 17.png") from None
    inside = [file for file in files if file.resolve().parent.is_relative_to(place)]
    preferred = sorted(inside, key=lambda file: EXTENSIONS.index(file.suffix.lower()), reverse=True)
    return _Finished(place.name, tuple(inside), {_normal(file.stem): file for file in preferred})


def copy_editor() -> Editor:
    """The editor named `copy`, which gives each source back as it is."""
    return _Copy()


@dataclass(frozen=True, eq=False)
class _Finished:
    """``by_stem`` has the files by their names without the extension."""

    name: str
    files: tuple[Path, ...]
    by_stem: Mapping[str, Path]
    at_once: int = AT_ONCE

    def describe(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "kind": "finished",
            "pictures": len(self.files),
            "fingerprint": _fingerprint(self.files),
        }

    def edit(self, tasks: Sequence[Task], on_progress: OnProgress | None = None) -> list[Drawn]:
        return _each(self._found, tasks, on_progress)

    def _found(self, task: Task) -> Drawn:
        file = next((self.by_stem[stem] for stem in _stems(task) if stem in self.by_stem), None)
        if file is None:
            return Drawn(None, problem=f"there is no {task.id}.png, nor under another extension, in {self.name}")
        try:
            return Drawn(open_picture(file, name=file.name).rgb)
        except InputError as error:
            return Drawn(None, problem=str(error))


@dataclass(frozen=True, eq=False)
class _Copy:
    name: str = "copy"
    at_once: int = AT_ONCE

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "kind": "copy"}

    def edit(self, tasks: Sequence[Task], on_progress: OnProgress | None = None) -> list[Drawn]:
        return _each(lambda task: Drawn(task.picture), tasks, on_progress)


def _each(draw: Callable[[Task], Drawn], tasks: Sequence[Task], on_progress: OnProgress | None) -> list[Drawn]:
    drawn = []
    for task in tasks:
        drawn.append(draw(task))
        if on_progress is not None:
            on_progress(len(drawn) / len(tasks))
    return drawn


def _stems(task: Task) -> Iterator[str]:
    """Names that a task's picture may have, without the extension, best first."""
    name = _normal(task.id)
    names = (name, name.replace("/", "_"), _ODD.sub("_", name))
    yield from (f"{each}.{task.seed}" for each in names)
    yield from names


def _normal(name: str) -> str:
    """An accent is one character or two of them, as the file system likes it."""
    return unicodedata.normalize("NFC", name)


def _fingerprint(files: Sequence[Path]) -> str:
    """16 hexadecimal digits of all names and contents; above 256 MB in all, of sizes and times of change instead."""
    digest = hashlib.sha256()
    states = [file.stat() for file in files]
    whole = sum(state.st_size for state in states) < HASHED_BYTES
    for file, state in zip(files, states, strict=True):
        digest.update(f"{file.name}\0{state.st_size}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest() if whole else str(state.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
