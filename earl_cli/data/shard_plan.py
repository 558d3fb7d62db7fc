"""The order of a pass over data and its division into shards: functions of the seed alone, with no state."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from earl_cli.errors import UsageError

RowNumbers = NDArray[np.int64]
MAX_ADJACENT_ROWS, MAX_SCATTERED_ROWS = 128, 32
"""Rows of one read: of one block of the source, and from anywhere."""


@dataclass(frozen=True, eq=False)
class RowOrder:
    """The order of rows.

    With a seed, blocks of rows that are cheap to read together (``bounds``, as in `Source`) are shuffled, and the rows
    within each. A source with random access has one row a block, so for it this is a full shuffle. ``limit`` cuts the
    order.
    """

    bounds: RowNumbers
    seed: int | None = None
    limit: int | None = None

    def __len__(self) -> int:
        rows = int(self.bounds[-1])
        return rows if self.limit is None else min(rows, self.limit)

    def rows(self, start: int, stop: int) -> RowNumbers:
        """The numbers of the rows at positions ``start`` to ``stop``."""
        stop = min(stop, len(self))
        if self.seed is None:
            return np.arange(start, stop)
        blocks, ends = self._shuffled
        first, last = np.searchsorted(ends, (start, stop - 1), side="right")
        parts = []
        for place in range(first, last + 1):
            block = blocks[place]
            size = int(self.bounds[block + 1] - self.bounds[block])
            begin = int(ends[place]) - size
            within = np.arange(1) if size == 1 else np.random.default_rng((self.seed, block)).permutation(size)
            parts.append(self.bounds[block] + within[max(0, start - begin) : stop - begin])
        return np.concatenate(parts)

    @cached_property
    def _shuffled(self) -> tuple[RowNumbers, RowNumbers]:
        """The blocks in their new order, and the position at which each ends."""
        blocks = np.random.default_rng(self.seed).permutation(len(self.bounds) - 1)
        return blocks, np.cumsum(np.diff(self.bounds)[blocks])

    def chunks(self, start: int, stop: int) -> Iterator[list[int]]:
        """The same rows in chunks of one read each, ascending within a chunk."""
        rows = self.rows(start, stop)
        blocks = np.searchsorted(self.bounds, rows, side="right") - 1
        alone = np.diff(self.bounds)[blocks] == 1
        begin = 0
        for here in range(1, len(rows) + 1):
            together = here < len(rows) and (blocks[here] == blocks[begin] or (alone[here] and alone[begin]))
            if not together or here - begin == (MAX_SCATTERED_ROWS if alone[begin] else MAX_ADJACENT_ROWS):
                yield np.sort(rows[begin:here]).tolist()
                begin = here


@dataclass(frozen=True)
class ShardShare:
    """This process' share of the work: the shards whose number is ``index`` modulo ``count``."""

    index: int = 0
    count: int = 1

    @property
    def part(self) -> str:
        """``i/n``, empty for all of the work."""
        return str(self) if self.count > 1 else ""

    def owns(self, shard: int) -> bool:
        return shard % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


def parse_share(text: str | None) -> ShardShare:
    """A share as ``i/n``, counted from 1; without a text, the rank that torchrun or srun gave this process.

    Raises UsageError for anything else.
    """
    if text is None:
        for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
            if rank in os.environ and world in os.environ:
                return ShardShare(int(os.environ[rank]), int(os.environ[world]))
        return ShardShare()
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"{text!r} is no share of the work", where="--shard", hint="1/8 to 8/8 for eight processes")
    return ShardShare(int(match[1]) - 1, int(match[2]))
