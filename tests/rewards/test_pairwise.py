"""Which of two edits is better: both orders, what contradictions make of it, and how sure a count is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_server import Faults, JudgeServer, random_image

from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.judge.declarations import load_rubrics
from earl_cli.rewards.judge.pairwise import (
    EditPair,
    Preference,
    PreferenceCounts,
    count_preferences,
    first_position_rate,
    prefer,
    sign_test_p,
)
from earl_cli.rewards.reward import JudgeDownError

Ask = Callable[..., Judge]
WORDS = "Both have the snow, one has more."


def some_pairs(count: int) -> list[EditPair]:
    return [
        EditPair(f"row-{n}", "make it snowy", random_image(n), random_image(n + 1000), random_image(n + 2000))
        for n in range(count)
    ]


def swapped(pair: EditPair) -> EditPair:
    return replace(pair, a=pair.b, b=pair.a)


def test_images_of_both_orders(judge: JudgeServer, ask: Ask) -> None:
    (preference,) = prefer(ask(), load_rubrics(), some_pairs(1))
    assert len(judge.calls) == 2
    one, other = (call.images for call in judge.calls)
    assert one[0] == other[0]
    assert one[1:] == other[:0:-1]
    assert len(set(one)) == 3
    assert all('"make it snowy"' in call.text and call.body["max_tokens"] == 1300 for call in judge.calls)
    assert preference.explanations == (WORDS, WORDS)


@pytest.mark.slow
def test_the_winner_doesnt_depend_on_the_order(judge: JudgeServer, ask: Ask) -> None:
    pairs = some_pairs(60)
    there = prefer(ask(), load_rubrics(), pairs)
    back = prefer(ask(), load_rubrics(), [swapped(pair) for pair in pairs])
    other = {"a": "b", "b": "a", "tie": "tie"}
    assert [other[str(each.verdict)] for each in there] == [each.verdict for each in back]
    assert [each.consistent for each in there] == [each.consistent for each in back]
    counts = count_preferences(there)
    assert min(counts.a, counts.b) > 10
    assert 0 < counts.inconsistent < counts.ties
    assert counts.a + counts.b + counts.ties == 60
    assert {each.verdict for each in there if not each.consistent} == {"tie"}


@pytest.mark.parametrize(("favours", "rate"), [("1", 1.0), ("2", 0.0)])
def test_a_judge_with_position_bias_gives_ties(favours: str, rate: float, judge: JudgeServer, ask: Ask) -> None:
    judge.fixed_choice = favours
    preferences = prefer(ask(), load_rubrics(), some_pairs(5))
    assert count_preferences(preferences) == PreferenceCounts(a=0, b=0, ties=5, inconsistent=5, missing=0)
    assert first_position_rate(preferences) == rate


def test_two_ties_agree(judge: JudgeServer, ask: Ask) -> None:
    judge.fixed_choice = "tie"
    preferences = prefer(ask(), load_rubrics(), some_pairs(3))
    assert count_preferences(preferences) == PreferenceCounts(a=0, b=0, ties=3, inconsistent=0, missing=0)
    assert math.isnan(first_position_rate(preferences))


def test_the_position_rate_is_half_without_bias() -> None:
    steady = [Preference("a", chose_first=(True, False)), Preference("b", chose_first=(False, True))]
    assert first_position_rate(steady) == 0.5
    half = Preference("tie", consistent=False, chose_first=(True, None))
    assert first_position_rate([*steady, half]) == 3 / 5
    assert math.isnan(first_position_rate([]))


def test_an_invalid_edit_loses_without_a_prompt(judge: JudgeServer, ask: Ask) -> None:
    (pair,) = some_pairs(1)
    gaps = [replace(pair, b=None), replace(pair, a=None), replace(pair, a=None, b=None), replace(pair, b=pair.a)]
    preferences = prefer(ask(), load_rubrics(), gaps)
    assert [each.verdict for each in preferences] == ["a", "b", "tie", "tie"]
    assert all(each.consistent and each.explanations == ("", "") for each in preferences)
    assert judge.calls == []
    assert math.isnan(first_position_rate(preferences))


def test_missing_edits_dont_shift_verdicts(judge: JudgeServer, ask: Ask) -> None:
    pairs = some_pairs(12)
    whole = prefer(ask(), load_rubrics(), pairs)
    gaps = [replace(pair, b=None) if n % 3 == 0 else pair for n, pair in enumerate(pairs)]
    found = prefer(ask(), load_rubrics(), gaps)
    assert found == [Preference("a") if n % 3 == 0 else each for n, each in enumerate(whole)]


def test_a_failed_prompt_gives_no_verdict(judge: JudgeServer, ask: Ask) -> None:
    good, bad = some_pairs(2)
    judge.fails_on = "make it rain"
    kept, failed = prefer(ask(), load_rubrics(), [good, replace(bad, instruction="make it rain")])
    assert kept.verdict is not None
    assert (failed.verdict, failed.explanations, failed.chose_first) == (None, ("", ""), (None, None))
    assert "status 500" in failed.missing
    assert count_preferences([kept, failed]).missing == 1


@pytest.mark.slow
def test_an_answer_in_one_order_is_no_verdict(judge: JudgeServer, ask: Ask) -> None:
    judge.faults = Faults(0.85, kinds=("unreadable",), max_failures=math.inf)
    preferences = prefer(ask(), load_rubrics(), some_pairs(40))
    halves = [each for each in preferences if sorted(each.explanations) == ["", WORDS]]
    assert halves
    assert all(each.verdict is None and "can't be read" in each.missing for each in halves)
    assert math.isnan(first_position_rate(halves))


def test_faults_change_no_verdict(judge: JudgeServer, ask: Ask) -> None:
    healthy = prefer(ask(), load_rubrics(), some_pairs(15))
    judge.reset()
    judge.faults = Faults(0.3, slow=0.6)
    assert prefer(ask(timeout=0.5), load_rubrics(), some_pairs(15)) == healthy
    assert any(call.fault for call in judge.calls)


def test_a_judge_that_is_down_is_a_judge_down_error(judge: JudgeServer, ask: Ask) -> None:
    judge.is_down = True
    with pytest.raises(JudgeDownError):
        prefer(ask(), load_rubrics(), some_pairs(1))


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1),
        (1, 0, 1),
        (5, 0, 2 / 32),
        (0, 5, 2 / 32),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1),
        (9, 1, 22 / 1024),
    ],
)
def test_the_sign_test_by_hand(wins: int, losses: int, p: float) -> None:
    assert sign_test_p(wins, losses) == pytest.approx(p)


def test_the_sign_test_of_thousands() -> None:
    assert sign_test_p(2000, 2000) == 1
    assert sign_test_p(4000, 0) == 0  # less than any float
    assert sign_test_p(1050, 950) == pytest.approx(math.erfc((100 - 1) / math.sqrt(2 * 2000)), rel=1e-2)


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_sign_test_counts_all_ways(wins: int, losses: int) -> None:
    count = wins + losses
    falls = [sum(coins) for coins in product((0, 1), repeat=count)]
    uneven = sum(abs(2 * ones - count) >= abs(wins - losses) for ones in falls)
    assert sign_test_p(wins, losses) == pytest.approx(uneven / 2**count)
