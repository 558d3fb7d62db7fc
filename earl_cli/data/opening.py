"""From what a user names (a file, a folder, a Hub id) to the source of its rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from earl_cli.data.hub_data import is_hub_id, open_hub
from earl_cli.data.listing import SUFFIXES, open_listing
from earl_cli.data.parquet import open_parquet
from earl_cli.data.saved import is_saved, open_saved
from earl_cli.data.sources import Source
from earl_cli.data.tars import open_tars
from earl_cli.errors import InputError, UsageError

ALL = "all"
SPLITS = ("train", "validation", "valid", "val", "test", "dev")
_KINDS = f"a folder or file of pairs ({', '.join(SUFFIXES)}), .parquet, .tar, or a data set saved by `datasets`"


@dataclass(frozen=True)
class Place:
    """Where the data are, as the command line says it; ``split`` "all" means every file."""

    path: str
    kind: Literal["auto", "local", "hf"] = "auto"
    subset: str | None = None
    split: str | None = None
    data_files: tuple[str, ...] = ()
    revision: str | None = None
    streaming: bool = False


def open_source(place: Place) -> Source:
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
    for flag, value in (("--subset", place.subset), ("--revision", place.revision), ("--streaming", place.streaming)):
        if value:
            raise UsageError(f"{flag} is for data on the Hub", where=place.path)
    if not path.exists():
        raise InputError("no such file or folder, and no Hub id org/name", where=place.path)
    return _open_file(path) if path.is_file() else _open_folder(path, place)


def _open_file(path: Path) -> Source:
    if path.suffix in SUFFIXES:
        return open_listing(path)
    if path.suffix == ".parquet":
        return open_parquet(path.stem, [str(path)], str(path.parent))
    if path.suffix == ".tar":
        return open_tars(path.stem, [path])
    raise InputError("this is none of the kinds of data that can be read", where=str(path), hint=f"give {_KINDS}")


def _open_folder(folder: Path, place: Place) -> Source:
    if is_saved(folder):
        return open_saved(folder, place.split)
    lists = _files(folder, SUFFIXES, place.data_files or ("*",))
    if len(lists) == 1:
        return open_listing(lists[0])
    if lists:
        names = ", ".join(path.name for path in lists)
        raise InputError(f"several lists of pairs: {names}", where=str(folder), hint="give the path of one")
    name = folder.resolve().name
    tables = _files(folder, (".parquet",), place.data_files or ("**/*.parquet",))
    if tables:
        return open_parquet(name, [str(path) for path in _of_split(tables, place)], str(folder))
    tars = _files(folder, (".tar",), place.data_files or ("**/*.tar",))
    if tars:
        return open_tars(name, _of_split(tars, place))
    if any(folder.glob("**/tokenized_datalist.json")):
        raise InputError("this data is tokenized already", where=str(folder), hint="use earl tokenize import")
    matching = f" that matches {', '.join(place.data_files)}" if place.data_files else ""
    raise InputError(f"there is no data{matching} of a kind that can be read", where=str(folder), hint=f"give {_KINDS}")


def _files(folder: Path, suffixes: Sequence[str], patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.suffix in suffixes}
    return sorted(path for path in found if path.is_file())


def _of_split(files: Sequence[Path], place: Place) -> list[Path]:
    """The files whose name contains the split's."""
    if place.split not in (None, ALL):
        chosen = [path for path in files if place.split in path.name]
        if not chosen:
            listed = ", ".join(path.name for path in files[:8])
            raise InputError(
                f"no file has {place.split!r} in its name", where=place.path, hint=f"the files are {listed}"
            )
        return chosen
    words = {word for path in files for word in re.findall("[a-z]+", path.stem.lower())}
    splits = [split for split in SPLITS if split in words]
    if place.split is None and not place.data_files and len(splits) > 1:
        what = f"there are files of several splits: {', '.join(splits)}"
        raise UsageError(what, where=place.path, hint=f"name one with --split, or take all files with --split {ALL}")
    return list(files)
