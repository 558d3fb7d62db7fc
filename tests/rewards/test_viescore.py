"""The judged rewards: what each is made of, and what it is where something is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from judge_server import Faults, JudgeServer, random_image, some_edits

from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.judge.declarations import load_rubrics
from earl_cli.rewards.registry import load_reward
from earl_cli.rewards.viescore import JUDGED_REWARDS, MIXED_REWARD, judged_reward

Ask = Callable[..., Judge]
SC = {"edit_success", "overedit", "semantic_consistency"}
PQ = {"looks_natural", "no_artifact", "perceptual_quality"}


def test_viescore_is_the_root_of_the_lesser_scores(judge: JudgeServer, ask: Ask) -> None:
    scores = judged_reward(ask(), load_rubrics(), "viescore")(some_edits(8))
    assert len(judge.calls) == 16
    for score in scores:
        parts = score.parts
        assert set(parts) == SC | PQ | {"viescore"}
        assert parts["semantic_consistency"] == min(parts["edit_success"], parts["overedit"])
        assert parts["perceptual_quality"] == min(parts["looks_natural"], parts["no_artifact"])
        assert score.value == math.sqrt(parts["semantic_consistency"] * parts["perceptual_quality"])
        assert score.reason.count("It's there [mostly].") == 2
    assert len({score.value for score in scores}) > 3


def test_images_of_each_task(judge: JudgeServer, ask: Ask) -> None:
    (edit,) = some_edits(1)
    judged_reward(ask(), load_rubrics(), MIXED_REWARD, ("viescore",))([edit])
    seen = {call.text: call.images for call in judge.calls}
    consistency = next(text for text in seen if "make it snowy" in text and "<score>" not in text)
    quality = next(text for text in seen if "make it snowy" not in text)
    ground = next(text for text in seen if "<score>" in text)
    assert "make it snowy" in ground
    (edited,) = seen[quality]
    assert seen[consistency][1] == seen[ground][1] == edited
    assert len({seen[consistency][0], seen[ground][0], edited}) == 3
    judge.reset()
    judged_reward(ask(), load_rubrics(), MIXED_REWARD)(
        [replace(edit, source=edit.target)]
    )  # the target is the source of this prompt
    assert seen[ground] in {call.images for call in judge.calls}
    assert len(judge.calls) == 2


def test_the_ground_score_and_the_mix(judge: JudgeServer, ask: Ask) -> None:
    (ground,) = judged_reward(ask(), load_rubrics(), "ground_score")(some_edits(1))
    assert ground.value == ground.parts["ground_score"]
    assert len(judge.calls) == 1
    (mixed,) = judged_reward(ask(), load_rubrics(), MIXED_REWARD)(some_edits(1))
    assert mixed.value == math.sqrt(mixed.parts["perceptual_quality"] * mixed.parts["ground_score"])
    assert mixed.parts["ground_score"] == ground.value


@pytest.mark.parametrize("name", JUDGED_REWARDS)
def test_an_invalid_edit_scores_zero_without_a_prompt(name: str, judge: JudgeServer, ask: Ask) -> None:
    complete, empty = some_edits(2)
    one, zero = judged_reward(ask(), load_rubrics(), name)([complete, replace(empty, edited=None, target=None)])
    assert zero.value == 0
    assert zero.parts.keys() == one.parts.keys()
    assert set(zero.parts.values()) == {0}
    assert len(judge.calls) == len(JUDGED_REWARDS[name])


def test_without_a_target_there_is_no_ground_score(judge: JudgeServer, ask: Ask) -> None:
    edits = [replace(edit, target=None) for edit in some_edits(1)]
    (ground,) = judged_reward(ask(), load_rubrics(), "ground_score")(edits)
    assert (ground.value, judge.calls) == (None, [])
    assert "no target image" in ground.reason
    (mixed,) = judged_reward(ask(), load_rubrics(), MIXED_REWARD)(edits)
    assert mixed.value is None
    assert set(mixed.parts) == PQ
    (whole,) = judged_reward(ask(), load_rubrics(), "viescore", ("ground_score",))(edits)
    assert whole.value is not None


def test_a_missing_score_leaves_the_others(judge: JudgeServer, ask: Ask) -> None:
    judge.fails_on = "make it snowy"
    (score,) = judged_reward(ask(), load_rubrics(), "viescore")(some_edits(1))
    assert score.value is None
    assert set(score.parts) == PQ
    assert "status 500" in score.reason
    assert "It's there" in score.reason


def test_faults_change_no_score(judge: JudgeServer, ask: Ask) -> None:
    reward = judged_reward(ask(timeout=0.5), load_rubrics(), "viescore", ("ground_score",))
    healthy = reward(some_edits(20))
    judge.reset()
    judge.faults = Faults(0.3, slow=0.6)
    assert reward(some_edits(20)) == healthy
    assert any(call.fault for call in judge.calls)


def test_the_sizes_of_edits_may_differ(judge: JudgeServer, ask: Ask) -> None:
    edits = [replace(edit, edited=random_image(1, side=40)) for edit in some_edits(1)]
    assert judged_reward(ask(), load_rubrics(), "viescore")(edits)[0].value is not None


def test_explanations_are_keyed_by_task(judge: JudgeServer, ask: Ask) -> None:
    (score,) = judged_reward(ask(), load_rubrics(), "viescore", ("ground_score",))(some_edits(1))
    assert score.explanations == {
        "sc": "It's there [mostly].",
        "pq": "It's there [mostly].",
        "ground_score": "The attempt has the snow, but the roof is darker.",
    }
    assert score.missing == {}


def test_missing_scores_have_reasons_by_name(judge: JudgeServer, ask: Ask) -> None:
    judge.fails_on = "make it snowy"
    edits = [replace(edit, target=None) for edit in some_edits(1)]
    (score,) = judged_reward(ask(), load_rubrics(), "viescore", ("ground_score",))(edits)
    assert score.missing.keys() == {"semantic_consistency", "ground_score"}
    assert "status 500" in score.missing["semantic_consistency"]
    assert score.missing["semantic_consistency"] in score.reason
    assert score.missing["ground_score"] == "there is no target image to compare with"
    assert score.explanations == {"pq": "It's there [mostly]."}


def test_an_invalid_edit_has_no_explanations(judge: JudgeServer, ask: Ask) -> None:
    (edit,) = some_edits(1)
    (score,) = judged_reward(ask(), load_rubrics(), "viescore")([replace(edit, edited=None)])
    assert (score.explanations, score.missing) == ({}, {})
    assert score.reason == "the edit is invalid or incomplete"


def test_a_weighted_sum_keeps_all_reasons(judge: JudgeServer, ask: Ask) -> None:
    judge.fails_on = "show the"  # in the prompt of the ground score alone
    (score,) = load_reward({"viescore": 1, "ground_score": 1}, ask(), load_rubrics())(some_edits(1))
    assert score.value is None
    assert score.explanations.keys() == {"viescore.sc", "viescore.pq"}
    assert score.missing.keys() == {"ground_score.ground_score"}
