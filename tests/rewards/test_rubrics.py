"""The wording of the judge's task, the package's own and a user's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from earl_cli.errors import UsageError
from earl_cli.rewards.judge.declarations import Rubrics, format_rubric, load_rubrics

OWN = """
semantic_consistency = "How well was this done: {instruction}?"
perceptual_quality = "How good does it look?"
ground_score = "How near is it, after {instruction}?"
"""


def test_the_packages_rubrics_ask_for_parsable_replies() -> None:
    rubrics = load_rubrics()
    assert '{"score": [a, b], "reasoning"' in rubrics.semantic_consistency
    assert '{"score": [a, b], "reasoning"' in rubrics.perceptual_quality
    assert rubrics.ground_score.endswith("<score>N</score>")
    assert rubrics.pairwise.endswith("<choice>1</choice>\n<choice>2</choice>\n<choice>tie</choice>")
    result = format_rubric(rubrics.semantic_consistency, ' make {it} "snowy" \n')
    assert 'make {it} "snowy"' in result
    assert "{instruction}" not in result


def test_a_file_replaces_the_packages_rubrics(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8-sig")
    assert format_rubric(load_rubrics(path).ground_score, "rain") == "How near is it, after rain?"
    assert [each.name for each in fields(Rubrics)] == list(load_rubrics(path).__dict__)


def test_the_pairwise_rubric_is_optional(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    assert load_rubrics(path).pairwise == load_rubrics().pairwise
    path.write_text(OWN + 'pairwise = "Which is better at {instruction}?"')
    assert load_rubrics(path).pairwise == "Which is better at {instruction}?"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("perceptual_quality =", "quality ="), "perceptual_quality must be there"),
        (('"How good does it look?"', "3"), "perceptual_quality must be there, and be a text"),
        (('"How good does it look?"', '" "'), "perceptual_quality must be there, and be a text"),
        (("done: {instruction}", "done"), "semantic_consistency needs a place"),
        (("How good", "{instruction}"), "perceptual_quality gets no instruction"),
        (("\nground_score", "\npairwise = 'Which?'\nground_score"), "pairwise needs a place"),
        (("\nground_score", "\npairwise = 1\nground_score"), "pairwise must be there, and be a text"),
        (("\nground_score", "\nmore = 1\nground_score"), "unknown key 'more'"),
        (("=", ":"), "can't be read"),
    ],
)
def test_an_error_names_the_invalid_file(change: tuple[str, str], why: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace(*change))
    with pytest.raises(UsageError, match=why) as caught:
        load_rubrics(path)
    assert caught.value.where == str(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file") as caught:
        load_rubrics(tmp_path / "none.toml")
    assert caught.value.where == str(tmp_path / "none.toml")
