"""Read and write tokenized data in the published format: a list of names, and a ``.pth`` file for each example.

Read as rows of a store, or as one table to train from; files that can't be used are rejects with their reasons. Written
as a folder that the published loaders read. Both continue an interrupted pass.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path

import pyarrow as pa

from earl_cli.data.published.files import FEATURES, LIST_FOLDER, LIST_NAME, PublishedFiles, find_files
from earl_cli.data.published.pth import SUFFIX, read_pth, write_pth
from earl_cli.data.sources.base import BadRowError
from earl_cli.data.store import (
    SCHEMA,
    Manifest,
    Reject,
    Store,
    TokenizedExample,
    check_storable,
    create_or_resume,
    examples_of,
    open_store,
    shard_path,
    to_table,
    write_shard,
)
from earl_cli.files import atomic_write, folder_lock, is_partial, remove_partials

CODES, AREA, FINGERPRINT = 32768, 65536, "published"
"""How published data were made, unless a model says otherwise."""

RowResults = Generator[TokenizedExample | Reject, None, None]

ROWS_PER_TABLE = 512
BYTES_PER_SHARD = 2**28
MAX_NAME_BYTES = 150


@dataclass(frozen=True, eq=False)
class Published:
    """Opened published data; ``names`` are those of the rows' files, in order.

    In a folder rows have the order of the list, in a tar that of the archive, so that a compressed one is read once
    from front to back; there, missing and repeated files come last. ``fingerprint`` changes with the list and the sizes
    of files.
    """

    place: Path
    names: tuple[str, ...]
    fingerprint: str
    files: PublishedFiles

    def __len__(self) -> int:
        return len(self.names)

    def read(self, start: int = 0, stop: int | None = None, *, codes: int = CODES) -> RowResults:
        """Rows ``start`` to ``stop``, each an example or a reject; ``codes`` is the size of the codebook.

        Raises InputError if an archive is damaged, ModelError for a codebook that is too large.
        """
        check_storable(codes)
        rows = range(*slice(start, stop).indices(len(self)))
        with closing(self.files.contents(rows)) as contents:
            for row, content in zip(rows, contents, strict=True):
                name = self.names[row]
                try:
                    if isinstance(content, BadRowError):
                        raise content
                    yield read_pth(content, row, name, f"{self.place}: {name}", codes)
                except BadRowError as error:
                    yield Reject(row, name, error.kind, error.what)


def open_published(place: Path) -> Published:
    """Open published data. Raises InputError for anything else, and for names, links and archives that leave their
    folder."""
    files = find_files(place)
    return Published(place, files.names, files.fingerprint, files)


def published_table(published: Published, codes: int = CODES) -> tuple[pa.Table, list[Reject]]:
    """All examples as one table of the store's `SCHEMA`, and the rows that can't be used."""
    tables, rejects = [SCHEMA.empty_table()], []
    with closing(published.read(codes=codes)) as found:
        while part := list(islice(found, ROWS_PER_TABLE)):
            tables.append(to_table([row for row in part if isinstance(row, TokenizedExample)]))
            rejects += [row for row in part if isinstance(row, Reject)]
    return pa.concat_tables(tables), rejects


# -- in ----------------------------------------------------------------------------------------------------------------


def import_published(
    published: Published,
    output: Path,
    *,
    codes: int,
    image_area: int | None,
    vision_fingerprint: str,
    dataset: str,
    rows_per_shard: int = 512,
    on_rows: Callable[[int], None] = lambda _rows: None,
) -> Store:
    """Import all rows into the store at ``output``, continuing an earlier pass of the same kind.

    Shards have equal sizes as far as possible, at most ``rows_per_shard`` rows and `BYTES_PER_SHARD` of files.
    ``on_rows`` is called with the number of rows of each shard. Bad rows become rejects. Raises InputError as
    `Published.read`, UsageError if the store was made differently.
    """
    bounds = _bounds(published.files.sizes, rows_per_shard)
    rows, shards = bounds[-1], len(bounds) - 1
    origin = {"imported_from": str(published.place)}
    manifest = Manifest(
        codes, vision_fingerprint, image_area, dataset, rows, shards, None, {}, published.fingerprint, origin
    )
    create_or_resume(output, manifest)
    with folder_lock(output, "earl tokenize import"):
        missing = open_store(output).missing
        on_rows(rows - sum(bounds[index + 1] - bounds[index] for index in missing))
        for run in _runs(missing):
            with closing(published.read(bounds[run[0]], bounds[run[-1] + 1], codes=codes)) as found:
                for index in run:
                    part = list(islice(found, bounds[index + 1] - bounds[index]))
                    remove_partials(shard_path(output, index))
                    examples = [row for row in part if isinstance(row, TokenizedExample)]
                    write_shard(output, index, examples, [row for row in part if isinstance(row, Reject)])
                    on_rows(len(part))
    return open_store(output)


def _bounds(sizes: Sequence[int], most_rows: int) -> list[int]:
    """The bounds of shards of equal sizes, where those with too many bytes for the memory are divided further."""
    rows = len(sizes)
    shards = -(-rows // most_rows)
    bounds = [0]
    for index in range(shards):
        total = 0
        for row in range(bounds[-1], rows * (index + 1) // shards):
            if total and total + sizes[row] > BYTES_PER_SHARD:
                bounds.append(row)
                total = 0
            total += sizes[row]
        bounds.append(rows * (index + 1) // shards)
    return bounds


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, divided into consecutive runs."""
    runs = [list(numbers[:1])] if numbers else []
    for before, number in pairwise(numbers):
        if number != before + 1:
            runs.append([])
        runs[-1].append(number)
    return runs


