"""EARL's sampling inside another engine: rows of logits in, rows in which only the sampled token is left out.

Grammar, sampling parameters and random numbers are those of the transformers engine, so a seed means the same image in
both.
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

EXTRA_ARGS_KEY = "earl"
"""The key of a request's `RowSpec` in its extra arguments, and of the sequence layout in an engine's configuration."""


@dataclass(frozen=True)
class RowSpec:
    """How one completion is sampled; goes to vLLM's worker processes as plain values.

    ``max_free_tokens`` is the limit of a completion without grammar, ``positions`` how many random numbers its seed
    gives.
    """

    mode: Mode
    height: int
    width: int
    grammar: bool
    seed: int
    positions: int
    max_free_tokens: int
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
            raise InputError(
                f"this is no row specification: {error}", where=f"extra_args[{EXTRA_ARGS_KEY!r}]"
            ) from None

    def start(self, layout: SequenceLayout) -> GrammarState | FreeState:
        """Where the completion begins. Raises InputError for a mode or grid that can't be."""
        grid = Grid(self.height, self.width)
        state = start_state(layout, self.mode, grid, self.max_text_tokens, self.max_grid_codes, self.overlong)
        return state if self.grammar else FreeState(layout.vocabulary, self.max_free_tokens)


class RowState:
    """Grammar and random numbers of an unfinished completion; the engine keeps its tokens."""

    def __init__(self, spec: RowSpec, layout: SequenceLayout) -> None:
        self.grammar = spec.start(layout)
        self.sampling = spec.sampling
        self.uniforms = uniforms(spec.seed, spec.positions)
        self.position = 0

    def advance_to(self, written: Sequence[int]) -> None:
        """Advance to the end of ``written``, all tokens so far; O(1) inside an image, where only their number counts.

        Raises InputError for text that the grammar doesn't allow.
        """
        while self.position < len(written):
            if isinstance(self.grammar, GrammarState) and self.grammar.image is not None:
                self.grammar = replace(self.grammar, offset=self.grammar.offset + len(written) - self.position)
                self.position = len(written)
            else:
                self.grammar = self.grammar.advance(int(written[self.position]))
                self.position += 1

    @property
    def uniform(self) -> float:
        """The random number of the next token."""
        return float(self.uniforms[min(self.position, len(self.uniforms) - 1)])


def sample_rows(logits: Tensor, states: Iterable[tuple[int, RowState]]) -> None:
    """Samples one token for each (row, state) in place, on ``logits`` Float32[rows, vocabulary].

    Afterwards the sampled token's logit is its log-probability as in `Completion`, 0 if it was forced, and every other
    logit of the row is -inf: the greedy choice is this token, and its processed logit is the log-probability.
    """
    forced: list[tuple[int, int]] = []
    groups: dict[tuple[int, int, SamplingParams], list[tuple[int, float]]] = {}
    for row, state in states:
        allowed = state.grammar.allowed()
        if allowed.forced is not None:
            forced.append((row, allowed.forced))
        else:
            groups.setdefault((allowed.start, allowed.stop, state.sampling), []).append((row, state.uniform))
    sampled: list[tuple[Tensor, Tensor, Tensor]] = []
    for (start, stop, sampling), members in groups.items():
        rows = torch.tensor([row for row, _ in members], device=logits.device)
        uniform = torch.tensor([number for _, number in members], dtype=torch.float64)
        columns, logprobs = sample_tokens(logits[:, start:stop].index_select(0, rows), uniform, sampling)
        sampled.append((rows, start + columns, logprobs))
    if forced:
        rows, tokens = torch.tensor(forced, device=logits.device).unbind(dim=1)
        sampled.append((rows, tokens, torch.zeros(len(forced), device=logits.device)))
    for rows, tokens, logprobs in sampled:
        logits.index_fill_(0, rows, -torch.inf)
        logits.index_put_((rows, tokens), logprobs.to(logits.dtype))
