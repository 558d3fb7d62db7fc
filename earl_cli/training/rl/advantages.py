"""Which tokens an edit's advantage belongs to: all of them alike, or each code by what became of its place.

A picture's reward is one number for hundreds of codes, so most of what a code hears is about the others. A reward that
can be taken apart by places (`Score.places`) says more: at each place the edits of a group are compared by what they
have there. What a code does to those after it, only the whole picture's reward knows; so the two are mixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from earl_cli.errors import UsageError
from earl_cli.rewards.reward import Score
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.training.rl.loss import STD_FLOOR
from earl_cli.training.rl.rollouts import Rollout

Plane = NDArray[np.float64]


def token_advantages(
    layout: SequenceLayout, rollout: Rollout, scores: Sequence[Score], advantages: Plane, local: float
) -> tuple[Plane, ...]:
    """For each completion what each of its tokens is credited with, float64[tokens]: its advantage, as in GRPO.

    A code gets the share ``local`` from its place in place of it. An edit that the reward can't take apart, such as one
    that isn't finished, keeps its advantage everywhere. Raises UsageError if the reward takes none apart.
    """
    found = [np.full(len(each.ids), advantage) for each, advantage in zip(rollout.completions, advantages, strict=True)]
    if not local:
        return tuple(found)
    apart = [number for number, score in enumerate(scores) if score.places is not None]
    if not apart and any(rollout.finished):
        what = "this reward doesn't say which part of a picture is better, so local_credit can't be used with it"
        raise UsageError(what, where="local_credit", hint="reward=reference does; or leave local_credit at 0")
    compared = place_advantages([place for score in scores if (place := score.places) is not None])
    for number, places in zip(apart, compared, strict=True):
        codes = rollout.answers[number].codes
        if codes is None:
            continue
        visual = layout.vocabulary.is_visual(rollout.completions[number].ids)
        at_codes = resized(places, codes.shape[0], codes.shape[1]).ravel()
        found[number][visual] = (1 - local) * advantages[number] + local * at_codes
    return tuple(found)


def place_advantages(places: Sequence[Plane]) -> list[Plane]:
    """Each edit's figures [h, w] less the group's mean at that place, over the deviation of all of them, everywhere.

    So a place that all edits have alike says nothing, and the whole has the scale of an advantage.
    """
    if not places:
        return []
    stacked = np.stack(places)
    centred = stacked - stacked.mean(axis=0)
    return list(centred / (np.sqrt(np.square(centred).mean()) + STD_FLOOR))


def resized(plane: Plane, height: int, width: int) -> Plane:
    """A plane on another grid, each place from the one it lies in."""
    rows = np.arange(height) * plane.shape[0] // height
    columns = np.arange(width) * plane.shape[1] // width
    found: Plane = plane[rows[:, None], columns]
    return found
