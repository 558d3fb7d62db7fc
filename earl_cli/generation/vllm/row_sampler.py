"""Drawing where another engine would draw: rows of logits in, rows that leave only the token that was drawn out.

Grammar, temperature, top-k, top-p and the random numbers are those of the transformers engine, so that a seed means the
same picture whatever computes the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import InputError, UsageError
from earl_cli.generation.sampling import sample_tokens, uniforms
from earl_cli.tokens.grammar import FreeState, GrammarState, Overlong, start_state
from earl_cli.tokens.layout import Grid, Mode, SequenceLayout

KEY = "earl"
"""Where a request's extra arguments hold its order, and an engine's configuration the layout."""


@dataclass(frozen=True)
class RowSpec:
    """How one completion is to be drawn, in plain numbers that cross the border between processes.

    ``longest`` bounds a completion without grammar, ``positions`` is how many random numbers its seed gives.
    """

    mode: Mode
    height: int
    width: int
    grammar: bool
    seed: int
    positions: int
    longest: int
    max_text_tokens: int
    max_grid_codes: int
    sampling: SamplingParams
    overlong: Overlong = "force"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**vars(self), "sampling": self.sampling.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RowSpec:
        """The inverse of `to_dict`. Raises InputError for anything else."""
        try:
            return cls(**{**values, "sampling": SamplingParams.from_dict(values["sampling"])})
        except (KeyError, TypeError, UsageError) as error:
            raise InputError(f"no row can be sampled by this: {error}", where=f"extra_args[{KEY!r}]") from None

    def start(self, layout: SequenceLayout) -> GrammarState | FreeState:
        """Where the completion begins. Raises InputError for a mode or grid that can't be."""
        grid = Grid(self.height, self.width)
        state = start_state(layout, self.mode, grid, self.max_text_tokens, self.max_grid_codes, self.overlong)
        return state if self.grammar else FreeState(layout.vocabulary, self.longest)


class RowState:
    """A completion under way in an engine that keeps its tokens; what is known here follows from these alone."""

    def __init__(self, order: RowSpec, layout: SequenceLayout) -> None:
        self.state = order.start(layout)
        self.sampling = order.sampling
        self.uniforms = uniforms(order.seed, order.positions)
        self.seen = 0

    def catch_up(self, written: Sequence[int]) -> None:
        """Bring the state to the end of ``written``, all tokens so far, in O(1) for those of a picture.

        Inside a picture the number of tokens decides alone. Raises InputError for text that the grammar doesn't allow.
        """
        while self.seen < len(written):
            if isinstance(self.state, GrammarState) and self.state.image is not None:
                self.state = replace(self.state, offset=self.state.offset + len(written) - self.seen)
                self.seen = len(written)
            else:
                self.state = self.state.advance(int(written[self.seen]))
                self.seen += 1

    @property
    def uniform(self) -> float:
        """The random number of the token that comes next."""
        return float(self.uniforms[min(self.seen, len(self.uniforms) - 1)])


def sample_rows(logits: Tensor, lanes: Iterable[tuple[int, RowState]]) -> None:
    """Draws one token for each (row, lane); in place, on ``logits`` Float32[rows, vocabulary].

    Afterwards the token's own logit is its log-probability as `Completion` has it, 0 if it was forced, and every other
    is -inf: the greedy choice is the token, and what an engine reports as its logit is the log-probability.
    """
    forced: list[tuple[int, int]] = []
    groups: dict[tuple[int, int, SamplingParams], list[tuple[int, float]]] = {}
    for row, lane in lanes:
        choices = lane.state.choices()
        if choices.forced is not None:
            forced.append((row, choices.forced))
        else:
            groups.setdefault((choices.start, choices.stop, lane.sampling), []).append((row, lane.uniform))
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    for (start, stop, sampling), members in groups.items():
        rows = torch.tensor([row for row, _ in members], device=logits.device)
        uniform = torch.tensor([number for _, number in members], dtype=torch.float64)
        columns, logprobs = sample_tokens(logits[:, start:stop].index_select(0, rows), uniform, sampling)
        drawn.append((rows, start + columns, logprobs))
    if forced:
        rows, tokens = torch.tensor(forced, device=logits.device).unbind(dim=1)
        drawn.append((rows, tokens, torch.zeros(len(forced), device=logits.device)))
    for rows, tokens, logprobs in drawn:
        logits.index_fill_(0, rows, -torch.inf)
        logits.index_put_((rows, tokens), logprobs.to(logits.dtype))
