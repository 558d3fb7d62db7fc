"""Where pairs come from: rows in a fixed order, that can be read from any place on, by any process.

`Source` is what tokenizing reads; `open_source` in `opening` finds the right one. A source is small, can be sent to
another process, and opens its files there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from earl_cli.errors import EarlError


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


class Source(Protocol):
    """Rows in a fixed order.

    ``bounds`` int64[blocks + 1] says which rows are cheap to read together: block b holds bounds[b] to bounds[b + 1].
    ``columns`` are the names that rows have, as far as can be known without reading them all. ``fingerprint`` changes
    when the rows do. ``base`` is the folder that paths of pictures count from, None where such paths are not followed.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def bounds(self) -> NDArray[np.int64]: ...

    @property
    def base(self) -> str | None: ...

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """The rows of these ascending numbers, of one block, in that order; of each only ``columns``.

        A row that is damaged comes as an error in its place. Raises EarlError if the source itself fails.
        """
        ...


def row_count(source: Source) -> int:
    return int(source.bounds[-1])
