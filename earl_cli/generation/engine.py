"""What every sampling engine takes and gives: prompts as ids in, completions that obey the grammar out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import InputError
from earl_cli.tokens.grammar import FreeState, GrammarState, Overlong, start_state
from earl_cli.tokens.layout import Grid, Mode, SequenceLayout

MAX_TEXT_TOKENS = 1024
EXPECTED_TEXT_TOKENS = 256
"""Tokens of text before a picture that are reckoned with, until a model writes more."""

OnProgress = Callable[[int, int], None]
"""Called with the tokens that are done and the tokens expected in all; the second may change as pictures begin."""


@dataclass(frozen=True)
class SamplingRequest:
    """One prompt (ids as `SequenceLayout.prompt` makes them) and a completion to be drawn for each seed.

    ``grid`` is the edited picture's in edit mode; in the other modes it is the one to fall back on. None stands for the
    source picture's own. Without ``grammar`` any id may come at any place. ``overlong`` is the grammar's.
    """

    prompt: tuple[int, ...]
    mode: Mode
    grid: Grid | None
    seeds: tuple[int, ...]
    grammar: bool = True
    overlong: Overlong = "force"


@dataclass(frozen=True, eq=False)
class Completion:
    """What followed a prompt: ``ids`` int64[n], with eos and without pad.

    ``logprobs`` float32[n] are log-probabilities among the ids that the grammar allowed, at the temperature (at 1 where
    it is 0), before top-k and top-p; 0 where the grammar left no choice. ``sampled`` bool[n] says where it left one.
    ``finished`` is False where the model's positions ran out before eos.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    sampled: NDArray[np.bool_]
    finished: bool


@dataclass(frozen=True)
class SequenceLimits:
    """``text`` tokens at most before a picture in the modes that have some, ``positions`` for prompt and completion."""

    text: int
    positions: int


@dataclass(frozen=True)
class PreparedRequest:
    """Where a request's completions begin; ``expected_length`` is what each is likely to take, its prompt included."""

    state: GrammarState | FreeState
    expected_length: int


OnCompletion = Callable[[int, int, Completion], None]
"""Called as soon as a completion is there, in any order: the number of its request, of its seed, and the completion."""


class Engine(Protocol):
    """Draws completions; each depends on its prompt, its seed and the sampling, not on what is drawn beside it."""

    def generate(
        self,
        requests: Sequence[SamplingRequest],
        sampling: SamplingParams,
        on_progress: OnProgress | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """For each request a completion for each seed, in order. Raises InputError for a request that can't be met."""


def request_grid(request: SamplingRequest, layout: SequenceLayout) -> Grid:
    """The request's grid, or that of the source picture in its prompt. Raises InputError if neither is there."""
    if request.grid is not None:
        return request.grid
    head = list(request.prompt[:16])
    if layout.vocabulary.img in head:
        grid = Grid.read(layout.text.decode(head[2 : head.index(layout.vocabulary.img)]))
        if grid is not None:
            return grid
    raise InputError("a request without a grid needs a prompt that begins with bos and a picture", where="prompt")


def prepare_request(
    request: SamplingRequest, layout: SequenceLayout, limits: SequenceLimits, where: str
) -> PreparedRequest:
    """Checks a request; its expected_length is exact in edit mode, and elsewhere what it starts with.

    Raises InputError for a prompt that isn't one, or is too long.
    """
    grid, vocabulary = request_grid(request, layout), layout.vocabulary
    if not request.prompt:
        raise InputError("an empty prompt", where=where)
    if min(request.prompt) < 0 or max(request.prompt) >= vocabulary.size:
        raise InputError("the prompt holds ids outside the vocabulary", where=where)
    state: GrammarState | FreeState = start_state(
        layout, request.mode, grid, limits.text, 2 * grid.codes, request.overlong
    )
    in_image = isinstance(state, GrammarState) and state.image is not None
    min_length = len(request.prompt) + (0 if in_image else len(layout.opening(grid))) + grid.tokens + 1
    if min_length > limits.positions:
        what = f"a prompt of {len(request.prompt)} tokens and a picture of {grid} codes"
        what = f"{what} are more than the model's {limits.positions} positions"
        raise InputError(what, where=where, hint="a smaller image area takes fewer tokens")
    expected_length = min(min_length + (0 if in_image else min(limits.text, EXPECTED_TEXT_TOKENS)), limits.positions)
    if not request.grammar:
        most = min_length - len(request.prompt) + (0 if in_image else limits.text)
        state = FreeState(vocabulary, min(most, limits.positions - len(request.prompt)))
    return PreparedRequest(state, expected_length)
