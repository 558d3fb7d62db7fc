"""The token store: Parquet shards with one row an example, and a manifest of how they were made.

A shard is the unit of work and of resuming: it holds a fixed range of rows and is written atomically. Rejected rows are
in a file beside it, with their reasons.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from earl_cli.errors import InputError, ModelError, UsageError, first_line
from earl_cli.files import atomic_write, is_partial, loads, remove_partials
from earl_cli.images.resize import LEGACY_SHAPES

FORMAT = "earl-token-store"
VERSION = 2
MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("instruction", pa.string()),
        ("source", pa.list_(pa.uint16())),
        ("source_height", pa.uint16()),
        ("source_width", pa.uint16()),
        ("target", pa.list_(pa.uint16())),
        ("target_height", pa.uint16()),
        ("target_width", pa.uint16()),
        ("thoughts", pa.map_(pa.string(), pa.string())),
        ("source_hash", pa.string()),
    ]
)
MAX_CODES = 65536
"""The range of a column of 16 bits."""
MAX_SHARDS = 10_000_000
LEGACY_KINDS = {"picture": "image"}
"""Kinds of rejects as earlier versions wrote them."""
_SHARD = re.compile(r"shard-(\d{6,})\.parquet")


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """One row: ``source`` and ``target`` are codes uint16[h, w], ``row`` is its number in the original data.

    ``source_hash`` is the SHA-256 of the source file, empty if there was none.
    """

    row: int
    id: str
    instruction: str
    source: NDArray[np.uint16]
    target: NDArray[np.uint16]
    thoughts: Mapping[str, str]
    source_hash: str


@dataclass(frozen=True)
class Reject:
    """A row of the data that was left out: ``kind`` classifies the fault, ``reason`` describes it."""

    row: Annotated[int, Field(strict=True, ge=0, lt=2**63)]
    id: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """How a store was made, so that codes of different tokenizers, areas or data are never mixed.

    ``rows`` counts good and rejected ones; ``shapes`` is as in `earl_cli.images.resize`. ``origin`` has further
    information; it is not compared.
    """

    codes: int
    vision_fingerprint: str
    image_area: int | None
    dataset: str
    rows: int
    shards: int
    seed: int | None
    columns: Mapping[str, Any]
    data_fingerprint: str
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)
    shapes: str = LEGACY_SHAPES


_MANIFEST, _REJECT = TypeAdapter(Manifest), TypeAdapter(Reject)


@dataclass(frozen=True)
class Store:
    """An opened store: its manifest and the shards that are there, in order."""

    folder: Path
    manifest: Manifest
    shards: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        there = {shard_number(shard) for shard in self.shards}
        return [index for index in range(self.manifest.shards) if index not in there]

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows as a table of `SCHEMA`, or of some of its columns, for each shard, so that memory stays constant.

        Raises InputError for a shard that can't be read, and for an empty cell.
        """
        for shard in self.shards:
            table = read_shard(shard, columns)
            empty = [name for name in table.column_names if _has_empty_cells(table[name])]
            if empty:
                what, hint = f"there are empty cells in {', '.join(empty)}", "earl tokenize verify names the rows"
                raise InputError(what, where=str(shard), hint=hint)
            yield table

    def table(self) -> pa.Table:
        """All rows as one Arrow table of `SCHEMA`. Raises InputError for a shard that can't be read."""
        return pa.concat_tables([SCHEMA.empty_table(), *self.tables()])

    def rejects(self) -> Iterator[Reject]:
        """The rows that were left out."""
        for shard in self.shards:
            yield from read_rejects(shard)


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:06d}.parquet"


def shard_number(shard: Path) -> int:
    match = _SHARD.fullmatch(shard.name)
    assert match, shard
    return int(match[1])


