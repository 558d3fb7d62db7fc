"""The token store: Parquet shards with one row a pair, beside a manifest of how they were made.

A shard is the unit of work and of resuming: it holds a fixed range of rows, is written under a temporary name and
renamed, so it is either whole or not there. Rejected rows stand beside it with their reasons.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from earl_cli.errors import InputError, UsageError

FORMAT = "earl-token-store"
VERSION = 1
MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
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


@dataclass(frozen=True, eq=False)
class TokenizedPair:
    """One row: ``source`` and ``target`` are codes uint16[h, w]; ``source_hash`` is the SHA-256 of the source file."""

    id: str
    instruction: str
    source: NDArray[np.uint16]
    target: NDArray[np.uint16]
    thoughts: Mapping[str, str]
    source_hash: str


@dataclass(frozen=True)
class Manifest:
    """What made a store, so that codes of different tokenizers, areas or data are never mixed."""

    codes: int
    vision_fingerprint: str
    image_area: int
    dataset: str
    rows: int
    rows_per_shard: int
    seed: int | None
    data_fingerprint: str


@dataclass(frozen=True)
class Store:
    """An opened store: the manifest and the shards that are there."""

    folder: Path
    manifest: Manifest
    shards: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        return len(self.shards) == shard_count(self.manifest)

    def table(self) -> pa.Table:
        """All rows as one Arrow table of `SCHEMA`. Raises InputError for a shard that can't be read."""
        tables = []
        for shard in self.shards:
            try:
                tables.append(pq.read_table(shard, schema=SCHEMA))
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"this shard can't be read: {error}", where=str(shard), hint="delete it and tokenize again"
                ) from None
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table()

    def rejects(self) -> list[dict[str, str]]:
        """The rows that were left out, with id and reason."""
        files = sorted(self.folder.glob("*.rejects.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def shard_count(manifest: Manifest) -> int:
    return -(-manifest.rows // manifest.rows_per_shard)


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:06d}.parquet"


def check_codebook(store: Store, codes: int) -> None:
    """Raise InputError if the store's codes are not those of a model with a codebook of ``codes``."""
    if store.manifest.codes != codes:
        raise InputError(
            f"this store has a codebook of {store.manifest.codes} codes, the model one of {codes}",
            where=str(store.folder),
            hint="tokenize the pairs with this model's vision tokenizer",
        )


def create_or_resume(folder: Path, manifest: Manifest) -> Store:
    """Start a store, or open the one that is there if it was made in the same way.

    Raises UsageError, naming what differs, for a store made with other settings, and for a folder of other things.
    """
    path = folder / MANIFEST
    if path.exists():
        store = open_store(folder)
        mine, theirs = asdict(manifest), asdict(store.manifest)
        different = [f"{key} {theirs[key]!r} there, {mine[key]!r} now" for key in mine if mine[key] != theirs[key]]
        if different:
            raise UsageError(
                f"this store was made differently: {'; '.join(different)}",
                where=str(folder),
                hint="choose another --output-path",
            )
        return store
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(
            "the folder is not empty and holds no token store", where=str(folder), hint="choose another --output-path"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        aside.write_text(
            json.dumps({"format": FORMAT, "version": VERSION, **asdict(manifest)}, indent=2) + "\n", encoding="utf-8"
        )
    return open_store(folder)


def open_store(folder: Path) -> Store:
    """Open a store for reading. Raises InputError if the folder is none, or of a newer version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            "not a token store: there is no manifest.json", where=str(folder), hint="make one with earl tokenize"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, version = content.pop("format"), content.pop("version")
        if kind != FORMAT or version != VERSION:
            raise InputError(
                f"a {kind} of version {version}, this program reads {FORMAT} version {VERSION}", where=str(path)
            )
        manifest = Manifest(**{field.name: content[field.name] for field in fields(Manifest)})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("the manifest of this store is damaged", where=str(path)) from None
    return Store(folder, manifest, tuple(sorted(folder.glob("shard-*.parquet"))))


def write_shard(folder: Path, index: int, pairs: Sequence[TokenizedPair], rejects: Sequence[tuple[str, str]]) -> Path:
    """Write one shard and its rejects (id, reason), the shard last: once it is there, its range is done."""
    path = shard_path(folder, index)
    reasons = path.with_suffix(".rejects.jsonl")
    if rejects:
        with whole_file(reasons) as aside:
            lines = [json.dumps({"id": name, "reason": reason}, ensure_ascii=False) for name, reason in rejects]
            aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [
        {
            "id": pair.id,
            "instruction": pair.instruction,
            "source": pair.source.ravel(),
            "source_height": pair.source.shape[0],
            "source_width": pair.source.shape[1],
            "target": pair.target.ravel(),
            "target_height": pair.target.shape[0],
            "target_width": pair.target.shape[1],
            "thoughts": list(pair.thoughts.items()),
            "source_hash": pair.source_hash,
        }
        for pair in pairs
    ]
    with whole_file(path) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside, compression="zstd")
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path aside to write to; renamed to ``path`` when all went well, removed when not."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
