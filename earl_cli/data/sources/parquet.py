"""Parquet files as a source, local or on the Hub: a block is a row group, and only the needed columns are read.

A file on the Hub is either read in place, by ranges (streaming), or downloaded into the Hub's cache when its first row
is needed, so a pass over part of the data downloads that part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from earl_cli.data.sources.base import (
    BadRowError,
    CellKind,
    Row,
    check_no_lfs_pointer,
    names_below_common_folder,
    select_columns,
)
from earl_cli.data.sources.hub_files import HUB, fetch, hub_errors, open_in_place
from earl_cli.errors import InputError, first_line

ROWS_PER_BATCH = 64
FOOTER_THREADS = 16
CERTAINTY: Sequence[CellKind] = ("other", "unknown", "text", "image")
"""Where files of a source disagree on what a column holds, the last of these counts: in some it may be empty."""


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """The rows of Parquet files, one file after another.

    ``groups`` int64[blocks, 2] holds (file, row group) of each block; ``streaming``: files on the Hub are read in
    place.
    """

    name: str
    files: tuple[str, ...]
    columns: Mapping[str, CellKind]
    fingerprint: str
    bounds: NDArray[np.int64]
    groups: NDArray[np.int64]
    base: str | None
    streaming: bool = False

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        """As `Source.read`."""
        blocks = np.searchsorted(self.bounds, rows, side="right") - 1
        for block, numbered in groupby(zip(blocks.tolist(), rows, strict=True), key=itemgetter(0)):
            yield from self._of_block(block, [int(row) for _, row in numbered], columns)

    def _of_block(self, block: int, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Row | BadRowError]:
        file, group = self.files[self.groups[block, 0]], int(self.groups[block, 1])
        offset = int(self.bounds[block])
        done, reason = 0, "there are fewer rows than the file says"
        try:
            with hub_errors(file) if file.startswith(HUB) else nullcontext():
                for number, cells in self._cells(file, group, [row - offset for row in rows], columns):
                    done += 1
                    yield to_row(cells, columns, number + offset, f"{file}, row {number + offset + 1}")
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = first_line(error)
        for row in rows[done:]:
            yield BadRowError("data", f"the data can't be read: {reason}", where=f"{file}, row {row + 1}")

    def _cells(
        self, file: str, group: int, wanted: Sequence[int], columns: Sequence[str]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows ``wanted``, counted within the group, one at a time."""
        opened = _open_file(file, self.streaming)
        remaining = list(reversed(wanted))
        start = 0
        needed = top_level_columns(columns, opened.schema_arrow.names)
        for batch in opened.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=needed):
            while remaining and remaining[-1] < start + batch.num_rows:
                number = remaining.pop()
                yield number, batch.slice(number - start, 1)
            if not remaining:
                return
            start += batch.num_rows


def to_row(cells: pa.RecordBatch | pa.Table, columns: Sequence[str], number: int, where: str) -> Row | BadRowError:
    """One row of cells, validated first: a damaged file can have invalid UTF-8, and offsets beyond its end."""
    try:
        cells.validate(full=True)
        (values,) = cells.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return BadRowError("row", f"not a valid row: {first_line(error)}", where=where)
    return Row(number, where, select_columns(values, columns))


def open_parquet(name: str, files: Sequence[str], base: str | None, *, streaming: bool = False) -> ParquetSource:
    """Read the footers. Raises InputError, naming the file, if one is no Parquet file or all are empty."""
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(_read_footer, files))
    digest = hashlib.sha256()
    sizes: list[int] = []
    groups: list[tuple[int, int]] = []
    columns: dict[str, CellKind] = {}
    for index, (file, footer) in enumerate(zip(names_below_common_folder(files), footers, strict=True)):
        for column, kind in arrow_columns(footer.schema.to_arrow_schema()).items():
            columns[column] = max(kind, columns.get(column, "other"), key=CERTAINTY.index)
        row_groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
        shape = [(group.num_rows, group.total_byte_size) for group in row_groups]
        digest.update(repr((file, shape)).encode())
        for number, group in enumerate(row_groups):
            if group.num_rows:
                sizes.append(group.num_rows)
                groups.append((index, number))
    if not sizes:
        raise InputError("these Parquet files have no rows", where=name)
    bounds = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    return ParquetSource(
        name, tuple(files), columns, digest.hexdigest()[:16], bounds, np.array(groups), base, streaming
    )


def arrow_columns(fields: Iterable[pa.Field], outer: str = "") -> dict[str, CellKind]:
    """The columns of an Arrow schema, also nested ones, and what they hold by their types."""
    found: dict[str, CellKind] = {}
    for field in fields:
        name = f"{outer}{field.name}"
        found[name] = _cell_kind(field.type)
        if found[name] == "other" and pa.types.is_struct(field.type):
            found |= arrow_columns(field.type, f"{name}.")
    return found


def _cell_kind(kind: pa.DataType) -> CellKind:
    if isinstance(kind, pa.BaseExtensionType):
        return _cell_kind(kind.storage_type)
    if pa.types.is_dictionary(kind) or hasattr(kind, "value_field"):  # a list, of any sort
        return _cell_kind(kind.value_type)
    if any(same(kind) for same in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)):
        return "image"
    if pa.types.is_struct(kind):
        return "image" if {field.name for field in kind} & {"bytes", "path"} else "other"
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)  # a column may be empty in this file only
    return "unknown" if any(same(kind) for same in texts) else "other"


def top_level_columns(columns: Sequence[str], available: Sequence[str]) -> list[str]:
    """Those of the ``available`` columns that are, or contain, one of ``columns``."""
    return [name for name in available if any(each == name or each.startswith(f"{name}.") for each in columns)]


def _read_footer(file: str) -> pq.FileMetaData:
    try:
        if not file.startswith(HUB):
            return pq.read_metadata(file)
        with hub_errors(file), open_in_place(file) as opened:
            return pq.read_metadata(opened)
    except (pa.ArrowException, OSError, ValueError) as error:
        check_no_lfs_pointer(file)
        raise InputError(f"not a readable Parquet file: {first_line(error)}", where=file) from None


@lru_cache(4)
def _open_file(file: str, streaming: bool) -> pq.ParquetFile:
    """Kept open, because a process reads many chunks of one file."""
    if not file.startswith(HUB):
        return pq.ParquetFile(file)
    return pq.ParquetFile(open_in_place(file), pre_buffer=True) if streaming else pq.ParquetFile(fetch(file))
