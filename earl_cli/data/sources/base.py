"""Where pairs come from: rows in a fixed order, that can be read from any place on, by any process.

`Source` is what tokenizing reads; `open_source` in `opening` finds the right one. A source is small, can be sent to
another process, and opens its files there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from earl_cli.errors import EarlError, InputError

Content = Literal["picture", "text", "other", "unknown"]
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
NOT_FETCHED, FETCH = "Git LFS has not fetched this file, only its address is here", "run git lfs pull in its repository"


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
    def columns(self) -> Mapping[str, Content]: ...

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


def check_fetched(file: str | Path) -> None:
    """Raise InputError if there is only what stands for the file in a repository whose data Git LFS has not fetched."""
    with suppress(OSError), Path(file).open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(NOT_FETCHED, where=str(file), hint=FETCH)


def row_count(source: Source) -> int:
    return int(source.bounds[-1])


def picked(values: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
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
    for outer, inner in outer_names(name):
        nested = values.get(outer)
        if isinstance(nested, Mapping):
            there, value = _within(nested, inner)
            if there:
                return True, value
    return False, None


def outer_names(name: str) -> Iterator[tuple[str, str]]:
    """The ways to read ``a.b.c`` as something within something: ``b.c`` in ``a``, ``c`` in ``a.b``."""
    for place, letter in enumerate(name):
        if letter == ".":
            yield name[:place], name[place + 1 :]


def names_apart(files: Sequence[str]) -> list[str]:
    """The paths of ``files`` below the folder that all have in common, so that a/1.tar is not b/1.tar."""
    parts = [file.split("/") for file in files]
    folders = zip(*(each[:-1] for each in parts), strict=False)
    common = len(list(takewhile(lambda level: len(set(level)) == 1, folders)))
    return ["/".join(each[common:]) for each in parts]
