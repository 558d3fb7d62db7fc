"""Rows of a source to codes in a store: shard by shard, equal sizes together, every source encoded once a shard.

A shard's rows depend only on the data, the seed and the settings, never on what was done before it; so an interrupted
pass that is started again ends in the same store, and several processes can make shards of one store without talking.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import OutOfMemoryError

from earl_cli.data.columns import ExampleColumns, find_columns
from earl_cli.data.preprocess import Prepared, PreparedExample, PreparedImage, PreprocessSettings, prepare_ahead
from earl_cli.data.shard_plan import RowOrder, ShardShare
from earl_cli.data.sources.base import Source
from earl_cli.data.store import (
    MANIFEST,
    Manifest,
    Reject,
    Store,
    TokenizedExample,
    create_or_resume,
    open_store,
    read_rejects,
    shard_path,
    write_shard,
)
from earl_cli.errors import InputError
from earl_cli.files import folder_lock, remove_partials
from earl_cli.images.resize import Grids, describe_shapes
from earl_cli.models.vision import encode, pixels_of, spatial_factor

if TYPE_CHECKING:
    import torch
    from transformers import Emu3VQVAE

ROWS_PER_SHARD = 512
PIXELS_PER_BATCH = {"cpu": 4 * 96 * 96, "mps": 8 * 65536, "cuda": 32 * 65536}
MIN_ROWS_FOR_RATE = 100


@dataclass(frozen=True)
class TokenizeSettings:
    """How rows become codes.

    ``grids`` are as in `resize_to_area`. ``seed`` None keeps their order, ``limit`` None takes them all, ``batch_size``
    None is as many pictures as suit the device, ``workers`` 0 reads pictures in this process. ``max_reject_rate`` is
    the share of bad rows that is borne.
    """

    image_area: int
    grids: Grids = ()
    columns: ExampleColumns = field(default_factory=ExampleColumns)
    seed: int | None = None
    limit: int | None = None
    batch_size: int | None = None
    workers: int = 0
    urls: bool = False
    max_reject_rate: float = 1.0
    rows_per_shard: int = ROWS_PER_SHARD
    share: ShardShare = field(default_factory=ShardShare)


@dataclass
class PassProgress:
    """How far this process' share of a pass is: rows done, and how many of them were left out, by kind of fault.

    ``notes``: how many pictures that this process read had something special about them, by what it was.
    """

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, rows: int, rejects: Sequence[Reject]) -> None:
        self.rows += rows
        self.rejected.update(reject.kind for reject in rejects)

    def check(self, most: float, enough: int) -> None:
        """Raise InputError if, of at least ``enough`` rows, a larger share than ``most`` was left out."""
        bad = self.rejected.total()
        if self.rows >= enough and bad > most * self.rows:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.rejected.most_common())
            raise InputError(
                f"{bad} of {self.rows} rows were left out ({kinds}), more than the share of {most:g}",
                hint="the *.rejects.jsonl files name the reasons; --max-reject-rate sets what is borne",
            )


def tokenize(
    source: Source,
    vision: Emu3VQVAE,
    vision_fingerprint: str,
    output: Path,
    settings: TokenizeSettings,
    dataset: str,
    on_rows: Callable[[PassProgress], None] = lambda _tally: None,
    origin: dict[str, Any] | None = None,
) -> Store:
    """Encode this process' share of ``source`` into the store at ``output``, going on where an earlier pass stopped.

    ``on_rows`` hears of every portion of rows that is done. Bad rows go to the rejects. Raises InputError for columns
    that aren't there and for too many rejects, UsageError if the store was made in another way, EarlError if the
    source fails, OutputError if another process does the same share; what was finished before stays.
    """
    recipe = PreprocessSettings(
        source,
        find_columns(settings.columns, source),
        settings.image_area,
        spatial_factor(vision),
        settings.grids,
        settings.urls,
    )
    order = RowOrder(source.bounds, settings.seed, settings.limit)
    manifest = Manifest(
        codes=int(vision.config.codebook_size),
        vision_fingerprint=vision_fingerprint,
        image_area=settings.image_area,
        dataset=dataset,
        rows=len(order),
        shards=-(-len(order) // settings.rows_per_shard),
        seed=settings.seed,
        columns=recipe.columns.to_dict(),
        data_fingerprint=source.fingerprint,
        origin={**(origin or {}), "rows_per_shard": settings.rows_per_shard},
        shapes=describe_shapes(settings.grids),
    )
    create_or_resume(output, manifest)
    tally = PassProgress()
    with folder_lock(output, "earl tokenize", settings.share.part):
        missing = []
        for index in filter(settings.share.owns, range(manifest.shards)):
            shard = shard_path(output, index)
            if shard.exists():
                rejects = read_rejects(shard)
                tally.add(pq.read_metadata(shard).num_rows + len(rejects), rejects)
            else:
                missing.append(index)
        on_rows(tally)
        _write_shards(output, missing, order, recipe, vision, settings, tally, on_rows)
    tally.check(settings.max_reject_rate, 1)
    store = open_store(output)
    if store.complete:
        remove_partials(output / MANIFEST)  # of a process that was killed; while ranks start, one may be in use
    return store


def _write_shards(
    output: Path,
    shards: Sequence[int],
    order: RowOrder,
    recipe: PreprocessSettings,
    vision: Emu3VQVAE,
    settings: TokenizeSettings,
    tally: PassProgress,
    on_rows: Callable[[PassProgress], None],
) -> None:
    """Make these shards, in this order."""
    encoder = _Encoder(vision, settings.batch_size or _batch_size(vision.device, settings.image_area))

    def portions() -> Iterator[tuple[tuple[int, bool], list[int]]]:
        for index in shards:
            start, stop = index * settings.rows_per_shard, (index + 1) * settings.rows_per_shard
            chunks = list(order.chunks(start, stop))
            for place, rows in enumerate(chunks, 1):
                yield (index, place == len(chunks)), rows

    done: list[Prepared] = []
    with prepare_ahead(recipe, portions(), settings.workers) as prepared:
        for (index, last), rows in prepared:
            for row in rows:
                done.append(encoder.take(row))
            rejects = [row for row in rows if isinstance(row, Reject)]
            if last:
                codes = encoder.finish()
                pairs = [_tokenized(row, codes) for row in done if isinstance(row, PreparedExample)]
                write_shard(output, index, pairs, [row for row in done if isinstance(row, Reject)])
                done = []
            tally.add(len(rows), rejects)
            pairs_read = (row for row in rows if isinstance(row, PreparedExample))
            tally.notes.update(note for row in pairs_read for small in (row.source, row.target) for note in small.notes)
            on_rows(tally)
            if last:
                tally.check(settings.max_reject_rate, MIN_ROWS_FOR_RATE)


def _batch_size(device: torch.device, area: int) -> int:
    return max(1, PIXELS_PER_BATCH[device.type] // area)


_NOTHING = np.empty((0, 0, 3), dtype=np.uint8)


class _Encoder:
    """Collects the pictures of a shard by size and encodes each batch as soon as it is full.

    What stands in a batch is a function of the shard's rows alone, and so, to the last bit, are the codes.
    """

    def __init__(self, vision: Emu3VQVAE, batch_size: int) -> None:
        self.vision, self.batch_size = vision, batch_size
        self.codes: dict[str, NDArray[np.uint16] | None] = {}
        self.waiting: dict[tuple[int, ...], list[PreparedImage]] = defaultdict(list)

    def take(self, row: Prepared) -> Prepared:
        """The row without its pixels."""
        if isinstance(row, Reject):
            return row
        for small in (row.source, row.target):
            if small.digest not in self.codes:
                self.codes[small.digest] = None
                batch = self.waiting[small.pixels.shape]
                batch.append(small)
                if len(batch) == self.batch_size:
                    self._encode(self.waiting.pop(small.pixels.shape))
        source, target = (PreparedImage(small.digest, _NOTHING) for small in (row.source, row.target))
        return PreparedExample(row.row, row.id, row.instruction, row.thoughts, source, target)

    def finish(self) -> dict[str, NDArray[np.uint16]]:
        """The codes uint16[h, w] of every picture since the last call, by digest."""
        for batch in self.waiting.values():
            self._encode(batch)
        codes = {digest: found for digest, found in self.codes.items() if found is not None}
        self.waiting.clear()
        self.codes = {}
        return codes

    def _encode(self, batch: Sequence[PreparedImage]) -> None:
        try:
            pixels = pixels_of([small.pixels for small in batch], self.vision.device, self.vision.dtype)
            found = encode(self.vision, pixels).cpu().numpy().astype(np.uint16)
        except OutOfMemoryError:
            if len(batch) == 1:
                raise
            self.batch_size = max(1, self.batch_size // 2)
            middle = len(batch) // 2
            self._encode(batch[:middle])
            self._encode(batch[middle:])
        else:
            self.codes |= dict(zip((small.digest for small in batch), found, strict=True))


def _tokenized(row: PreparedExample, codes: dict[str, NDArray[np.uint16]]) -> TokenizedExample:
    source, target = codes[row.source.digest], codes[row.target.digest]
    return TokenizedExample(row.row, row.id, row.instruction, source, target, row.thoughts, row.source.digest)
