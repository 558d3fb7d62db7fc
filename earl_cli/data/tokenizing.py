"""Pairs of pictures to codes: shard by shard, equal sizes together, every source encoded once a shard.

A shard's rows depend only on the data, the seed and the settings, never on what was done before it; so an interrupted
pass that is started again ends in the same store.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from earl_cli.data.pairs import Pair
from earl_cli.data.store import (
    Manifest,
    Store,
    TokenizedPair,
    create_or_resume,
    open_store,
    shard_count,
    shard_path,
    write_shard,
)
from earl_cli.errors import InputError
from earl_cli.images.area import resize_to_area
from earl_cli.images.picture import open_picture
from earl_cli.models.vision import encode, pixels_of

if TYPE_CHECKING:
    from transformers import Emu3VQVAE

ROWS_PER_SHARD = 512
BATCH_PIXELS = 16 * 96 * 96


@dataclass(frozen=True)
class TokenizeSettings:
    """How pairs become codes; ``seed`` None keeps their order, ``limit`` None takes them all."""

    image_area: int
    seed: int | None = None
    limit: int | None = None
    rows_per_shard: int = ROWS_PER_SHARD
    workers: int = 2


def tokenize_pairs(
    pairs: Sequence[Pair],
    vision: Emu3VQVAE,
    vision_fingerprint: str,
    output: Path,
    settings: TokenizeSettings,
    dataset: str,
    on_rows: Callable[[int], None],
) -> Store:
    """Encode all pairs into the store at ``output``, going on where an earlier pass of the same kind stopped.

    ``on_rows`` is told of every finished shard's rows. A row whose picture can't be read goes to the rejects.
    """
    chosen = _order(pairs, settings)
    manifest = Manifest(
        codes=int(vision.config.codebook_size),
        vision_fingerprint=vision_fingerprint,
        image_area=settings.image_area,
        dataset=dataset,
        rows=len(chosen),
        rows_per_shard=settings.rows_per_shard,
        seed=settings.seed,
        data_fingerprint=_fingerprint(chosen),
    )
    create_or_resume(output, manifest)
    with ThreadPoolExecutor(settings.workers) as pool:
        for index in range(shard_count(manifest)):
            rows = chosen[index * settings.rows_per_shard : (index + 1) * settings.rows_per_shard]
            if not shard_path(output, index).exists():
                write_shard(output, index, *_tokenize_shard(rows, vision, settings, pool))
            on_rows(len(rows))
    return open_store(output)


def _order(pairs: Sequence[Pair], settings: TokenizeSettings) -> list[Pair]:
    order = np.arange(len(pairs))
    if settings.seed is not None:
        order = np.random.default_rng(settings.seed).permutation(len(pairs))
    return [pairs[i] for i in order[: settings.limit]]


def _fingerprint(pairs: Iterable[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        row = [pair.id, pair.instruction, pair.source.name, pair.target.name, dict(pair.thoughts)]
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class _Prepared:
    digest: str
    image: Image.Image


def _prepare(path: Path, area: int) -> _Prepared | str:
    """The picture at the model's size and the file's hash, or why it can't be had."""
    try:
        content = path.read_bytes()
        picture = open_picture(content, name=str(path))
        return _Prepared(hashlib.sha256(content).hexdigest(), resize_to_area(picture.rgb, area))
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror}"


def _tokenize_shard(
    rows: Sequence[Pair], vision: Emu3VQVAE, settings: TokenizeSettings, pool: ThreadPoolExecutor
) -> tuple[list[TokenizedPair], list[tuple[str, str]]]:
    paths = list(dict.fromkeys(path for row in rows for path in (row.source, row.target)))
    prepared = dict(zip(paths, pool.map(lambda path: _prepare(path, settings.image_area), paths), strict=True))
    images = {found.digest: found.image for found in prepared.values() if isinstance(found, _Prepared)}
    codes = _encode_all(images, vision)
    done, rejects = [], []
    for row in rows:
        source, target = prepared[row.source], prepared[row.target]
        if isinstance(source, str) or isinstance(target, str):
            rejects.append((row.id, source if isinstance(source, str) else str(target)))
        else:
            done.append(
                TokenizedPair(
                    row.id, row.instruction, codes[source.digest], codes[target.digest], row.thoughts, source.digest
                )
            )
    return done, rejects


def _encode_all(images: dict[str, Image.Image], vision: Emu3VQVAE) -> dict[str, NDArray[np.uint16]]:
    """Codes uint16[h, w] of every picture, those of one size in batches."""
    by_size: dict[tuple[int, int], list[str]] = defaultdict(list)
    for digest, image in images.items():
        by_size[image.size].append(digest)
    codes: dict[str, NDArray[np.uint16]] = {}
    for (width, height), digests in by_size.items():
        step = max(1, BATCH_PIXELS // (width * height))
        for start in range(0, len(digests), step):
            batch = digests[start : start + step]
            found = encode(vision, pixels_of([images[digest] for digest in batch], vision.device, vision.dtype))
            codes |= dict(zip(batch, found.cpu().numpy().astype(np.uint16), strict=True))
    return codes
