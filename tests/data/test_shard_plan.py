"""Every row once, whatever the seed, the limit, the blocks and the number of processes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earl_cli.data.shard_plan import MAX_ADJACENT_ROWS, RowOrder, ShardShare, parse_share
from earl_cli.errors import UsageError

sizes = st.lists(st.integers(1, 9) | st.just(1) | st.integers(100, 300), min_size=1, max_size=12)


def bounds(blocks: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(blocks)))


@settings(deadline=None)
@given(sizes, st.none() | st.integers(0, 3), st.none() | st.integers(1, 400), st.integers(1, 70))
def test_ranges_hold_every_row_once_in_one_order(
    blocks: list[int], seed: int | None, limit: int | None, step: int
) -> None:
    order = RowOrder(bounds(blocks), seed, limit)
    whole = order.rows(0, len(order))
    parts = [order.rows(start, start + step) for start in range(0, len(order), step)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert len(set(whole.tolist())) == len(order) == min(sum(blocks), limit or sum(blocks))
    if limit is None:
        assert sorted(whole.tolist()) == list(range(sum(blocks)))
    if seed is None:
        assert whole.tolist() == list(range(len(order)))


@settings(deadline=None)
@given(sizes, st.none() | st.integers(0, 3), st.integers(1, 70))
def test_a_chunk_is_of_one_block_or_of_single_rows(blocks: list[int], seed: int | None, step: int) -> None:
    order = RowOrder(bounds(blocks), seed)
    for start in range(0, len(order), step):
        chunks = list(order.chunks(start, start + step))
        flat = [row for chunk in chunks for row in chunk]
        assert sorted(flat) == sorted(order.rows(start, start + step).tolist())
        for chunk in chunks:
            assert chunk == sorted(chunk)
            assert len(chunk) <= MAX_ADJACENT_ROWS
            found = {int(np.searchsorted(order.bounds, row, side="right")) - 1 for row in chunk}
            assert len(found) == 1 or {blocks[block] for block in found} == {1}


def test_a_seed_shuffles_and_another_differently() -> None:
    blocks = bounds([1] * 50)
    first, again, other = (RowOrder(blocks, seed).rows(0, 50).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert first != sorted(first)
    within = RowOrder(bounds([50]), 1).rows(0, 50).tolist()
    assert within != sorted(within)


def test_a_limit_takes_the_first_of_the_same_order() -> None:
    blocks = bounds([3, 1, 5, 2])
    assert RowOrder(blocks, 7, 4).rows(0, 4).tolist() == RowOrder(blocks, 7).rows(0, 11).tolist()[:4]


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 60))
def test_shares_divide_the_shards(count: int, shards: int) -> None:
    owners = [[share for share in range(count) if ShardShare(share, count).owns(shard)] for shard in range(shards)]
    assert all(len(owner) == 1 for owner in owners)
    loads = [sum(owner == [share] for owner in owners) for share in range(count)]
    assert max(loads) - min(loads) <= 1


def test_a_share_is_from_the_option_or_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert parse_share(None) == ShardShare(0, 1)
    assert parse_share("3/8") == ShardShare(2, 8)
    assert str(ShardShare(2, 8)) == "3/8"
    monkeypatch.setenv("SLURM_PROCID", "0")  # a batch script has this without being one of several tasks
    assert parse_share(None) == ShardShare(0, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert parse_share(None) == ShardShare(0, 4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parse_share(None) == ShardShare(1, 2)
    for text in ("0/8", "9/8", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(UsageError, match="no share of the work"):
            parse_share(text)


def test_chunks_of_scattered_rows_stay_small() -> None:
    lengths = {len(chunk) for chunk in RowOrder(bounds([1] * 100)).chunks(0, 100)}
    assert lengths == {32, 4}
    together = [len(chunk) for chunk in RowOrder(bounds([300])).chunks(0, 300)]
    assert together == [128, 128, 44]
    assert all(later > earlier for earlier, later in pairwise(RowOrder(bounds([5])).rows(0, 5).tolist()))
