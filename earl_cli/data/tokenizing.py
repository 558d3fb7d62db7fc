"""Encode the rows of a source into a store: shard by shard, in batches of equal sizes, each image once a shard.

A shard's rows depend only on the data, the seed and the settings. So an interrupted pass that is started again gives
the same store, and several processes can make shards of one store without communicating.
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
_NOTHING = np.empty((0, 0, 3), dtype=np.uint8)


@dataclass(frozen=True)
class TokenizeSettings:
    """How rows are encoded.

    ``grids`` are as in `resize_to_area`. ``seed`` None keeps the order, ``limit`` None takes all rows, ``batch_size``
    None is as many images as suit the device, ``workers`` 0 reads images in this process. ``max_reject_rate`` is the
    accepted share of rejected rows.
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
    """The progress of this process' share: rows done, and rejected rows by kind.

    ``notes`` counts the images that this process opened with a note, by note.
    """

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, rows: int, rejects: Sequence[Reject]) -> None:
        self.rows += rows
        self.rejected.update(reject.kind for reject in rejects)

    def check(self, max_rate: float, min_rows: int) -> None:
        """Raise InputError if more than the share ``max_rate`` of at least ``min_rows`` rows was rejected."""
        rejected = self.rejected.total()
        if self.rows >= min_rows and rejected > max_rate * self.rows:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.rejected.most_common())
            raise InputError(
                f"{rejected} of {self.rows} rows were left out ({kinds}), more than the share of {max_rate:g}",
                hint="the *.rejects.jsonl files name the reasons; --max-reject-rate sets the limit",
            )


def tokenize(
    source: Source,
    vision: Emu3VQVAE,
    vision_fingerprint: str,
    output: Path,
    settings: TokenizeSettings,
    dataset: str,
    on_rows: Callable[[PassProgress], None] = lambda _progress: None,
    origin: dict[str, Any] | None = None,
) -> Store:
    """Encode this process' share of ``source`` into the store at ``output``, continuing an earlier pass.

    ``on_rows`` is called after each chunk of rows. Bad rows become rejects. Raises InputError for missing columns and
    for too many rejects, UsageError if the store was made in another way, EarlError if the source fails, OutputError if
    another process does the same share; finished shards stay.
    """
    preprocess = PreprocessSettings(
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
        columns=preprocess.columns.to_dict(),
        data_fingerprint=source.fingerprint,
        origin={**(origin or {}), "rows_per_shard": settings.rows_per_shard},
        shapes=describe_shapes(settings.grids),
    )
    create_or_resume(output, manifest)
    progress = PassProgress()
    with folder_lock(output, "earl tokenize", settings.share.part):
        missing = []
        for index in filter(settings.share.owns, range(manifest.shards)):
            shard = shard_path(output, index)
            if shard.exists():
                rejects = read_rejects(shard)
                progress.add(pq.read_metadata(shard).num_rows + len(rejects), rejects)
            else:
                missing.append(index)
        on_rows(progress)
        _write_shards(output, missing, order, preprocess, vision, settings, progress, on_rows)
    progress.check(settings.max_reject_rate, 1)
    store = open_store(output)
    if store.complete:
        remove_partials(output / MANIFEST)  # of a process that was killed; while ranks start, one may be in use
    return store


def _write_shards(
    output: Path,
    shards: Sequence[int],
    order: RowOrder,
    preprocess: PreprocessSettings,
    vision: Emu3VQVAE,
    settings: TokenizeSettings,
    progress: PassProgress,
    on_rows: Callable[[PassProgress], None],
) -> None:
    """Make these shards, in this order."""
    encoder = _Encoder(vision, settings.batch_size or _batch_size(vision.device, settings.image_area))

    def chunks() -> Iterator[tuple[tuple[int, bool], list[int]]]:
        for index in shards:
            start, stop = index * settings.rows_per_shard, (index + 1) * settings.rows_per_shard
            of_shard = list(order.chunks(start, stop))
            for position, rows in enumerate(of_shard, 1):
                yield (index, position == len(of_shard)), rows

    done: list[Prepared] = []
    with prepare_ahead(preprocess, chunks(), settings.workers) as prepared:
        for (index, last), rows in prepared:
            for row in rows:
                done.append(encoder.take(row))
            rejects = [row for row in rows if isinstance(row, Reject)]
            if last:
                codes = encoder.finish()
                examples = [_tokenized(row, codes) for row in done if isinstance(row, PreparedExample)]
                write_shard(output, index, examples, [row for row in done if isinstance(row, Reject)])
                done = []
            progress.add(len(rows), rejects)
            images = (image for row in rows if isinstance(row, PreparedExample) for image in (row.source, row.target))
            progress.notes.update(note for image in images for note in image.notes)
            on_rows(progress)
            if last:
                progress.check(settings.max_reject_rate, MIN_ROWS_FOR_RATE)


def _batch_size(device: torch.device, area: int) -> int:
    return max(1, PIXELS_PER_BATCH[device.type] // area)


class _Encoder:
    """Collects the images of a shard by size and encodes each batch as soon as it is full.

    Batches are a function of the shard's rows alone, and so, to the last bit, are the codes.
    """

    def __init__(self, vision: Emu3VQVAE, batch_size: int) -> None:
        self.vision, self.batch_size = vision, batch_size
        self.codes: dict[str, NDArray[np.uint16] | None] = {}
        self.pending: dict[tuple[int, ...], list[PreparedImage]] = defaultdict(list)

    def take(self, row: Prepared) -> Prepared:
        """The row without its pixels."""
        if isinstance(row, Reject):
            return row
        for image in (row.source, row.target):
            if image.digest not in self.codes:
                self.codes[image.digest] = None
                batch = self.pending[image.pixels.shape]
                batch.append(image)
                if len(batch) == self.batch_size:
                    self._encode(self.pending.pop(image.pixels.shape))
        source, target = (PreparedImage(image.digest, _NOTHING) for image in (row.source, row.target))
        return PreparedExample(row.row, row.id, row.instruction, row.thoughts, source, target)

    def finish(self) -> dict[str, NDArray[np.uint16]]:
        """The codes uint16[h, w] of all images since the last call, by digest."""
        for batch in self.pending.values():
            self._encode(batch)
        codes = {digest: found for digest, found in self.codes.items() if found is not None}
        self.pending.clear()
        self.codes = {}
        return codes

    def _encode(self, batch: Sequence[PreparedImage]) -> None:
        try:
            pixels = pixels_of([image.pixels for image in batch], self.vision.device, self.vision.dtype)
            found = encode(self.vision, pixels).cpu().numpy().astype(np.uint16)
        except OutOfMemoryError:
            if len(batch) == 1:
                raise
            self.batch_size = max(1, self.batch_size // 2)
            middle = len(batch) // 2
            self._encode(batch[:middle])
            self._encode(batch[middle:])
        else:
            self.codes |= dict(zip((image.digest for image in batch), found, strict=True))


def _tokenized(row: PreparedExample, codes: dict[str, NDArray[np.uint16]]) -> TokenizedExample:
    source, target = codes[row.source.digest], codes[row.target.digest]
    return TokenizedExample(row.row, row.id, row.instruction, source, target, row.thoughts, row.source.digest)