# -- out ---------------------------------------------------------------------------------------------------------------


def export_published(store: Store, output: Path, on_rows: Callable[[int], None] = lambda _rows: None) -> Path:
    """Write the examples of a store in the published format, and return the path of the list.

    ``edit_id`` in a file is ``<id>.pth``, and so is the file's name, made safe and unique if necessary. Files with the
    right content stay. An earlier list is removed first and the new one is written last, so that an incomplete export
    has none.
    """
    with folder_lock(output, "earl tokenize export"):
        return _export(store, output, on_rows)


def _export(store: Store, output: Path, on_rows: Callable[[int], None]) -> Path:
    listing, features = output / LIST_FOLDER / LIST_NAME, output / FEATURES
    names = _file_names(store)
    listing.unlink(missing_ok=True)
    features.mkdir(parents=True, exist_ok=True)
    listing.parent.mkdir(exist_ok=True)
    for left in filter(is_partial, features.iterdir()):
        left.unlink()
    unnamed = iter(names)
    for table in store.tables():
        for example in examples_of(table):
            _write(features / next(unnamed), write_pth(example))
        on_rows(table.num_rows)
    with atomic_write(listing) as aside:
        content = {"prefix": str(features.resolve()), "path_list": names}
        aside.write_text(json.dumps(content), encoding="utf-8")
    return listing


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    with atomic_write(path) as aside:
        aside.write_bytes(content)


def _file_names(store: Store) -> list[str]:
    """A name for every example, in order; they differ by more than case and accents, which some disks ignore."""
    names: list[str] = []
    taken: set[str] = set()
    for table in store.tables(["row", "id"]):
        for row in table.to_pylist():
            spellings = _name_candidates(row["id"], row["row"])
            name = next(name for name in spellings if _collision_key(name) not in taken)
            taken.add(_collision_key(name))
            names.append(name + SUFFIX)
    return names


def _name_candidates(identifier: str, row: int) -> Iterator[str]:
    """The id if any system can have a file of that name; else escaped (%2F for a slash) and with its row."""
    safe = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]|^[. ]|[. ]$', lambda match: f"%{ord(match[0]):02X}", identifier)
    safe = safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    if safe and safe == identifier:
        yield safe
    yield f"{safe}-{row}"
    for number in count(2):
        yield f"{safe}-{row}-{number}"


def _collision_key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
