"""Merge several token stores into one, or export one to Parquet or JSON lines; shard by shard, so memory stays
constant.

An interrupted merge that is started again gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from earl_cli.data.inspecting import THOUGHTS_LIST, describe_missing_shards
from earl_cli.data.store import (
    SCHEMA,
    Manifest,
    Store,
    TokenizedExample,
    create_or_resume,
    examples_of,
    open_store,
    read_rejects,
    read_shard,
    shard_number,
    shard_path,
    write_table,
)
from earl_cli.errors import InputError, UsageError
from earl_cli.files import atomic_write, folder_lock, remove_partials

MUST_AGREE = ("codes", "vision_fingerprint", "image_area")
"""Fields of the manifest in which stores of different data must agree."""
ROWS_PER_BATCH = 256
_THOUGHTS = SCHEMA.get_field_index("thoughts")
PARQUET_SCHEMA = SCHEMA.set(_THOUGHTS, pa.field("thoughts", THOUGHTS_LIST))
"""As a shard's, with the chain of thought as a list, because the datasets library has no maps."""


@dataclass(frozen=True)
class _ShardMove:
    """A shard, its number in the merged store, and the offset that is added to its rows' numbers."""

    shard: Path
    index: int
    offset: int


def merge(stores: Sequence[Store], output: Path, on_rows: Callable[[int], None]) -> Store:
    """Merge ``stores`` into the one at ``output``, continuing an earlier merge.

    Stores with equal manifests are parts of one pass: their shards are copied (a shard that several have, from the
    first of these), and missing ones may be merged later. Other stores are concatenated: they must be complete and
    agree in `MUST_AGREE`, and their rows are renumbered. ``on_rows`` is called with the number of each shard's rows,
    good and rejected. Raises UsageError, naming the store, for stores that don't fit together and for an output that is
    something else, InputError for an incomplete store and for a shard that can't be read.
    """
    if not stores:
        raise UsageError("there is no store to merge", hint="name at least one")
    _check_each(stores)
    if _are_parts_of_one_pass(stores):
        manifest, moves = stores[0].manifest, _union_of_parts(stores)
    else:
        manifest, moves = _joined_manifest(stores), _concatenation(stores)
    create_or_resume(output, manifest)
    with folder_lock(output, "earl tokenize merge"):
        for move in moves:
            on_rows(_write_moved(move, output))
    return open_store(output)


def planned_rows(stores: Sequence[Store]) -> int:
    """The rows, good and rejected, that the merged store will have."""
    return stores[0].manifest.rows if _are_parts_of_one_pass(stores) else sum(store.manifest.rows for store in stores)


def _are_parts_of_one_pass(stores: Sequence[Store]) -> bool:
    return all(store.manifest == stores[0].manifest for store in stores)


