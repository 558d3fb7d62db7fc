"""The interface of the sampling engines: prompts as ids in, completions that obey the grammar out."""

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
"""How many tokens of text before an image are expected, until a completion has more."""

OnProgress = Callable[[int, int], None]
"""Called with the number of sampled tokens and of expected tokens; the second may change when an image begins."""


@dataclass(frozen=True)
class SamplingRequest:
    """One prompt (ids as `SequenceLayout.prompt` makes them); one completion is sampled for each seed.

    ``grid`` is the edited image's in edit mode; in the other modes it is the default grid. None stands for the source
    image's grid. Without ``grammar`` any id is allowed at any position. ``overlong`` is the grammar's.
    """

    prompt: tuple[int, ...]
    mode: Mode
    grid: Grid | None
    seeds: tuple[int, ...]
    grammar: bool = True
    overlong: Overlong = "force"


@dataclass(frozen=True, eq=False)
class Completion:
    """The tokens after a prompt: ``ids`` int64[n], with eos and without pad.

    ``logprobs`` float32[n] are log-probabilities among the ids that the grammar allowed, at the temperature (at 1 where
    it is 0) and before any other sampling parameter; 0 where the grammar allowed a single id. ``sampled`` bool[n] is
    False there. ``finished`` is False where the model's positions ran out before eos.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    sampled: NDArray[np.bool_]
    finished: bool


@dataclass(frozen=True)
class SequenceLimits:
    """At most ``text`` tokens before an image in reasoning and mixed mode, ``positions`` for prompt and completion."""

    text: int
    positions: int


@dataclass(frozen=True)
class PreparedRequest:
    """A checked request: the state in which its completions begin, and the expected length of prompt and completion."""

    state: GrammarState | FreeState
    expected_length: int


OnCompletion = Callable[[int, int, Completion], None]
"""Called with each completion when it is done, in any order: index of its request, index of its seed, completion."""


class Engine(Protocol):
    """Samples completions; each depends on its prompt, its seed and the sampling parameters, not on its batch."""

    def generate(
        self,
        requests: Sequence[SamplingRequest],
        sampling: SamplingParams,
        on_progress: OnProgress | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """For each request a completion for each seed, in order. Raises InputError for an invalid request."""


def request_grid(request: SamplingRequest, layout: SequenceLayout) -> Grid:
    """The request's grid, or that of the source image in its prompt. Raises InputError if there is neither."""
    if request.grid is not None:
        return request.grid
    head = list(request.prompt[:16])
    if layout.vocabulary.img in head:
        grid = Grid.read(layout.text.decode(head[2 : head.index(layout.vocabulary.img)]))
        if grid is not None:
            return grid
    raise InputError("a request without a grid needs a prompt that begins with bos and an image", where="prompt")


def prepare_request(
    request: SamplingRequest, layout: SequenceLayout, limits: SequenceLimits, where: str
) -> PreparedRequest:
    """Check a request. Its expected length is exact in edit mode, and a first guess in the other modes.

    Raises InputError for an invalid prompt, or one that is too long.
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
        what = f"a prompt of {len(request.prompt)} tokens and an image of {grid} codes"
        what = f"{what} are more than the model's {limits.positions} positions"
        raise InputError(what, where=where, hint="a smaller image area takes fewer tokens")
    expected_length = min(min_length + (0 if in_image else min(limits.text, EXPECTED_TEXT_TOKENS)), limits.positions)
    if not request.grammar:
        most = min_length - len(request.prompt) + (0 if in_image else limits.text)
        state = FreeState(vocabulary, min(most, limits.positions - len(request.prompt)))
    return PreparedRequest(state, expected_length)
