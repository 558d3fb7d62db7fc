"""Means, intervals and differences: against formulas, by coverage, and where there is next to nothing to count."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.evaluation.results import EditResult, EvalRun, ScoredResult
from earl_cli.evaluation.statistics import _tail, columns_of, compare, estimate, sign_flip_p, summarize


def run_of(values: list[float | None], column: str = "vie_all", *, seeds: int = 1, **more: list[str]) -> EvalRun:
    """A run with these values, two samples an image; with several seeds a sample has that many values in a row."""
    from pathlib import Path

    lines = []
    for index, value in enumerate(values):
        number = index // seeds
        fields = {name: column[number] for name, column in more.items()}
        result = EditResult(
            number, index % seeds, f"s{number}", "go", "a.png", "b.png", picture=f"p{number // 2}", **fields
        )
        scores, missing = ({column: value}, {}) if value is not None else ({}, {column: "no answer"})
        lines.append(ScoredResult(result, scores, missing))
    return EvalRun(Path(), "b", "e", {}, {}, tuple(lines))


def test_a_mean_has_the_published_deviation_and_counts_what_is_missing() -> None:
    found = estimate([1.0, 2.0, None, 6.0, 1.0, 5.0], ["a", "b", "c", "d", "e", "f"])
    assert (found.mean, found.count, found.missing) == (3.0, 5, 1)
    assert found.std == pytest.approx(math.sqrt((4 + 1 + 9 + 4 + 4) / 5))
    assert found.low < 3.0 < found.high


def test_an_interval_is_as_wide_as_the_formula_says() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = estimate(values, [str(number) for number in range(400)])
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


def test_samples_of_one_image_count_as_one() -> None:
    values = np.repeat(np.random.default_rng(2).normal(5, 2, 40), 10)
    together = estimate(values, [str(number // 10) for number in range(400)])
    apart = estimate(values, [str(number) for number in range(400)])
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(math.sqrt(10), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("images", [6, 8, 25])
def test_an_interval_holds_the_true_mean_as_often_as_it_claims(images: int) -> None:
    rng = np.random.default_rng(3)
    names = [str(number) for number in range(images)]
    hits = 0
    for _ in range(200):
        found = estimate(rng.normal(1.0, 1.0, images), names)
        hits += found.low <= 1.0 <= found.high
    assert 180 <= hits <= 198


@pytest.mark.parametrize(("clusters", "quantile"), [(5, 2.7764), (6, 2.5706), (8, 2.3646), (11, 2.2281), (61, 2.0003)])
def test_few_clusters_get_students_width(clusters: int, quantile: float) -> None:
    expected = NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * quantile)
    assert _tail(clusters) == pytest.approx(expected, rel=0.005)


def test_a_metric_that_a_sample_cant_have_isnt_missing() -> None:
    run = run_of([1.0, None, 3.0])
    without_target = replace(run.lines[0], scores={}, missing={})
    (group,) = summarize(replace(run, lines=(without_target, *run.lines[1:])))
    assert (group.columns["vie_all"].count, group.columns["vie_all"].missing) == (1, 1)


@pytest.mark.parametrize("values", [[], [None], [None, None]])
def test_nothing_to_count_is_no_number(values: list[float | None]) -> None:
    run = run_of(values)
    for group in summarize(run):
        assert all(math.isnan(each.mean) and math.isnan(each.low) for each in group.columns.values())
    assert compare(run, run, "vie_all") is None


@pytest.mark.parametrize(("images", "has_interval"), [(1, False), (4, False), (5, True)])
def test_few_images_have_a_mean_and_no_interval(images: int, has_interval: bool) -> None:
    found = estimate([float(number) for number in range(30)], [str(number % images) for number in range(30)])
    assert found.mean == 14.5
    assert math.isnan(found.low) == math.isnan(found.high) == (not has_interval)


def test_groups_by_source_task_both_and_seed() -> None:
    tasks, sources = ["add", "add", "style"], ["x", "y", "y"]
    run = run_of([1.0, 3.0, 5.0, 7.0, 9.0, 11.0], seeds=2, task=tasks, source=sources)
    means = {(group.by, group.key): group.columns["vie_all"].mean for group in summarize(run)}
    assert means == {
        ("all", "all"): 6.0,
        ("source", "x"): 2.0,
        ("source", "y"): 8.0,
        ("task", "add"): 4.0,
        ("task", "style"): 10.0,
        ("source x task", "x x add"): 2.0,
        ("source x task", "y x add"): 6.0,
        ("source x task", "y x style"): 10.0,
        ("seed", "0"): 5.0,
        ("seed", "1"): 7.0,
    }


def test_what_is_the_same_in_all_lines_makes_no_group() -> None:
    assert [group.by for group in summarize(run_of([1.0, 2.0], task=["a", "a"]))] == ["all"]


def test_columns_come_in_one_order_also_if_all_their_values_are_missing() -> None:
    assert columns_of([run_of([1.0], "psnr"), run_of([None], "vie_pq"), run_of([1.0], "l1")]) == [
        "vie_pq",
        "l1",
        "psnr",
    ]


def test_a_difference_pairs_samples() -> None:
    noise = np.random.default_rng(4).normal(0, 5, 40)
    a, b = run_of(list(noise)), run_of([*(noise[:-1] + 0.5), None])
    found = compare(a, b, "vie_all")
    assert found is not None
    assert found.difference == pytest.approx(0.5)
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (found.wins, found.ties, found.losses) == (39, 0, 0)
    assert found.p < 0.001
    assert found.mean_b - found.mean_a == pytest.approx(found.difference)
    assert found.pictures == 20


def test_where_less_is_better_less_wins() -> None:
    found = compare(run_of([1.0, 1.0, 1.0], "l1"), run_of([0.5, 1.0, 2.0], "l1"), "l1")
    assert found is not None
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)


def test_seeds_of_a_sample_are_averaged_so_that_numbers_of_seeds_may_differ() -> None:
    found = compare(run_of([1.0, 2.0, 3.0]), run_of([2.0, 4.0, 2.0, 4.0, 2.0, 4.0], seeds=2), "vie_all")
    assert found is not None
    assert found.difference == pytest.approx(1.0)


@given(st.lists(st.floats(-10, 10).filter(lambda value: abs(value) > 1e-6), min_size=1, max_size=8))
def test_p_is_the_share_of_signs_that_give_as_much(changes: list[float]) -> None:
    totals = [
        sum(s * c for s, c in zip(signs, changes, strict=True))
        for signs in itertools.product((1, -1), repeat=len(changes))
    ]
    expected = np.mean(np.abs(totals) >= abs(sum(changes)) - 1e-9)
    found = sign_flip_p(np.asarray(changes), [str(number) for number in range(len(changes))])
    assert found == pytest.approx(expected)


def test_p_of_many_images_is_near_the_exact_one_and_never_zero() -> None:
    change = np.random.default_rng(5).normal(0.25, 1, 60)
    found = sign_flip_p(change, [str(number) for number in range(60)])
    z = abs(change.sum()) / math.sqrt((change**2).sum())
    assert found == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)
    assert 0 < sign_flip_p(np.ones(60), [str(number) for number in range(60)]) < 0.001


def test_under_no_difference_p_is_uniform() -> None:
    rng = np.random.default_rng(6)
    names = [str(number) for number in range(12)]
    found = [sign_flip_p(rng.normal(0, 1, 12), names) for _ in range(200)]
    assert np.mean(np.asarray(found) < 0.2) == pytest.approx(0.2, abs=0.09)
