"""What a reward is: a function from finished edits to scores, of which some may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from earl_cli.errors import EarlError

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit to be judged: pictures uint8[h, w, 3], ``edited`` None where the model drew none or didn't finish.

    ``target`` is the true edit, None where nobody knows it; ``id`` is the row's, for messages.
    """

    id: str
    instruction: str
    source: Pixels
    edited: Pixels | None
    target: Pixels | None = None


@dataclass(frozen=True)
class Score:
    """A reward: ``value``, or None where it could not be had; ``parts`` are the figures that it was made of.

    ``reason`` is the judge's in its own words, or why there is no value. Where a judge was asked, ``explanations`` are
    its words by what they explain, ``sc``, ``pq`` and ``ground_score``, and ``missing`` says why it gave no
    ``semantic_consistency``, ``perceptual_quality`` or ``ground_score``. ``places`` float64[h, w], if the reward can be
    taken apart so, are its parts by where they lie in the picture; their mean is about the value.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    explanations: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    places: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)


class Reward(Protocol):
    """Scores for edits, one each, in order. Every reward has this signature, also a user's own ``module:function``.

    A score that can't be had is one without a value. Raises JudgeDownError if nothing can be had at all for now.
    """

    def __call__(self, edits: Sequence[Edit], /) -> list[Score]: ...


class JudgeDownError(EarlError):
    """A judge that doesn't answer: whoever asked waits, and asks again."""

    exit_code = 1
