"""Rewards that a judge gives: VIEScore (arXiv 2312.14867) without a true edit, the ground score with one, their mix.

All are from 0 to 10. An edit that was never drawn is worth 0; what a judge didn't say is worth nothing, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from earl_cli.rewards.judge.client import Answer, Judge, Question
from earl_cli.rewards.judge.declarations import Rubrics, asked
from earl_cli.rewards.reward import Edit, Reward, Score

MIXED = "sqrt(viescore_pqxground_score)"
JUDGED: Mapping[str, tuple[str, ...]] = {  # what each reward asks
    "viescore": ("semantic_consistency", "perceptual_quality"),
    "ground_score": ("ground_score",),
    MIXED: ("perceptual_quality", "ground_score"),
}
PARTS = {
    "semantic_consistency": ("edit_success", "overedit"),
    "perceptual_quality": ("looks_natural", "no_artifact"),
    "ground_score": (),
}
EXPLAINED = {"semantic_consistency": "sc", "perceptual_quality": "pq", "ground_score": "ground_score"}
NO_TARGET = "there is no true edit to compare with"
Asking: TypeAlias = Callable[[Edit], Question | None]


def judged(judge: Judge, rubrics: Rubrics, name: str, also: Collection[str] = ()) -> Reward:
    """The reward ``name`` of `JUDGED`; what those named in ``also`` ask is asked too, and counts among the parts only.

    viescore = sqrt(SC * PQ), where SC and PQ are each the lesser of the two numbers that the judge gives.
    """
    asks = _questions(rubrics)
    needed = tuple(task for task in asks if any(task in JUDGED[each] for each in {name, *also}))

    def reward(edits: Sequence[Edit], /) -> list[Score]:
        wanted = {
            (index, task): question
            for index, edit in enumerate(edits)
            if edit.edited is not None
            for task in needed
            if (question := asks[task](edit)) is not None
        }
        answers = dict(zip(wanted, judge.ask_all(list(wanted.values())), strict=True))
        scores = []
        for index, edit in enumerate(edits):
            if edit.edited is None:
                scores.append(_nothing_drawn(name, needed))
            else:
                found = {task: answers.get((index, task), Answer(None, NO_TARGET)) for task in needed}
                scores.append(_score(name, found))
        return scores

    return reward


def _questions(rubrics: Rubrics) -> Mapping[str, Asking]:
    def consistency(edit: Edit) -> Question | None:
        assert edit.edited is not None
        return Question(asked(rubrics.semantic_consistency, edit.instruction), (edit.source, edit.edited))

    def quality(edit: Edit) -> Question | None:
        assert edit.edited is not None
        return Question(rubrics.perceptual_quality, (edit.edited,))

    def ground(edit: Edit) -> Question | None:
        assert edit.edited is not None
        if edit.target is None:
            return None
        text = asked(rubrics.ground_score, edit.instruction)
        return Question(text, (edit.target, edit.edited), reads="tag", max_tokens=1300, temperature=0.3)

    return {"semantic_consistency": consistency, "perceptual_quality": quality, "ground_score": ground}


def _score(name: str, found: Mapping[str, Answer]) -> Score:
    parts: dict[str, float] = {}
    for task, answer in found.items():
        if answer.numbers is not None:
            parts |= dict(zip(PARTS[task], answer.numbers, strict=False))
            parts[task] = min(answer.numbers)
    for combined in (name, *JUDGED):
        if combined not in parts and all(task in parts for task in JUDGED[combined]):
            parts[combined] = math.sqrt(math.prod(parts[task] for task in JUDGED[combined]))
    reason = "\n".join(f"{task.replace('_', ' ')}: {answer.text}" for task, answer in found.items())
    explanations = {EXPLAINED[task]: answer.text for task, answer in found.items() if answer.numbers is not None}
    missing = {task: answer.text for task, answer in found.items() if answer.numbers is None}
    return Score(parts.get(name), parts, reason, explanations, missing)


def _nothing_drawn(name: str, needed: Sequence[str]) -> Score:
    zeros = {task: Answer((0.0,) * max(1, len(PARTS[task])), "") for task in needed}
    return replace(_score(name, zeros), reason="there is no finished picture", explanations={})
