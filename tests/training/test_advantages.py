"""Per-token advantages: that of the edit, or that of a code's own place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from earl_cli.errors import UsageError
from earl_cli.generation.engine import Completion, SamplingRequest
from earl_cli.rewards.reward import Score
from earl_cli.tokens.layout import Grid, SequenceLayout
from earl_cli.tokens.text import train_byte_bpe
from earl_cli.tokens.vocabulary import small_vocabulary
from earl_cli.training.rl.loss import place_advantages, resize_nearest, token_advantages
from earl_cli.training.rl.rollouts import Rollout

ADVANTAGES = np.array([1.0, -1.0])
PLACES = (np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 1.0]]))


def rollout(layout: SequenceLayout, codes: list[np.ndarray], finished: bool = True) -> Rollout:
    """A group of completions that write these codes after an image's opening."""
    grid = Grid(*codes[0].shape)
    completions = []
    for each in codes:
        ids = layout.image(each)[len(layout.opening(grid)) :]
        ids = np.append(ids, layout.vocabulary.eos) if finished else ids[:2]
        completions.append(Completion(ids, np.zeros(len(ids), np.float32), np.ones(len(ids), np.bool_), finished))
    answers = tuple(layout.parse_completion(each.ids, "edit", grid) for each in completions)
    return Rollout(0, SamplingRequest((0,), "edit", grid, (1, 2)), tuple(completions), answers)


@pytest.fixture(scope="module")
def layout() -> SequenceLayout:
    return SequenceLayout(small_vocabulary(256, 64), train_byte_bpe([], 256))


@pytest.fixture
def group(layout: SequenceLayout) -> Rollout:
    return rollout(layout, [np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]])])


def test_without_it_every_token_has_the_advantage_of_its_edit(layout: SequenceLayout, group: Rollout) -> None:
    found = token_advantages(layout, group, [Score(0.5), Score(0.1)], ADVANTAGES, 0.0)
    assert [set(each.tolist()) for each in found] == [{1.0}, {-1.0}]
    assert [len(each) for each in found] == [len(each.ids) for each in group.completions]


def test_a_code_gets_the_advantage_of_its_own_place(layout: SequenceLayout, group: Rollout) -> None:
    scores = [Score(0.5, places=PLACES[0]), Score(0.1, places=PLACES[1])]
    found = token_advantages(layout, group, scores, ADVANTAGES, 0.75)
    visual = layout.vocabulary.is_visual(group.completions[0].ids)
    assert set(found[0][~visual].tolist()) == {1.0}
    # The places differ in the second column only, where one is above the mean at the top and the other at the bottom.
    at_places = 0.75 * np.array([0, 1, 0, -1]) * np.sqrt(2)
    np.testing.assert_allclose(found[0][visual], 0.25 + at_places, rtol=1e-3)
    np.testing.assert_allclose(found[1][visual], -0.25 - at_places, rtol=1e-3)


def test_what_cannot_be_taken_apart_keeps_its_advantage(layout: SequenceLayout, group: Rollout) -> None:
    scores = [Score(0.5, places=PLACES[0]), Score(-1.0)]
    found = token_advantages(layout, group, scores, ADVANTAGES, 1.0)
    assert set(found[1].tolist()) == {-1.0}
    visual = layout.vocabulary.is_visual(group.completions[0].ids)
    np.testing.assert_allclose(found[0][visual], 0, atol=1e-6)  # no other edit has scores at its places


def test_a_group_without_a_valid_image_needs_no_places(layout: SequenceLayout) -> None:
    torn = rollout(layout, [np.array([[1, 2], [3, 4]])] * 2, finished=False)
    found = token_advantages(layout, torn, [Score(-1.0)] * 2, ADVANTAGES, 1.0)
    assert [set(each.tolist()) for each in found] == [{1.0}, {-1.0}]


def test_a_reward_of_one_number_is_refused(layout: SequenceLayout, group: Rollout) -> None:
    with pytest.raises(UsageError, match="no scores for the parts of an image"):
        token_advantages(layout, group, [Score(0.5), Score(0.1)], ADVANTAGES, 0.5)


def test_an_image_of_another_grid_than_the_rewards(layout: SequenceLayout, group: Rollout) -> None:
    large = [np.kron(places, np.ones((2, 3))) for places in PLACES]
    scores = [Score(0.5, places=places) for places in large]
    small = [Score(0.5, places=places) for places in PLACES]
    for one, other in zip(
        token_advantages(layout, group, scores, ADVANTAGES, 0.5),
        token_advantages(layout, group, small, ADVANTAGES, 0.5),
        strict=True,
    ):
        np.testing.assert_allclose(one, other)


def test_advantages_of_places_have_the_scale_of_an_advantage() -> None:
    rng = np.random.default_rng(0)
    places = [rng.normal(3.0, 0.01, (4, 5)) for _ in range(8)]
    found = np.stack(place_advantages(places))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    assert np.sqrt(np.square(found).mean()) == pytest.approx(1, rel=0.02)
    np.testing.assert_allclose(np.stack(place_advantages([places[0]] * 3)), 0, atol=1e-6)


def test_resized_takes_the_place_that_a_place_lies_in() -> None:
    assert resize_nearest(np.arange(6.0).reshape(2, 3), 4, 3).tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert resize_nearest(np.arange(4.0).reshape(1, 4), 1, 2).tolist() == [[0, 2]]


def test_the_share_changes_nothing_where_places_and_image_agree(layout: SequenceLayout, group: Rollout) -> None:
    alike = [Score(value, places=np.full((2, 2), value)) for value in (0.5, 0.1)]
    for each, advantage in zip(token_advantages(layout, group, alike, ADVANTAGES, 0.5), ADVANTAGES, strict=True):
        np.testing.assert_allclose(each, advantage, rtol=1e-3)
    assert replace(alike[0], places=None) == alike[0]
