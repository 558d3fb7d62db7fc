"""Which of two edits a judge likes better: asked in both orders, so that liking what comes first decides nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from earl_cli.rewards.judge.client import Answer, Judge, Question
from earl_cli.rewards.judge.declarations import Rubrics, asked
from earl_cli.rewards.judge.replies import FIRST, SECOND, TIE
from earl_cli.rewards.reward import Pixels

Verdict: TypeAlias = Literal["a", "b", "tie"]


@dataclass(frozen=True, eq=False)
class EditPair:
    """Two edits ``a`` and ``b`` of one source, uint8[h, w, 3] of any sizes, None where nothing was drawn."""

    id: str
    instruction: str
    source: Pixels
    a: Pixels | None
    b: Pixels | None


@dataclass(frozen=True)
class Preference:
    """What a judge made of a pair: ``verdict`` None where it wasn't said, and in ``missing`` why.

    ``consistent`` is False where the two orders contradict each other. ``explanations`` are the judge's words with a
    first and with b first. ``firsts`` is whether it took what came first, None where it took neither, or where not both
    orders were answered.
    """

    verdict: Verdict | None
    consistent: bool = True
    explanations: tuple[str, str] = ("", "")
    missing: str = ""
    firsts: tuple[bool | None, bool | None] = (None, None)


@dataclass(frozen=True)
class PreferenceCounts:
    """Pairs that ``a`` won, that ``b`` won, ``ties`` (``inconsistent`` of them by contradiction), and ``missing``."""

    a: int
    b: int
    ties: int
    inconsistent: int
    missing: int


def prefer(judge: Judge, rubrics: Rubrics, pairs: Sequence[EditPair]) -> list[Preference]:
    """One preference for each pair, in order.

    The winner is who wins in both orders; whatever else two answers are is a tie. Nothing is asked where one edit or
    none was drawn (the drawn one wins), or where both are the same picture (a tie). Raises as `Judge.ask_all`.
    """
    known = [_without_judge(pair) for pair in pairs]
    open_pairs = [pair for pair, preference in zip(pairs, known, strict=True) if preference is None]
    questions = [each for pair in open_pairs for each in _both_orders(rubrics, pair)]
    answers = iter(judge.ask_all(questions) if questions else [])
    return [preference or _preference(next(answers), next(answers)) for preference in known]


def tally(preferences: Sequence[Preference]) -> PreferenceCounts:
    """How often each verdict came."""
    verdicts = [each.verdict for each in preferences]
    return PreferenceCounts(
        a=verdicts.count("a"),
        b=verdicts.count("b"),
        ties=verdicts.count("tie"),
        inconsistent=sum(not each.consistent for each in preferences),
        missing=verdicts.count(None),
    )


def first_rate(preferences: Sequence[Preference]) -> float:
    """The share of the choices that fell on what came first: 0.5 without position bias; NaN without a choice.

    Only pairs count that were answered in both orders.
    """
    choices = [first for each in preferences for first in each.firsts if first is not None]
    return sum(choices) / len(choices) if choices else math.nan


def sign_test_p(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test: of ``wins`` + ``losses`` fair coins, how often they fall as unevenly.

    Ties are left out, and pairs count as independent; 1 where nobody won.
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


def _both_orders(rubrics: Rubrics, pair: EditPair) -> tuple[Question, Question]:
    assert pair.a is not None and pair.b is not None
    text = asked(rubrics.pairwise, pair.instruction)
    orders = (pair.source, pair.a, pair.b), (pair.source, pair.b, pair.a)
    there, back = (Question(text, pictures, reads="choice", max_tokens=1300) for pictures in orders)
    return there, back


def _preference(there: Answer, back: Answer) -> Preference:
    """From the answers with a first and with b first."""
    if there.numbers is None or back.numbers is None:
        words = _words(there), _words(back)
        return Preference(None, explanations=words, missing=(there if there.numbers is None else back).text)
    choices = there.numbers[0], back.numbers[0]
    verdict: Verdict = "a" if choices == (FIRST, SECOND) else "b" if choices == (SECOND, FIRST) else "tie"
    consistent = verdict != "tie" or choices == (TIE, TIE)
    firsts = _is_first(choices[0]), _is_first(choices[1])
    return Preference(verdict, consistent, (there.text, back.text), firsts=firsts)


def _words(answer: Answer) -> str:
    return "" if answer.numbers is None else answer.text


def _is_first(choice: float) -> bool | None:
    return None if choice == TIE else choice == FIRST
