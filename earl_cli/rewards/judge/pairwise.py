"""Which of two edits a judge prefers, in both orders, so that a position bias doesn't decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from earl_cli.rewards.judge.client import Judge, Judgement, JudgePrompt
from earl_cli.rewards.judge.declarations import Rubrics, format_rubric
from earl_cli.rewards.judge.replies import FIRST, SECOND, TIE
from earl_cli.rewards.reward import Pixels

Verdict: TypeAlias = Literal["a", "b", "tie"]


@dataclass(frozen=True, eq=False)
class EditPair:
    """Two edits ``a`` and ``b`` of one source, uint8[h, w, 3] of any sizes, None where the edit is invalid."""

    id: str
    instruction: str
    source: Pixels
    a: Pixels | None
    b: Pixels | None


@dataclass(frozen=True)
class Preference:
    """A judge's verdict on a pair, None where it gave none; then ``missing`` says why.

    ``consistent`` is False where the two orders contradict each other. ``explanations`` are the judge's reasoning with
    a first and with b first. ``chose_first`` is whether it chose the edit in the first position, in these two orders:
    None for a tie, or where one of the orders has no verdict.
    """

    verdict: Verdict | None
    consistent: bool = True
    explanations: tuple[str, str] = ("", "")
    missing: str = ""
    chose_first: tuple[bool | None, bool | None] = (None, None)


@dataclass(frozen=True)
class PreferenceCounts:
    """Pairs that ``a`` won, that ``b`` won, ``ties`` (``inconsistent`` of which by contradiction), and ``missing``."""

    a: int
    b: int
    ties: int
    inconsistent: int
    missing: int


def prefer(judge: Judge, rubrics: Rubrics, pairs: Sequence[EditPair]) -> list[Preference]:
    """One preference for each pair, in order.

    An edit wins if it wins in both orders; any other two verdicts are a tie. No request is made where one edit is
    invalid (the other wins) or both are, or where both are the same image (ties). Raises as `Judge.ask_all`.
    """
    known = [_without_judge(pair) for pair in pairs]
    open_pairs = [pair for pair, preference in zip(pairs, known, strict=True) if preference is None]
    prompts = [prompt for pair in open_pairs for prompt in _both_orders(rubrics, pair)]
    judgements = iter(judge.ask_all(prompts) if prompts else [])
    return [preference or _preference(next(judgements), next(judgements)) for preference in known]


def count_preferences(preferences: Sequence[Preference]) -> PreferenceCounts:
    """How often each verdict came."""
    verdicts = [each.verdict for each in preferences]
    return PreferenceCounts(
        a=verdicts.count("a"),
        b=verdicts.count("b"),
        ties=verdicts.count("tie"),
        inconsistent=sum(not each.consistent for each in preferences),
        missing=verdicts.count(None),
    )


def first_position_rate(preferences: Sequence[Preference]) -> float:
    """The share of choices of the first position: 0.5 without position bias, NaN without choices.

    Only pairs with verdicts in both orders count.
    """
    choices = [first for each in preferences for first in each.chose_first if first is not None]
    return sum(choices) / len(choices) if choices else math.nan


def sign_test_p(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test: the probability that ``wins`` + ``losses`` fair coins fall at least as
    unevenly.

    Ties don't count, and pairs are taken as independent; 1 without wins and losses.
    """
    count = wins + losses
    ways = tail = 1  # n over k, and their sum up to k
    for k in range(min(wins, losses)):
        ways = ways * (count - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << count))


def _without_judge(pair: EditPair) -> Preference | None:
    if pair.a is None or pair.b is None:
        return Preference("a" if pair.a is not None else "b" if pair.b is not None else "tie")
    return Preference("tie") if np.array_equal(pair.a, pair.b) else None


def _both_orders(rubrics: Rubrics, pair: EditPair) -> tuple[JudgePrompt, JudgePrompt]:
    assert pair.a is not None and pair.b is not None
    text = format_rubric(rubrics.pairwise, pair.instruction)
    orders = (pair.source, pair.a, pair.b), (pair.source, pair.b, pair.a)
    a_first, b_first = (JudgePrompt(text, images, "choice", max_tokens=1300) for images in orders)
    return a_first, b_first


def _preference(a_first: Judgement, b_first: Judgement) -> Preference:
    """From the judgements with a first and with b first."""
    if a_first.scores is None or b_first.scores is None:
        explanations = _explanation(a_first), _explanation(b_first)
        missing = (a_first if a_first.scores is None else b_first).text
        return Preference(None, explanations=explanations, missing=missing)
    choices = a_first.scores[0], b_first.scores[0]
    verdict: Verdict = "a" if choices == (FIRST, SECOND) else "b" if choices == (SECOND, FIRST) else "tie"
    consistent = verdict != "tie" or choices == (TIE, TIE)
    chose_first = _is_first(choices[0]), _is_first(choices[1])
    return Preference(verdict, consistent, (a_first.text, b_first.text), chose_first=chose_first)


def _explanation(judgement: Judgement) -> str:
    return "" if judgement.scores is None else judgement.text


def _is_first(choice: float) -> bool | None:
    return None if choice == TIE else choice == FIRST
