"""From what a user names (a file, a folder, a Hub id) to the source of its rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from earl_cli.console import listed
from earl_cli.data.sources.base import ALL_SPLITS, Source, choose_files, same_split, split_of
from earl_cli.data.sources.hf_disk import open_saved, saved_below, saved_splits
from earl_cli.data.sources.hub import is_hub_id, open_hub
from earl_cli.data.sources.jsonl_csv import (
    JSON,
    JSON_LINES,
    SUFFIXES,
    TABLES,
    is_json_list,
    open_list,
    open_lists,
)
from earl_cli.data.sources.parquet import open_parquet
from earl_cli.data.sources.webdataset import open_tars
from earl_cli.data.store import is_store
from earl_cli.errors import InputError, UsageError

_KINDS = f"a folder or file of pairs ({', '.join(SUFFIXES)}), .parquet, .tar, or a data set saved by `datasets`"
_COMPRESSED = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".zip", ".7z", ".rar")
_DATA_SUFFIXES = (*SUFFIXES, ".parquet", ".tar", *_COMPRESSED)


@dataclass(frozen=True)
class DataLocation:
    """Where the data are, as the command line says it; the ``split`` `ALL_SPLITS` means every file."""

    path: str
    kind: Literal["auto", "local", "hf"] = "auto"
    subset: str | None = None
    split: str | None = None
    data_files: tuple[str, ...] = ()
    revision: str | None = None
    streaming: bool = False


def open_source(place: DataLocation) -> Source:
    """Raises InputError or UsageError, saying what was looked for and what is there instead."""
    path = Path(place.path).expanduser()
    if place.kind == "hf" or (place.kind == "auto" and not path.exists() and is_hub_id(place.path)):
        return open_hub(
            place.path,
            subset=place.subset,
            split=place.split,
            data_files=place.data_files,
            revision=place.revision,
            streaming=place.streaming,
        )
    for flag, value in (("--revision", place.revision), ("--streaming", place.streaming)):
        if value:
            raise UsageError(f"{flag} is for data on the Hub", where=place.path)
    if not path.exists():
        raise InputError("no such file or folder, and no Hub id org/name", where=place.path)
    return _open_folder(path, place) if path.is_dir() else _open_file(path, place)


def _open_file(path: Path, place: DataLocation) -> Source:
    of_split = place.split in (None, ALL_SPLITS) or same_split(str(place.split), split_of(Path(path.name)) or "")
    split = None if of_split else place.split
    for flag, value in (("--split", split), ("--subset", place.subset), ("--data-files", place.data_files)):
        if value:
            raise UsageError(f"{flag} chooses among several files, and this is one", where=str(path))
    kind = path.suffix.lower()
    if kind in SUFFIXES:
        return open_list(path, path.resolve().parent.name)
    if kind == ".parquet":
        return open_parquet(path.stem, [str(path)], str(path.parent))
    if kind == ".tar":
        return open_tars(path.stem, [path])
    if kind in _COMPRESSED:
        raise InputError("this file is compressed", where=str(path), hint=f"unpack it and give {_KINDS}")
    raise InputError("this is none of the kinds of data that can be read", where=str(path), hint=f"give {_KINDS}")


def _open_folder(folder: Path, place: DataLocation) -> Source:
    if saved := saved_splits(folder):
        return _open_saved(folder, saved, place)
    if is_store(folder):
        raise InputError("this is a token store, the data is tokenized already", where=str(folder))
    files = _files(folder, place.data_files)
    found = _by_kind(folder, files, chosen=bool(place.data_files))
    if not found and (saved := saved_below(folder)):
        return _open_saved(folder, saved, place)
    if not found:
        raise _no_data_error(folder, files, place)
    if len(found) > 1:
        kinds = "; ".join(f"{kind}: {listed(those)}" for kind, those in found.items())
        hint = "give the path of one, or choose files with --data-files"
        raise InputError(f"there are several kinds of data: {kinds}", where=str(folder), hint=hint)
    ((kind, those),) = found.items()
    chosen = choose_files(those, place.split, place.subset, where=str(folder), by_patterns=bool(place.data_files))
    name = folder.resolve().name
    if kind == "Parquet":
        return open_parquet(name, [str(folder / file) for file in chosen], str(folder))
    if kind == "tars":
        return open_tars(name, [folder / file for file in chosen])
    numbered = len({re.sub("[0-9]+", "0", file.name) for file in chosen}) == 1
    meant = numbered or place.split == ALL_SPLITS or place.data_files
    if len({file.parent for file in chosen}) > 1 or not meant:
        raise InputError(f"several lists of pairs: {listed(chosen)}", where=str(folder), hint="give the path of one")
    return open_lists([folder / file for file in chosen], name)


def _open_saved(folder: Path, splits: Mapping[str, Path], place: DataLocation) -> Source:
    for flag, value in (("--subset", place.subset), ("--data-files", place.data_files)):
        if value:
            raise UsageError(f"{flag} is for files, and `datasets` saved this data set", where=str(folder))
    return open_saved(folder, splits, place.split)


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below that may be data, as paths from the folder on, in order; none are hidden or of a token store."""
    if patterns:
        return sorted({path for pattern in patterns for path in _matching(folder, pattern)})
    return sorted(path.relative_to(folder) for path in _walk(folder, frozenset()))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link that goes in circles
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_file():
                if entry.name.lower().endswith(_DATA_SUFFIXES):  # there may be a million pictures beside it
                    yield Path(entry.path)
            elif entry.is_dir() and not is_store(Path(entry.path)):
                yield from _walk(Path(entry.path), above | {real})


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        if any(part == ".." or ("**" in part and part != "**") for part in Path(pattern).parts):
            raise ValueError
        return [path.relative_to(folder) for path in folder.glob(pattern) if path.is_file()]
    except (ValueError, NotImplementedError):  # it leaves the folder, or has `**` in a name, as Python 3.13 allows
        what = f"{pattern!r} is no pattern of files below the folder"
        raise UsageError(what, where="--data-files", hint="such as 'data/train-*.parquet' or '**/*.tar'") from None


def _of_kind(files: Sequence[Path], *suffixes: str) -> list[Path]:
    return [file for file in files if file.suffix.lower() in suffixes]


def _by_kind(folder: Path, files: Sequence[Path], *, chosen: bool) -> dict[str, list[Path]]:
    """The files with rows. Of lists those at the top and those of a split: what lies deeper may be anything that came
    with the pictures, as may any .json, and counts only where it was ``chosen`` or there is nothing else."""
    lists = _of_kind(files, *JSON_LINES, *TABLES, *((JSON,) if chosen else ()))
    near = [path for path in lists if chosen or len(path.parts) == 1 or split_of(path)]
    found = {"lists": near, "Parquet": _of_kind(files, ".parquet"), "tars": _of_kind(files, ".tar")}
    there = {kind: those for kind, those in found.items() if those}
    others = lists or [path for path in _of_kind(files, JSON) if is_json_list(folder / path)]
    return there or ({"lists": others} if others else {})


def _no_data_error(folder: Path, files: Sequence[Path], place: DataLocation) -> InputError:
    if any(file.name == "tokenized_datalist.json" for file in files):
        return InputError("this data is tokenized already", where=str(folder), hint="use earl tokenize import")
    matching = f" that matches {', '.join(place.data_files)}" if place.data_files else ""
    packed = _of_kind(files, *_COMPRESSED)
    hint = f"unpack {listed(packed)} first" if packed else f"give {_KINDS}"
    return InputError(f"there is no data{matching} of a kind that can be read", where=str(folder), hint=hint)
