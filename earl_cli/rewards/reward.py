"""What a reward is: a function from edits to scores."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from earl_cli.errors import EarlError, UsageError

Pixels: TypeAlias = NDArray[np.uint8]
NO_TARGET = "there is no target image to compare with"
SIGNATURE_HINT = (
    "it takes a list of earl_cli.Edit and returns a list of as many Score, float or None; "
    "@earl_cli.reward makes one of a function of a single Edit"
)


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit to be scored.

    Images are sRGB uint8[h, w, 3], values 0 to 255, each of any size. ``edited`` is None where the model's completion
    was invalid or incomplete. ``target`` is the target image, None where the data have none. ``id`` is that of the
    example, for messages.
    """

    id: str
    instruction: str
    source: Pixels
    edited: Pixels | None
    target: Pixels | None = None


@dataclass(frozen=True)
class Score:
    """The score of an edit: ``value``, higher is better, or None where there is none; ``parts`` are its components.

    ``reason`` is the judge's reasoning, or why there is no value. Judged rewards also have ``explanations``, the
    judge's reasoning by the keys ``sc``, ``pq`` and ``ground_score``, and ``missing``, why there is no
    ``semantic_consistency``, ``perceptual_quality`` or ``ground_score``. ``places`` float64[h, w] is for a reward that
    is a mean over the image: the value of each cell of a grid, row 0 at the top, for per-token advantages.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    explanations: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    places: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)


class Reward(Protocol):
    """A function from edits to as many scores, in the same order; a user's ``module:function`` is one as well.

    An edit that can't be scored gets a `Score` without a value. Raises JudgeDownError while none can be scored.
    """

    def __call__(self, edits: Sequence[Edit], /) -> list[Score]: ...


class JudgeDownError(EarlError):
    """The judge's server doesn't answer; the call may be repeated later."""

    exit_code = 1


def reward(function: Callable[[Edit], Score | float | None], /) -> Reward:
    """Make a reward of a function that scores one edit: a decorator, for ``earl rl --reward my_rewards:brightness``.

    The function is called for every edit, also for those whose ``edited`` is None. It returns a number, None for a
    score that can't be had, or a `Score`. A number that isn't finite counts as missing. The reward raises UsageError
    where the function raises anything but an EarlError, or returns anything else; the message names the edit.
    """
    name = getattr(function, "__name__", "reward")

    @functools.wraps(function)
    def scored(edits: Sequence[Edit], /) -> list[Score]:
        if not isinstance(edits, Sequence):
            raise UsageError(
                f"the reward {name} takes a list of edits, and got one {type(edits).__name__}", hint=SIGNATURE_HINT
            )
        return [_score_of_one(function, edit, name) for edit in edits]

    return scored


def _score_of_one(function: Callable[[Edit], Score | float | None], edit: Edit, name: str) -> Score:
    where = f"edit {edit.id}"
    try:
        result = function(edit)
    except EarlError:
        raise
    except Exception as error:
        what = f"the reward function {name} raised {type(error).__name__}: {error}"
        raise UsageError(what, where=where, hint="--debug shows the traceback") from error
    return checked_score(result, f"{name}, {where}")


def checked_scores(results: object, count: int, where: str) -> list[Score]:
    """What a reward returned as so many `Score`. Raises UsageError for anything else."""
    if not isinstance(results, Iterable) or isinstance(results, str | bytes | Mapping):
        raise UsageError(
            f"the reward function returned {type(results).__name__}, not a list", where=where, hint=SIGNATURE_HINT
        )
    scores = [checked_score(result, where) for result in results]
    if len(scores) != count:
        raise UsageError(
            f"the reward function returned {len(scores)} scores for {count} edits", where=where, hint=SIGNATURE_HINT
        )
    return scores


def checked_score(result: object, where: str) -> Score:
    """One result as a `Score`; a value that is no finite number is a missing one. Raises UsageError for no number."""
    score = result if isinstance(result, Score) else Score(result)  # type: ignore[arg-type]
    value: object = score.value
    if value is None:
        return replace(score, reason=score.reason or "the reward function gave none")
    if not isinstance(value, Real):
        what = f"the reward function returned a {type(value).__name__} where a score should be"
        raise UsageError(what, where=where, hint=SIGNATURE_HINT)
    number = float(value)
    parts = {name: float(part) for name, part in score.parts.items() if math.isfinite(part)}
    if not math.isfinite(number):
        return replace(score, value=None, parts=parts, reason=score.reason or f"the reward function gave {number}")
    return replace(score, value=number, parts=parts)
