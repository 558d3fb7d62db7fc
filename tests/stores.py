"""Random small token stores, for tests that need some."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from earl_cli.data.store import Manifest, Reject, Store, TokenizedExample, create_or_resume, open_store, write_shard

CODES = 512
INSTRUCTIONS = ("make it snowy", "  turn the\tday into night ", "给它一点雪", "add a red «boat» [1, 2, 30, 40]", "fog")
ROWS, PER_SHARD, REJECTED = 20, 6, (7, 8)
SHARDS = 4


def random_pair(row: int, seed: int = 0) -> TokenizedExample:
    rng = np.random.default_rng((seed, row))

    def codes() -> np.ndarray[Any, np.dtype[np.uint16]]:
        return rng.integers(0, CODES, rng.integers(1, 4, 2)).astype(np.uint16)

    thoughts = {"plan": "look\nthere" * row, "boxes": "[1, 2]"} if row % 3 == 0 else {}
    digest = hashlib.sha256(str(row // 2).encode()).hexdigest() if row % 5 else ""
    instruction = INSTRUCTIONS[int(rng.integers(len(INSTRUCTIONS)))]
    return TokenizedExample(row, f"p/{seed}-{row}", instruction, codes(), codes(), thoughts, digest)


def write_store(
    folder: Path,
    *,
    seed: int = 0,
    shards: Iterable[int] = range(SHARDS),
    numbers: Sequence[int] = range(ROWS),
    rejected: Sequence[int] = REJECTED,
    **manifest: Any,
) -> Store:
    """A store of rows with these ``numbers``, those of ``rejected`` left out; of it only some ``shards``."""
    usual = Manifest(
        codes=CODES,
        vision_fingerprint="vq",
        image_area=1024,
        dataset=f"set {seed}",
        rows=len(numbers),
        shards=-(-len(numbers) // PER_SHARD),
        seed=None,
        columns={"instruction": "text"},
        data_fingerprint=f"data {seed}",
        origin={"model": "a/model"},
    )
    create_or_resume(folder, replace(usual, **manifest))
    for index in shards:
        rows = numbers[index * PER_SHARD : (index + 1) * PER_SHARD]
        examples = [random_pair(row, seed) for row in rows if row not in rejected]
        kinds = {row: "image" if row % 2 else "text" for row in rejected}
        rejects = [Reject(row, f"p/{seed}-{row}", kinds[row], "«torn»") for row in rows if row in rejected]
        write_shard(folder, index, examples, rejects)
    return open_store(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
