"""The source of a file, a folder or a Hub id."""

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

_KINDS = f"a folder or file of examples ({', '.join(SUFFIXES)}), .parquet, .tar, or a data set saved by `datasets`"
_COMPRESSED = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".zip", ".7z", ".rar")
_DATA_SUFFIXES = (*SUFFIXES, ".parquet", ".tar", *_COMPRESSED)


@dataclass(frozen=True)
class DataLocation:
    """Where the data are, as on the command line; the ``split`` `ALL_SPLITS` means every file."""

    path: str
    kind: Literal["auto", "local", "hf"] = "auto"
    subset: str | None = None
    split: str | None = None
    data_files: tuple[str, ...] = ()
    revision: str | None = None
    streaming: bool = False


def open_source(location: DataLocation) -> Source:
    """Open the source. Raises InputError or UsageError, saying what is expected and what is there instead."""
    path = Path(location.path).expanduser()
    if location.kind == "hf" or (location.kind == "auto" and not path.exists() and is_hub_id(location.path)):
        return open_hub(
            location.path,
            subset=location.subset,
            split=location.split,
            data_files=location.data_files,
            revision=location.revision,
            streaming=location.streaming,
        )
    for flag, value in (("--revision", location.revision), ("--streaming", location.streaming)):
        if value:
            raise UsageError(f"{flag} is for data on the Hub", where=location.path)
    if not path.exists():
        raise InputError("no such file or folder, and no Hub id org/name", where=location.path)
    return _open_folder(path, location) if path.is_dir() else _open_file(path, location)


def _open_file(path: Path, location: DataLocation) -> Source:
    of_split = location.split in (None, ALL_SPLITS) or same_split(str(location.split), split_of(Path(path.name)) or "")
    split = None if of_split else location.split
    for flag, value in (("--split", split), ("--subset", location.subset), ("--data-files", location.data_files)):
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
    raise InputError("data of this kind can't be read", where=str(path), hint=f"give {_KINDS}")


def _open_folder(folder: Path, location: DataLocation) -> Source:
    if saved := saved_splits(folder):
        return _open_saved(folder, saved, location)
    if is_store(folder):
        raise InputError("this is a token store: its data are tokenized already", where=str(folder))
    files = _files(folder, location.data_files)
    found = _by_kind(folder, files, chosen=bool(location.data_files))
    if not found and (saved := saved_below(folder)):
        return _open_saved(folder, saved, location)
    if not found:
        raise _no_data_error(folder, files, location)
    if len(found) > 1:
        kinds = "; ".join(f"{kind}: {listed(those)}" for kind, those in found.items())
        hint = "give the path of one, or choose files with --data-files"
        raise InputError(f"there are several kinds of data: {kinds}", where=str(folder), hint=hint)
    ((kind, those),) = found.items()
    chosen = choose_files(
        those, location.split, location.subset, where=str(folder), by_patterns=bool(location.data_files)
    )
    name = folder.resolve().name
    if kind == "Parquet":
        return open_parquet(name, [str(folder / file) for file in chosen], str(folder))
    if kind == "tars":
        return open_tars(name, [folder / file for file in chosen])
    numbered = len({re.sub("[0-9]+", "0", file.name) for file in chosen}) == 1
    unambiguous = numbered or location.split == ALL_SPLITS or location.data_files
    if len({file.parent for file in chosen}) > 1 or not unambiguous:
        raise InputError(f"several lists of examples: {listed(chosen)}", where=str(folder), hint="give the path of one")
    return open_lists([folder / file for file in chosen], name)


def _open_saved(folder: Path, splits: Mapping[str, Path], location: DataLocation) -> Source:
    for flag, value in (("--subset", location.subset), ("--data-files", location.data_files)):
        if value:
            raise UsageError(f"{flag} is for files, and `datasets` saved this data set", where=str(folder))
    return open_saved(folder, splits, location.split)


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below that may be data, relative to the folder, in order, without hidden ones and token stores."""
    if patterns:
        return sorted({path for pattern in patterns for path in _matching(folder, pattern)})
    return sorted(path.relative_to(folder) for path in _walk(folder, frozenset()))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a circular link
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_file():
                if entry.name.lower().endswith(_DATA_SUFFIXES):  # there may be a million images beside it
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
    """The files with rows, by kind. Lists count at the top and in folders of a split; deeper ones, and any .json, may
    belong to the images, and count only if they were ``chosen`` or there is nothing else.
    """
    lists = _of_kind(files, *JSON_LINES, *TABLES, *((JSON,) if chosen else ()))
    near = [path for path in lists if chosen or len(path.parts) == 1 or split_of(path)]
    found = {"lists": near, "Parquet": _of_kind(files, ".parquet"), "tars": _of_kind(files, ".tar")}
    there = {kind: those for kind, those in found.items() if those}
    others = lists or [path for path in _of_kind(files, JSON) if is_json_list(folder / path)]
    return there or ({"lists": others} if others else {})


def _no_data_error(folder: Path, files: Sequence[Path], location: DataLocation) -> InputError:
    if any(file.name == "tokenized_datalist.json" for file in files):
        return InputError(
            "this data is in the published format, tokenized already",
            where=str(folder),
            hint="use earl tokenize import",
        )
    matching = f" that matches {', '.join(location.data_files)}" if location.data_files else ""
    packed = _of_kind(files, *_COMPRESSED)
    hint = f"unpack {listed(packed)} first" if packed else f"give {_KINDS}"
    return InputError(f"there is no data{matching} of a kind that can be read", where=str(folder), hint=hint)
