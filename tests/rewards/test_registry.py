"""Rewards by name, of one's own, and summed up."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import MODEL, JudgeServer, some_edits

from earl_cli.config.rl import RlConfig
from earl_cli.errors import UsageError
from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.registry import judge_from_config, load_reward, reward_from_config
from earl_cli.rewards.reward import JudgeDownError, Score

Ask = Callable[..., Judge]
NONE = "the reward function gave none"

OWN = """
import numpy as np
from earl_cli.rewards.reward import JudgeDownError, Score

def plain(edits): return [1, 2.5, None]
def numpys(edits): return np.array([1, 2.5, np.nan], dtype=np.float32)
def scores(edits): return (Score(float(i), {"light": i, "odd": float("inf")}, "so") for i in range(len(edits)))
def missing(edits): return [float("nan"), float("-inf"), Score(float("nan"), {}, "why")]
def told(edits): return [Score(n, {}, "", {"sc": "as asked"}, {"pq": "no"}) for n in (1.0, float("nan"))]
def few(edits): return [1.0]
def words(edits): return ["good"] * 3
def text(edits): return "123"
def nothing(edits): pass
def raises(edits): return 1 / 0
def down(edits): raise JudgeDownError("gone")
a_number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    name = f"my_rewards_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_bad.py").write_text("import no_such_thing")
    (tmp_path / f"{name}_worse.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def values(scores: list[Score]) -> list[float | None]:
    return [score.value for score in scores]


def config(**values: object) -> RlConfig:
    return RlConfig(data=("store",), output="out", **values)  # type: ignore[arg-type]


def test_a_users_function(own: str) -> None:
    edits = some_edits(3)
    assert load_reward(f"{own}:plain")(edits) == [Score(1.0), Score(2.5), Score(None, reason=NONE)]
    assert values(load_reward(f"{own}:numpys")(edits)) == [1.0, 2.5, None]
    assert load_reward(f"{own}:scores")(edits)[2] == Score(2.0, {"light": 2.0}, "so")
    missing = load_reward(f"{own}:missing")(edits)
    assert values(missing) == [None, None, None]
    assert [score.reason for score in missing] == [
        "the reward function gave nan",
        "the reward function gave -inf",
        "why",
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("few", "returned 1 scores for 3 edits"),
        ("words", "returned a str where a score should be"),
        ("text", "returned str, not a list"),
        ("nothing", "returned NoneType, not a list"),
        ("raises", "raised ZeroDivisionError"),
    ],
)
def test_an_invalid_result_of_a_users_function_is_an_error(name: str, why: str, own: str) -> None:
    reward = load_reward(f"{own}:{name}")
    with pytest.raises(UsageError, match=why) as caught:
        reward(some_edits(3))
    assert caught.value.where == f"{own}:{name}"


