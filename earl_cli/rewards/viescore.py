"""Rewards by a judge: VIEScore (arXiv 2312.14867), which needs no target, the ground score, which does, and their mix.

All are from 0 to 10. An invalid or incomplete edit scores 0; where the judge gave no score, there is none, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from earl_cli.rewards.judge.client import Judge, Judgement, JudgePrompt
from earl_cli.rewards.judge.declarations import Rubrics, format_rubric
from earl_cli.rewards.reward import NO_TARGET, Edit, Reward, Score

MIXED_REWARD = "sqrt(viescore_pqxground_score)"
JUDGED_REWARDS: Mapping[str, tuple[str, ...]] = {  # the tasks of the judge that each reward combines
    "viescore": ("semantic_consistency", "perceptual_quality"),
    "ground_score": ("ground_score",),
    MIXED_REWARD: ("perceptual_quality", "ground_score"),
}
SUBSCORES = {
    "semantic_consistency": ("edit_success", "overedit"),
    "perceptual_quality": ("looks_natural", "no_artifact"),
    "ground_score": (),
}
EXPLANATION_KEYS = {"semantic_consistency": "sc", "perceptual_quality": "pq", "ground_score": "ground_score"}
PromptBuilder: TypeAlias = Callable[[Edit], JudgePrompt | None]


def judged_reward(judge: Judge, rubrics: Rubrics, name: str, also: Collection[str] = ()) -> Reward:
    """The reward ``name`` of `JUDGED_REWARDS`; the rewards in ``also`` are computed too, and added to the parts.

    viescore = sqrt(SC * PQ), where SC and PQ are each the lesser of the two scores that the judge gives.
    """
    builders = _prompt_builders(rubrics)
    tasks = tuple(task for task in builders if any(task in JUDGED_REWARDS[each] for each in {name, *also}))

    def reward(edits: Sequence[Edit], /) -> list[Score]:
        prompts = {
            (index, task): prompt
            for index, edit in enumerate(edits)
            if edit.edited is not None
            for task in tasks
            if (prompt := builders[task](edit)) is not None
        }
        judgements = dict(zip(prompts, judge.ask_all(list(prompts.values())), strict=True))
        scores = []
        for index, edit in enumerate(edits):
            if edit.edited is None:
                scores.append(_score_of_invalid(name, tasks))
            else:
                by_task = {task: judgements.get((index, task), Judgement(None, NO_TARGET)) for task in tasks}
                scores.append(_score(name, by_task))
        return scores

    return reward


def _prompt_builders(rubrics: Rubrics) -> Mapping[str, PromptBuilder]:
    def consistency(edit: Edit) -> JudgePrompt | None:
        assert edit.edited is not None
        return JudgePrompt(format_rubric(rubrics.semantic_consistency, edit.instruction), (edit.source, edit.edited))

    def quality(edit: Edit) -> JudgePrompt | None:
        assert edit.edited is not None
        return JudgePrompt(rubrics.perceptual_quality, (edit.edited,))

    def ground(edit: Edit) -> JudgePrompt | None:
        assert edit.edited is not None
        if edit.target is None:
            return None
        text = format_rubric(rubrics.ground_score, edit.instruction)
        return JudgePrompt(text, (edit.target, edit.edited), "tag", max_tokens=1300, temperature=0.3)

    return {"semantic_consistency": consistency, "perceptual_quality": quality, "ground_score": ground}


def _score(name: str, judgements: Mapping[str, Judgement]) -> Score:
    parts: dict[str, float] = {}
    for task, judgement in judgements.items():
        if judgement.scores is not None:
            parts |= dict(zip(SUBSCORES[task], judgement.scores, strict=False))
            parts[task] = min(judgement.scores)
    for combined in (name, *JUDGED_REWARDS):
        if combined not in parts and all(task in parts for task in JUDGED_REWARDS[combined]):
            parts[combined] = math.sqrt(math.prod(parts[task] for task in JUDGED_REWARDS[combined]))
    reason = "\n".join(f"{task.replace('_', ' ')}: {each.text}" for task, each in judgements.items())
    explanations = {EXPLANATION_KEYS[task]: each.text for task, each in judgements.items() if each.scores is not None}
    missing = {task: each.text for task, each in judgements.items() if each.scores is None}
    return Score(parts.get(name), parts, reason, explanations, missing)


def _score_of_invalid(name: str, tasks: Sequence[str]) -> Score:
    zeros = {task: Judgement((0.0,) * max(1, len(SUBSCORES[task])), "") for task in tasks}
    return replace(_score(name, zeros), reason="the edit is invalid or incomplete", explanations={})
