"""An epoch of several data sets: whole copies, samples without repetition, one shuffle, as published."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.data.batches import Mixture, mix, sample_rows
from earl_cli.errors import UsageError

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=5)
SETS = st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 4)), min_size=1, max_size=5)


def often(mixture: Mixture, sizes: list[int]) -> list[list[int]]:
    """How often each row of each set occurs in the epoch."""
    counted = Counter(mixture.rows.tolist())
    edges = [0, *np.cumsum(sizes).tolist()]
    return [[counted[row] for row in range(start, stop)] for start, stop in pairwise(edges)]


def test_two_and_a_half_copies_are_two_of_every_row_and_a_third_of_half_of_them() -> None:
    (times,) = often(mix([10], [2.5], seed=1), [10])
    assert sorted(times) == [2] * 5 + [3] * 5


def test_a_coefficient_below_one_is_a_sample_without_repetition() -> None:
    (times,) = often(mix([10], [0.39], seed=1), [10])
    assert sorted(times) == [0] * 7 + [1] * 3  # int(3.9)


def test_without_coefficients_every_set_is_as_large_as_the_largest() -> None:
    mixture = mix([7, 3, 21], None, seed=1)
    assert mixture.counts == (21, 21, 21)
    assert mixture.coefficients == (3, 7, 1)
    seven, three, largest = often(mixture, [7, 3, 21])
    assert set(seven) == {3}
    assert set(three) == {7}
    assert set(largest) == {1}


def test_the_order_is_one_shuffle_of_the_seed() -> None:
    first, again, other = (mix([50, 30], [1, 1], seed=seed).rows.tolist() for seed in (42, 42, 43))
    assert first == again != other
    assert sorted(first) == sorted(other) == list(range(80))
    assert first != sorted(first)
    whole = sum(row >= 50 for row in first[:40])
    assert 5 < whole < 25  # the sets are among each other, not one after the other


@given(SETS, st.integers(0, 2**32))
def test_counts_are_whole_copies_and_the_published_rest(sets: list[tuple[int, float]], seed: int) -> None:
    sizes, coefficients = [size for size, _ in sets], [coefficient for _, coefficient in sets]
    expected = [int(c) * n + int(n * (c - int(c))) for n, c in sets]
    if not sum(expected):
        with pytest.raises(UsageError, match="leave no example"):
            mix(sizes, coefficients, seed)
        return
    mixture = mix(sizes, coefficients, seed)
    assert list(mixture.counts) == expected
    assert len(mixture.rows) == sum(expected)
    for times, coefficient, count in zip(often(mixture, sizes), coefficients, expected, strict=True):
        assert sum(times) == count
        assert all(int(coefficient) <= each <= int(coefficient) + 1 for each in times)


@given(SIZES, st.integers(0, 2**32))
def test_without_coefficients_no_row_is_more_than_once_oftener_than_another(sizes: list[int], seed: int) -> None:
    mixture = mix(sizes, None, seed)
    assert set(mixture.counts) == {max(sizes)}
    for times, size in zip(often(mixture, sizes), sizes, strict=True):
        assert all(each in (max(sizes) // size, max(sizes) // size + 1) for each in times)


@given(SIZES, st.integers(1, 200), st.integers(0, 5))
def test_validation_shares_its_rows_equally(sizes: list[int], budget: int, seed: int) -> None:
    chosen = sample_rows(sizes, budget, seed)
    share = max(1, budget // len(sizes))
    assert chosen.counts == tuple(min(size, share) for size in sizes)
    for times, count in zip(often(chosen, sizes), chosen.counts, strict=True):
        assert sorted(times) == [0] * (len(times) - count) + [1] * count
    assert chosen.rows.tolist() == sorted(chosen.rows.tolist())
    assert chosen.rows.tolist() == sample_rows(sizes, budget, seed).rows.tolist()


def test_validation_rows_are_a_sample_and_not_the_first_ones() -> None:
    sampled = [sample_rows([1000], 100, seed).rows for seed in range(20)]
    assert len({tuple(rows) for rows in sampled}) == 20
    assert 450 < np.mean(sampled) < 550
