"""What a source of rows is: rows that can be read from any one on; and which split of a data set is meant."""

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

CellKind = Literal["picture", "text", "other", "unknown"]
"""What a column holds, by its type; a string may be a text as well as a picture's path: unknown."""


@dataclass(frozen=True)
class Row:
    """A row as it is stored: column to value. ``where`` names it for people; ``number`` counts from 0."""

    number: int
    where: str
    values: Mapping[str, Any]


class BadRowError(EarlError):
    """A row that can't be used; ``kind`` is the sort of fault that counts are kept of."""

    exit_code = 3

    def __init__(self, kind: str, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.kind = kind


LFS_POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched: a cloned repository without its data."""
LFS_MESSAGE, LFS_HINT = (
    "Git LFS has not fetched this file, only its address is here",
    "run git lfs pull in its repository",
)


class Source(Protocol):
    """Rows in a fixed order.

    ``bounds`` int64[blocks + 1] says which rows are cheap to read together: block b holds bounds[b] to bounds[b + 1].
    ``columns`` are those that any row has; one within another is called ``outer.inner``. ``fingerprint`` changes when
    the rows do. ``base`` is the folder that paths of pictures count from, None where such paths are not followed.
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
        """The rows of these ascending numbers, in that order; of each only ``columns``. They are of one block, or
        of any blocks that have one row each.

        A row that is damaged comes as an error in its place. Raises EarlError if the source itself fails.
        """
        ...


def check_no_lfs_pointer(file: str | Path) -> None:
    """Raise InputError if there is only what stands for the file in a repository whose data Git LFS has not fetched."""
    with suppress(OSError), Path(file).open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(LFS_MESSAGE, where=str(file), hint=LFS_HINT)


def row_count(source: Source) -> int:
    return int(source.bounds[-1])


def select_columns(values: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Of a row's values those of ``columns`` that it has; ``outer.inner`` is looked for within ``outer``."""
    found = {}
    for name in columns:
        there, value = _within(values, name)
        if there:
            found[name] = value
    return found


def _within(values: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    if name in values:
        return True, values[name]
    for outer, inner in nested_splits(name):
        nested = values.get(outer)
        if isinstance(nested, Mapping):
            there, value = _within(nested, inner)
            if there:
                return True, value
    return False, None


def nested_splits(name: str) -> Iterator[tuple[str, str]]:
    """The ways to read ``a.b.c`` as something within something: ``b.c`` in ``a``, ``c`` in ``a.b``."""
    for place, letter in enumerate(name):
        if letter == ".":
            yield name[:place], name[place + 1 :]


def names_below_common_folder(files: Sequence[str]) -> list[str]:
    """The paths of ``files`` below the folder that all have in common, so that a/1.tar is not b/1.tar."""
    parts = [file.split("/") for file in files]
    folders = zip(*(each[:-1] for each in parts), strict=False)
    common = len(list(takewhile(lambda level: len(set(level)) == 1, folders)))
    return ["/".join(each[common:]) for each in parts]


ALL_SPLITS = "all"
_SPLIT_ALIASES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
SPLITS = tuple(name for names in _SPLIT_ALIASES for name in names)


def same_split(one: str, other: str) -> bool:
    """Whether two names mean the same split."""
    return one == other or any({one, other} <= set(names) for names in _SPLIT_ALIASES)


def match_split(wanted: str, there: Sequence[str]) -> str | None:
    """The one of ``there`` that ``wanted`` means, None if there is none, or several under other names."""
    found = [name for name in there if same_split(name.lower(), wanted.lower())]
    return wanted if wanted in there else found[0] if len(found) == 1 else None


def choose_split(there: Sequence[str], wanted: str | None, where: str) -> str:
    """Raises UsageError, with the splits that are there, if none of them is meant."""
    if wanted is None and len(there) == 1:
        return there[0]
    chosen = match_split(wanted, there) if wanted else None
    if chosen is None:
        what = f"there is no split {wanted!r}" if wanted else "the data set has several splits"
        raise UsageError(what, where=where, hint=f"--split is one of {', '.join(there)}, or {ALL_SPLITS}")
    return chosen


def choose_files(
    files: Sequence[PurePath], split: str | None, subset: str | None, *, where: str, by_patterns: bool
) -> list[PurePath]:
    """Of the files (paths within a folder) those of a split and a configuration.

    Raises UsageError, with what there is, where these aren't there or aren't clear; files that were chosen by patterns
    may be of several.
    """
    found = _of_subset(files, subset, where)
    if split == ALL_SPLITS or (split is None and by_patterns):
        return found
    found = _of_split(found, split, where)
    configurations = sorted({_configuration(file) for file in found if split_of(file)})
    if len(configurations) > 1 and subset is None and not by_patterns:
        what = f"there are files of several configurations: {listed(configurations)}"
        raise UsageError(what, where=where, hint="name one with --subset, or give its path")
    return found


def split_of(file: PurePath) -> str | None:
    """The split that the nearest folder is named after, else the file; None if neither says one clearly."""
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
        there = listed(sorted({_configuration(file) for file in files} - {"."}))
        raise UsageError(f"there is no folder {subset!r} with data", where=where, hint=f"there are {there or 'none'}")
    return found


def _configuration(file: PurePath) -> str:
    """The folder above the one that names a split; that of the file where its own name does."""
    folders = (folder for folder in file.parents if folder.parts and _split_in(folder.name))
    return next((folder.parent for folder in folders), file.parent).as_posix()


def _of_split(files: Sequence[PurePath], split: str | None, where: str) -> list[PurePath]:
    splits = {file: split_of(file) for file in files}
    there = [name for name in SPLITS if name in splits.values()]
    if split is not None:
        chosen = match_split(split, there)
        found = [file for file in files if splits[file] == chosen] if chosen else _named_with(files, split)
        if not found:
            splits_there = f"the splits are {', '.join(there)}" if there else "no file or folder is named as a split"
            hint = f"{splits_there}; the files are {listed(files)}"
            raise UsageError(f"there is no split {split!r}", where=where, hint=hint)
        return found
    without = [file for file in files if splits[file] is None]
    if len(there) > 1 or (there and without):
        what = f"there are files of several splits: {', '.join(there)}"
        what += f", and of none: {listed(without)}" if without else ""
        raise UsageError(
            what, where=where, hint=f"name one with --split ({ALL_SPLITS} takes every file), or give its path"
        )
    return list(files)


def _named_with(files: Sequence[PurePath], split: str) -> list[PurePath]:
    """Those with a word of one's own in their names: ``--split counting`` of counting-00001.parquet."""
    word = re.compile(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])")
    return [] if split.lower() in SPLITS else [file for file in files if word.search(file.as_posix().lower())]
