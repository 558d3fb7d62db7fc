"""What a source of rows is, with random access to its rows; and how the split of a data set is chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from earl_cli.console import listed
from earl_cli.errors import EarlError, InputError, UsageError

CellKind = Literal["image", "text", "other", "unknown"]
"""What a column holds, by its type. Strings are unknown: they may be texts or paths of images."""
LFS_POINTER = b"version https://git-lfs"
"""The start of a file that Git LFS has not fetched."""
LFS_MESSAGE, LFS_HINT = (
    "this is only a pointer of Git LFS, whose file was not fetched",
    "run git lfs pull in its repository",
)
ALL_SPLITS = "all"
_SPLIT_ALIASES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
SPLITS = tuple(name for names in _SPLIT_ALIASES for name in names)


@dataclass(frozen=True)
class Row:
    """A row as it is stored: column to value. ``where`` names it in messages; ``number`` counts from 0."""

    number: int
    where: str
    values: Mapping[str, Any]


class BadRowError(EarlError):
    """A row that can't be used; ``kind`` classifies the fault, for counts."""

    exit_code = 3

    def __init__(self, kind: str, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.kind = kind


class Source(Protocol):
    """Rows in a fixed order.

    ``bounds`` int64[blocks + 1] divide the rows into blocks that are cheap to read together. ``columns`` are those of
    any row; one within another is called ``outer.inner``. ``fingerprint`` changes with the rows. ``base`` is the folder
    that relative paths of images start from, None where paths aren't followed.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, CellKind]: ...

    @property
    def bounds(self) -> NDArray[np.int64]: ...

    @property
    def base(self) -> str | None: ...

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """The rows with these ascending numbers, in that order, with only these ``columns``. They are of one block, or
        of any blocks of one row each.

        A damaged row is an error in its place. Raises EarlError if the source itself fails.
        """
        ...


def check_no_lfs_pointer(file: str | Path) -> None:
    """Raise InputError if the file is only a pointer of Git LFS, in a repository whose data were not fetched."""
    with suppress(OSError), Path(file).open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(LFS_MESSAGE, where=str(file), hint=LFS_HINT)


def row_count(source: Source) -> int:
    return int(source.bounds[-1])


def select_columns(values: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Those of ``columns`` that a row has; ``outer.inner`` is looked up within ``outer``."""
    found = {}
    for name in columns:
        exists, value = _within(values, name)
        if exists:
            found[name] = value
    return found


def _within(values: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    if name in values:
        return True, values[name]
    for outer, inner in nested_splits(name):
        nested = values.get(outer)
        if isinstance(nested, Mapping):
            exists, value = _within(nested, inner)
            if exists:
                return True, value
    return False, None


def nested_splits(name: str) -> Iterator[tuple[str, str]]:
    """The ways to read ``a.b.c`` as a nested column: ``b.c`` in ``a``, ``c`` in ``a.b``."""
    for place, letter in enumerate(name):
        if letter == ".":
            yield name[:place], name[place + 1 :]


def names_below_common_folder(files: Sequence[str]) -> list[str]:
    """The paths of ``files`` relative to their deepest common folder, so that a/1.tar differs from b/1.tar."""
    parts = [file.split("/") for file in files]
    folders = zip(*(each[:-1] for each in parts), strict=False)
    common = len(list(takewhile(lambda level: len(set(level)) == 1, folders)))
    return ["/".join(each[common:]) for each in parts]


def same_split(one: str, other: str) -> bool:
    """Whether two names mean the same split."""
    return one == other or any({one, other} <= set(names) for names in _SPLIT_ALIASES)


def match_split(wanted: str, available: Sequence[str]) -> str | None:
    """The one of ``available`` that ``wanted`` means; None if there is none, or several under other names."""
    found = [name for name in available if same_split(name.lower(), wanted.lower())]
    return wanted if wanted in available else found[0] if len(found) == 1 else None


def choose_split(available: Sequence[str], wanted: str | None, where: str) -> str:
    """The split that is wanted, or the only one. Raises UsageError that lists the splits."""
    if wanted is None and len(available) == 1:
        return available[0]
    chosen = match_split(wanted, available) if wanted else None
    if chosen is None:
        what = f"there is no split {wanted!r}" if wanted else "the data set has several splits"
        raise UsageError(what, where=where, hint=f"--split is one of {', '.join(available)}, or {ALL_SPLITS}")
    return chosen


def choose_files(
    files: Sequence[PurePath], split: str | None, subset: str | None, *, where: str, by_patterns: bool
) -> list[PurePath]:
    """The files (paths within a folder) of a split and a configuration.

    Raises UsageError, listing what there is, if there are none or the choice is ambiguous; files that were chosen by
    patterns may be of several splits.
    """
    chosen = _of_subset(files, subset, where)
    if split == ALL_SPLITS or (split is None and by_patterns):
        return chosen
    chosen = _of_split(chosen, split, where)
    configurations = sorted({_configuration(file) for file in chosen if split_of(file)})
    if len(configurations) > 1 and subset is None and not by_patterns:
        what = f"there are files of several configurations: {listed(configurations)}"
        raise UsageError(what, where=where, hint="name one with --subset, or give its path")
    return chosen


def split_of(file: PurePath) -> str | None:
    """The split that the nearest folder is named after, else the file; None if there is none, or several."""
    names = (*reversed(file.parent.parts), file.name)
    return next((split for name in names if (split := _split_in(name)) is not None), None)


def _split_in(name: str) -> str | None:
    words = set(re.findall("[a-z]+", name.lower())) & set(SPLITS)
    return words.pop() if len(words) == 1 else None


def _of_subset(files: Sequence[PurePath], subset: str | None, where: str) -> list[PurePath]:
    if subset is None:
        return list(files)
    found = [file for file in files if subset in (_configuration(file), *file.parent.parts)]
    if not found:
        available = listed(sorted({_configuration(file) for file in files} - {"."}))
        raise UsageError(
            f"there is no folder {subset!r} with data", where=where, hint=f"there are {available or 'none'}"
        )
    return found


def _configuration(file: PurePath) -> str:
    """The folder above the one that names a split; the file's own folder if its name does."""
    folders = (folder for folder in file.parents if folder.parts and _split_in(folder.name))
    return next((folder.parent for folder in folders), file.parent).as_posix()


def _of_split(files: Sequence[PurePath], split: str | None, where: str) -> list[PurePath]:
    splits = {file: split_of(file) for file in files}
    available = [name for name in SPLITS if name in splits.values()]
    if split is not None:
        chosen = match_split(split, available)
        found = [file for file in files if splits[file] == chosen] if chosen else _named_with(files, split)
        if not found:
            splits_named = (
                f"the splits are {', '.join(available)}" if available else "no file or folder is named as a split"
            )
            hint = f"{splits_named}; the files are {listed(files)}"
            raise UsageError(f"there is no split {split!r}", where=where, hint=hint)
        return found
    without = [file for file in files if splits[file] is None]
    if len(available) > 1 or (available and without):
        what = f"there are files of several splits: {', '.join(available)}"
        what += f", and of none: {listed(without)}" if without else ""
        raise UsageError(
            what, where=where, hint=f"name one with --split ({ALL_SPLITS} takes every file), or give its path"
        )
    return list(files)


def _named_with(files: Sequence[PurePath], split: str) -> list[PurePath]:
    """Files with this word in their names: ``--split counting`` of counting-00001.parquet."""
    word = re.compile(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])")
    return [] if split.lower() in SPLITS else [file for file in files if word.search(file.as_posix().lower())]
