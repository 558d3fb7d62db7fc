"""``@reward``: from a function of one edit to a reward like any other."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from judge_server import some_edits

from earl_cli import Edit, JudgeDownError, Score, UsageError, reward
from earl_cli.rewards.registry import load_reward


@reward
def brightness(edit: Edit) -> float | None:
    """How bright it is."""
    return None if edit.edited is None else float(edit.edited.mean())


def test_a_function_of_one_edit_becomes_a_reward() -> None:
    edits = [*some_edits(2), Edit("none", "x", some_edits(1)[0].source, None)]
    first, second, missing = brightness(edits)
    assert edits[0].edited is not None
    assert first == Score(float(edits[0].edited.mean()))
    assert second.value is not None
    assert missing == Score(None, reason="the reward function gave none")
    assert brightness([]) == []
    assert brightness.__doc__ == "How bright it is."


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (1, Score(1.0)),
        (np.float32(0.5), Score(0.5)),
        (math.nan, Score(None, reason="the reward function gave nan")),
        (-math.inf, Score(None, reason="the reward function gave -inf")),
        (Score(2, {"a": 1, "b": math.nan}, "why"), Score(2.0, {"a": 1.0}, "why")),
    ],
)
def test_results_of_a_users_function(result: float | Score, expected: Score) -> None:
    assert reward(lambda _: result)(some_edits(1)) == [expected]


@pytest.mark.parametrize("result", ["good", [1.0], {}, np.zeros(3)])
def test_what_is_no_score_is_named_with_its_edit(result: object) -> None:
    @reward
    def odd(_: Edit) -> float:
        return result  # type: ignore[return-value]

    with pytest.raises(UsageError, match=f"returned a {type(result).__name__} where a score") as caught:
        odd(some_edits(1))
    assert caught.value.where == f"odd, edit {some_edits(1)[0].id}"


def test_what_it_raises_is_named_with_its_edit_and_is_the_cause() -> None:
    @reward
    def broken(edit: Edit) -> float:
        return 1 / (edit.id == "never")

    with pytest.raises(UsageError, match="broken raised ZeroDivisionError") as caught:
        broken(some_edits(1))
    assert caught.value.where == f"edit {some_edits(1)[0].id}"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_earl_error_of_a_users_function_is_passed_on() -> None:
    @reward
    def down(_: Edit) -> float:
        raise JudgeDownError("gone")

    with pytest.raises(JudgeDownError, match="gone"):
        down(some_edits(1))


def test_one_edit_alone_is_no_list() -> None:
    with pytest.raises(UsageError, match="takes a list of edits, and got one Edit") as caught:
        brightness(some_edits(1)[0])  # type: ignore[arg-type]
    assert caught.value.hint


def test_a_reward_is_imported_by_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"decorated_{abs(hash(tmp_path))}"
    code = "from earl_cli import reward\n@reward\ndef same(edit): return 2\ndef bare(edit): return edit.edited.mean()\n"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert [score.value for score in load_reward(f"{name}:same")(some_edits(2))] == [2.0, 2.0]
    with pytest.raises(UsageError, match="raised AttributeError") as caught:
        load_reward(f"{name}:bare")(some_edits(2))
    assert "@earl_cli.reward" in str(caught.value.hint)
