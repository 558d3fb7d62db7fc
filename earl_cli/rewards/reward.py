"""What a reward is: a function from edits to scores."""

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
    """An edit to be scored.

    Images are sRGB uint8[h, w, 3], values 0 to 255, each of any size. ``edited`` is None where the model's completion
    was invalid or incomplete. ``target`` is the true edit, None where the data have none. ``id`` is that of the
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