def read_shard(shard: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard's rows. Raises InputError if it can't be read or has other columns."""
    schema = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
    try:
        table = pq.read_table(shard, schema=schema, columns=schema.names, memory_map=False)
        table.validate(full=True)  # a damaged shard can have invalid UTF-8 and offsets beyond its end
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        what = f"this shard can't be read: {first_line(error)}"
        raise InputError(what, where=str(shard), hint="delete it and tokenize again") from None


def _has_empty_cells(column: pa.ChunkedArray) -> bool:
    if column.null_count:
        return True
    if pa.types.is_map(column.type):
        return any(chunk.items.null_count for chunk in column.chunks)
    return pa.types.is_list(column.type) and any(chunk.flatten().null_count for chunk in column.chunks)


def read_rejects(shard: Path) -> list[Reject]:
    """The rejected rows of a shard. Raises InputError if their file is damaged."""
    path = rejects_path(shard)
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        rejects = [_REJECT.validate_python(loads(line)) for line in lines]
    except ValueError:
        raise InputError(
            "this list of rejects is damaged", where=str(path), hint="delete it and its shard, and tokenize again"
        ) from None
    return [replace(each, kind=LEGACY_KINDS.get(each.kind, each.kind)) for each in rejects]


def check_codebook(store: Store, codes: int) -> None:
    """Raise InputError if the store's codes are not those of a model with a codebook of ``codes``."""
    if store.manifest.codes != codes:
        raise InputError(
            f"this store has a codebook of {store.manifest.codes} codes, the model one of {codes}",
            where=str(store.folder),
            hint="tokenize the examples with this model's vision tokenizer",
        )


def check_storable(codes: int) -> None:
    """Raise ModelError for a codebook whose codes don't fit into a store's columns."""
    if codes > MAX_CODES:
        raise ModelError(
            f"a codebook of {codes:,} codes can't be stored: codes have 16 bits, for {MAX_CODES:,} at most",
            hint="use a vision tokenizer with a smaller codebook",
        )


def differences(mine: Manifest, theirs: Manifest) -> list[str]:
    """A phrase for each difference of two manifests, the first of this run, the second of the store."""
    found = []
    for each in fields(Manifest):
        now, there = getattr(mine, each.name), getattr(theirs, each.name)
        if each.compare and now != there:
            found.append(
                "other data" if each.name == "data_fingerprint" else f"{each.name} {there!r} there, {now!r} now"
            )
    return found


def create_or_resume(folder: Path, manifest: Manifest) -> Store:
    """Create a store, or open the existing one if it was made in the same way.

    Several processes may do this at once. Raises UsageError that names the differences for a store made with other
    settings, and for a folder of other things, ModelError for a codebook that is too large.
    """
    check_storable(manifest.codes)
    path = folder / MANIFEST
    if not path.exists():
        is_occupied = folder.exists() and (not folder.is_dir() or not all(map(is_partial, folder.iterdir())))
        if is_occupied and not path.exists():  # else another process wrote it in between
            what = "the folder is not empty and holds no token store"
            raise UsageError(
                what if folder.is_dir() else "this is a file, and a token store is a folder",
                where=str(folder),
                hint="choose another --output",
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, manifest)
    store = open_store(folder)
    different = differences(manifest, store.manifest)
    if different:
        raise UsageError(
            f"this store was made differently: {'; '.join(different)}",
            where=str(folder),
            hint="choose another --output",
        )
    return store


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    with atomic_write(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_store(folder: Path) -> bool:
    """Whether this folder has a manifest."""
    return (folder / MANIFEST).is_file()


def open_store(folder: Path) -> Store:
    """Open a store for reading. Raises InputError if the folder is none, or one of another version."""
    path = folder / MANIFEST
    if not is_store(folder):
        if not folder.exists():
            raise InputError("there is no such token store", where=str(folder), hint="earl tokenize makes one")
        kind = "it has no manifest.json" if folder.is_dir() else "it is a file, and a store is a folder"
        hint = "make one of image pairs: earl tokenize pairs/ -o store/"
        raise InputError(f"not a token store: {kind}", where=str(folder), hint=hint)
    try:
        content: dict[str, Any] = loads(path.read_bytes())
        kind, version = content.pop("format"), content.pop("version")
        if kind != FORMAT or version != VERSION:
            raise InputError(
                f"a {kind} of version {version}, this program reads {FORMAT} version {VERSION}",
                where=str(path),
                hint="tokenize the data again with this program",
            )
        content.setdefault("shapes", LEGACY_SHAPES)
        found = {each.name: content[each.name] for each in fields(Manifest)}
        manifest = _MANIFEST.validate_python(found)
        if manifest.rows < 0 or not 0 <= manifest.shards <= MAX_SHARDS or not 1 <= manifest.codes <= MAX_CODES:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("the manifest of this store is damaged", where=str(path)) from None
    shards = [path for path in folder.iterdir() if _SHARD.fullmatch(path.name)]
    return Store(folder, manifest, tuple(sorted(shards, key=shard_number)))


def write_shard(folder: Path, index: int, examples: Sequence[TokenizedExample], rejects: Sequence[Reject]) -> Path:
    """Write a shard and its rejects, the shard last: once it is there, its range is done."""
    return write_table(folder, index, to_table(examples), rejects)


def write_table(folder: Path, index: int, table: pa.Table, rejects: Sequence[Reject]) -> Path:
    """As `write_shard`, of a table of `SCHEMA`. Removes what killed processes left of the shard."""
    path = shard_path(folder, index)
    reasons = rejects_path(path)
    remove_partials(path)
    remove_partials(reasons)
    if rejects:
        with atomic_write(reasons) as temporary:
            lines = [json.dumps(asdict(reject), ensure_ascii=False) for reject in rejects]
            text = "\n".join(lines) + "\n"
            temporary.write_text(
                text, encoding="utf-8", errors="backslashreplace"
            )  # lone surrogates, as JSON writes them
    else:
        reasons.unlink(missing_ok=True)  # of an attempt that was killed between the two files
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def to_table(examples: Sequence[TokenizedExample]) -> pa.Table:
    """Examples as a table of `SCHEMA`."""
    columns = {
        "row": [example.row for example in examples],
        "id": [example.id for example in examples],
        "instruction": [example.instruction for example in examples],
        "thoughts": [list(example.thoughts.items()) for example in examples],
        "source_hash": [example.source_hash for example in examples],
    }
    for name, grids in (
        ("source", [example.source for example in examples]),
        ("target", [example.target for example in examples]),
    ):
        columns[name] = [grid.ravel() for grid in grids]
        columns[f"{name}_height"] = [grid.shape[0] for grid in grids]
        columns[f"{name}_width"] = [grid.shape[1] for grid in grids]
    return pa.table(columns, schema=SCHEMA)


def examples_of(table: pa.Table) -> Iterator[TokenizedExample]:
    """The rows of a table of `SCHEMA`. Raises InputError that names the id if codes and grid don't agree."""
    for row in table.to_pylist():
        grids = [(row[f"{name}_height"], row[f"{name}_width"]) for name in ("source", "target")]
        codes = [np.asarray(row[name], dtype=np.uint16) for name in ("source", "target")]
        for flat, (height, width) in zip(codes, grids, strict=True):
            if flat.size != height * width or flat.size == 0:
                raise InputError(f"{flat.size} codes for a grid of {height}*{width}", where=f"row {row['id']!r}")
        source, target = (flat.reshape(grid) for flat, grid in zip(codes, grids, strict=True))
        yield TokenizedExample(
            row["row"], row["id"], row["instruction"], source, target, dict(row["thoughts"]), row["source_hash"]
        )


def rejects_path(shard: Path) -> Path:
    """The file of a shard's rejects, which needn't exist."""
    return shard.with_suffix(".rejects.jsonl")
