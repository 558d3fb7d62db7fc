"""Which split is meant, and which files are of it by the names of folders and files: train/0.parquet, train-0.csv."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from earl_cli.console import listed
from earl_cli.errors import UsageError

ALL = "all"
_SAME = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval", "evaluation"))
SPLITS = tuple(name for names in _SAME for name in names)


def same_split(one: str, other: str) -> bool:
    """Whether two names mean the same split."""
    return one == other or any({one, other} <= set(names) for names in _SAME)


def split_named(wanted: str, there: Sequence[str]) -> str | None:
    """The one of ``there`` that ``wanted`` means, None if there is none, or several under other names."""
    found = [name for name in there if same_split(name.lower(), wanted.lower())]
    return wanted if wanted in there else found[0] if len(found) == 1 else None


def choose_split(there: Sequence[str], wanted: str | None, where: str) -> str:
    """Raises UsageError, with the splits that are there, if none of them is meant."""
    if wanted is None and len(there) == 1:
        return there[0]
    chosen = split_named(wanted, there) if wanted else None
    if chosen is None:
        what = f"there is no split {wanted!r}" if wanted else "the data set has several splits"
        raise UsageError(what, where=where, hint=f"--split is one of {', '.join(there)}, or {ALL}")
    return chosen


def choose_files(
    files: Sequence[PurePath], split: str | None, subset: str | None, *, where: str, by_patterns: bool
) -> list[PurePath]:
    """Of the files (paths within a folder) those of a split and a configuration.

    Raises UsageError, with what there is, where these aren't there or aren't clear; files that were chosen by patterns
    may be of several.
    """
    found = _of_subset(files, subset, where)
    if split == ALL or (split is None and by_patterns):
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
        chosen = split_named(split, there)
        found = [file for file in files if splits[file] == chosen] if chosen else _called(files, split)
        if not found:
            splits_there = f"the splits are {', '.join(there)}" if there else "no file or folder is named as a split"
            hint = f"{splits_there}; the files are {listed(files)}"
            raise UsageError(f"there is no split {split!r}", where=where, hint=hint)
        return found
    without = [file for file in files if splits[file] is None]
    if len(there) > 1 or (there and without):
        what = f"there are files of several splits: {', '.join(there)}"
        what += f", and of none: {listed(without)}" if without else ""
        raise UsageError(what, where=where, hint=f"name one with --split ({ALL} takes every file), or give its path")
    return list(files)


def _called(files: Sequence[PurePath], split: str) -> list[PurePath]:
    """Those with a word of one's own in their names: ``--split counting`` of counting-00001.parquet."""
    word = re.compile(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])")
    return [] if split.lower() in SPLITS else [file for file in files if word.search(file.as_posix().lower())]