def _check_each(stores: Sequence[Store]) -> None:
    folders = [store.folder.resolve() for store in stores]
    for store, folder in zip(stores, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError("this store is named more than once", where=str(store.folder))
        for shard in store.shards:
            if shard != shard_path(store.folder, shard_number(shard)) or shard_number(shard) >= store.manifest.shards:
                hint = "earl tokenize verify lists all problems"
                raise InputError("the store's manifest has no such shard", where=str(shard), hint=hint)


def _union_of_parts(stores: Sequence[Store]) -> Iterator[_ShardMove]:
    shards: dict[int, Path] = {}
    for store in stores:
        for shard in store.shards:
            shards.setdefault(shard_number(shard), shard)
    return (_ShardMove(shards[index], index, 0) for index in sorted(shards))


def _joined_manifest(stores: Sequence[Store]) -> Manifest:
    """The manifest of these stores one after the other. Raises as `merge`."""
    first = stores[0]
    differences = []
    for store in stores[1:]:
        for name in MUST_AGREE:
            here, there = getattr(store.manifest, name), getattr(first.manifest, name)
            if here != there:
                differences.append(f"{name} is {here!r} in {store.folder}, {there!r} in {first.folder}")
    if differences:
        hint = "tokenize the data with the same vision tokenizer and the same --image-area"
        raise UsageError(f"these stores don't fit together: {'; '.join(differences)}", hint=hint)
    for number, store in enumerate(stores):
        if store.missing:
            hint = "finish it with the earl tokenize that made it, or merge the parts of its pass first"
            raise InputError(f"incomplete: {describe_missing_shards(store)}", where=str(store.folder), hint=hint)
        for other in stores[:number]:
            if store.manifest == other.manifest:
                raise UsageError(f"the same rows as in {other.folder}", where=str(store.folder), hint="name it once")
    manifests = [store.manifest for store in stores]
    digest = hashlib.sha256(json.dumps([manifest.data_fingerprint for manifest in manifests]).encode())
    return replace(
        manifests[0],
        dataset=" + ".join(manifest.dataset for manifest in manifests),
        rows=sum(manifest.rows for manifest in manifests),
        shards=sum(manifest.shards for manifest in manifests),
        seed=None,
        columns=manifests[0].columns if all(each.columns == manifests[0].columns for each in manifests) else {},
        data_fingerprint=digest.hexdigest()[:16],
        origin={"parts": [asdict(manifest) for manifest in manifests]},
    )


def _concatenation(stores: Sequence[Store]) -> Iterator[_ShardMove]:
    shards = rows = 0
    for store in stores:
        for index in range(store.manifest.shards):
            yield _ShardMove(shard_path(store.folder, index), shards + index, rows)
        shards += store.manifest.shards
        rows += max(store.manifest.rows, _highest_row(store) + 1)


def _highest_row(store: Store) -> int:
    """The highest row number of a store, which can be above its count for a shuffled and limited pass; -1 if it is
    empty."""
    highest: list[int] = [pc.max(table["row"]).as_py() for table in store.tables(["row"]) if table.num_rows]
    return max([-1, *highest, *(reject.row for reject in store.rejects())])


def _write_moved(move: _ShardMove, output: Path) -> int:
    """Write a shard at its new place, unless it is there, and return the number of its rows."""
    rejects = read_rejects(move.shard)
    rows: int = read_shard(move.shard, ["row"]).num_rows + len(rejects)
    if not shard_path(output, move.index).exists():
        moved = [replace(reject, row=reject.row + move.offset) for reject in rejects]
        write_table(output, move.index, _renumbered(read_shard(move.shard), move.offset), moved)
    return rows


def _renumbered(table: pa.Table, offset: int) -> pa.Table:
    return table.set_column(SCHEMA.get_field_index("row"), SCHEMA.field("row"), pc.add(table["row"], offset))


def export_parquet(store: Store, output: Path, on_rows: Callable[[int], None]) -> None:
    """All rows as one Parquet file of `PARQUET_SCHEMA`, a row group for each shard, written atomically.

    ``datasets.load_dataset("parquet", data_files=...)`` reads it. ``on_rows`` is called with the number of each shard's
    rows. Raises InputError for a shard that can't be read.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(output)
    with atomic_write(output) as temporary, pq.ParquetWriter(temporary, PARQUET_SCHEMA, compression="zstd") as writer:
        for table in store.tables():
            if table.num_rows:
                thoughts = table["thoughts"].cast(THOUGHTS_LIST)
                rows = table.set_column(_THOUGHTS, PARQUET_SCHEMA.field("thoughts"), thoughts)
                writer.write_table(rows, row_group_size=table.num_rows)
            on_rows(table.num_rows)


def export_jsonl(store: Store, output: Path, on_rows: Callable[[int], None]) -> None:
    """All rows as JSON lines with row, id, instruction, source, target, thoughts and source_hash, written atomically.

    ``source`` and ``target`` are codes as lists of rows, [h][w]. ``on_rows`` is called with the number of rows written.
    Raises InputError for a shard that can't be read and for codes that don't fill their grid.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(output)
    with atomic_write(output) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for table in store.tables():
            for part in table.to_batches(max_chunksize=ROWS_PER_BATCH):
                file.writelines(_line(example) for example in examples_of(pa.Table.from_batches([part])))
                on_rows(part.num_rows)


def _line(example: TokenizedExample) -> str:
    content = {
        "row": example.row,
        "id": example.id,
        "instruction": example.instruction,
        "source": example.source.tolist(),
        "target": example.target.tolist(),
        "thoughts": dict(example.thoughts),
        "source_hash": example.source_hash,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