def test_a_function_may_say_that_its_judge_is_down(own: str) -> None:
    with pytest.raises(JudgeDownError):
        load_reward(f"{own}:down")(some_edits(1))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("{}:none", "has no function 'none'"),
        ("{}:", "has no function ''"),
        ("{}:a_number", "'a_number' is no function"),
        ("{}_bad:plain", "no module no_such_thing"),
        ("{}_worse:plain", "can't be imported: ZeroDivisionError"),
        ("no_such_module:plain", "no module no_such_module"),
        (":plain", "no module's name"),
        ("./mine.py:plain", "no module's name"),
        ("viescor", "no reward 'viescor'"),
    ],
)
def test_an_unknown_reward_is_an_error(spec: str, why: str, own: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        load_reward(spec.format(own))
    assert caught.value.hint


def test_the_reference_needs_no_judge() -> None:
    edit = some_edits(1)[0]
    done, undone = load_reward("reference")([replace(edit, edited=edit.target), replace(edit, edited=edit.source)])
    assert done.value is not None
    assert undone.value is not None
    assert done.value > undone.value


def test_a_users_reason_is_kept(own: str) -> None:
    for score in load_reward(f"{own}:told")(some_edits(2)):
        assert (score.explanations, score.missing) == ({"sc": "as asked"}, {"pq": "no"})


def test_a_weighted_sum(own: str) -> None:
    (first, _, third) = load_reward({f"{own}:plain": 2, f"{own}:scores": -0.5})(some_edits(3))
    assert first.value == 2 * 1 - 0.5 * 0
    assert first.parts == {f"{own}:plain": 1, f"{own}:scores": 0, f"{own}:scores.light": 0}
    assert third.value is None
    assert third.parts == {f"{own}:scores": 2, f"{own}:scores.light": 2}
    assert third.reason == f"{own}:plain: {NONE}\n{own}:scores: so"


@pytest.mark.parametrize("weights", [{}, {"viescore": math.nan}])
def test_invalid_weights_are_errors(weights: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="weight"):
        load_reward(weights, Judge("http://127.0.0.1:9/v1", MODEL))


def test_judged_rewards_share_judgements(judge: JudgeServer, ask: Ask, tmp_path: Path) -> None:
    reward = load_reward({"viescore": 1, "sqrt(viescore_pqxground_score)": 1}, ask(tmp_path / "cache"))
    (score,) = reward(some_edits(1))
    assert len(judge.calls) == 3
    assert score.parts["viescore.perceptual_quality"] >= 0
    assert score.value == pytest.approx(score.parts["viescore"] + score.parts["sqrt(viescore_pqxground_score)"])


@pytest.mark.parametrize("reward", [None, "ground_score", {"viescore": 1.0}])
def test_a_judge_without_an_address(reward: object, judge: JudgeServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a judge") as caught:
        reward_from_config(config(reward=reward), tmp_path / "cache")
    assert "earl judge serve" in str(caught.value)
    assert judge_from_config(config(reward=reward), tmp_path / "cache") is None


def test_all_missing_variables_are_named_at_once(
    judge: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(judge_api_key_variable="MY_KEY")
    for empty in (None, "", " \n"):
        for name in ("MY_KEY", "APP__REWARD_FUNCTION_API_BASE"):
            if empty is not None:
                monkeypatch.setenv(name, empty)
        with pytest.raises(UsageError, match="MY_KEY holds no key either") as caught:
            reward_from_config(settings, tmp_path / "cache")
        assert "APP__REWARD_FUNCTION_API_BASE" in str(caught.value)
    monkeypatch.setenv("APP__REWARD_FUNCTION_API_BASE", judge.api_base)
    with pytest.raises(UsageError, match="not set, or empty: MY_KEY"):
        reward_from_config(settings, tmp_path / "cache")


def test_a_config_beats_the_environment(judge: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP__REWARD_FUNCTION_API_BASE", "http://127.0.0.1:9/v1")
    found = judge_from_config(config(reward_function_api_base=judge.api_base), tmp_path / "cache")
    assert found is not None
    assert found.api_base == judge.api_base


def test_a_runs_config_names_the_declaration(judge: JudgeServer, tmp_path: Path) -> None:
    settings = config(reward_function_api_base=judge.api_base, judge_declaration="viescore-published")
    reward_from_config(settings, tmp_path / "cache")(some_edits(1))
    assert {len(call.body["messages"]) for call in judge.calls} == {2}
    with pytest.raises(UsageError, match="no declaration 'mine'"):
        reward_from_config(settings.model_copy(update={"judge_declaration": "mine"}), tmp_path / "cache")


def test_a_judge_from_a_runs_config(judge: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine")
    rubrics = tmp_path / "own.toml"
    rubrics.write_text(
        'semantic_consistency = "SC {instruction}"\nperceptual_quality = "PQ"\nground_score = "<score> {instruction}"\n'
    )
    judge.models = ("small-judge",)
    settings = config(
        reward_function_api_base=judge.api_base,
        reward_function_api_model_name="small-judge",
        reward_compute_ground_score=True,
        rubrics=rubrics,
        judge_api_key_variable="MY_KEY",
    )
    (score,) = reward_from_config(settings, tmp_path / "cache")(some_edits(1))
    assert score.value == score.parts["viescore"]
    assert "ground_score" in score.parts
    assert {call.text for call in judge.calls} == {"SC make it snowy", "PQ", "<score> make it snowy"}
    assert {call.key for call in judge.calls} == {"Bearer sk-mine"}
    assert {call.body["model"] for call in judge.calls} == {"small-judge"}
    judge.reset()
    final = {"reward_final_reward": "ground_score", "reward_compute_viescore": False}
    (ground,) = reward_from_config(settings.model_copy(update=final), tmp_path / "cache")(some_edits(1))
    assert judge.calls == []  # all in the cache
    assert ground.value == score.parts["ground_score"]
    assert set(ground.parts) == {"ground_score"}


def test_the_address_in_the_environment(judge: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP__REWARD_FUNCTION_API_BASE", judge.api_base)
    assert reward_from_config(config(), tmp_path / "cache")(some_edits(1))[0].value is not None
