"""The policy: a language model whose forward pass gives the log-probabilities of sampled tokens.

Only the rows of the output head that the sampler chose among are computed, never the logits of the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from earl_cli.training.rl.shared_prompt import PromptGroup, completion_states
from earl_cli.training.sft.loss import LOGITS_AT_ONCE, HeadPart, head_loss


def token_logprobs(
    hidden: Tensor, head: Tensor, ids: Tensor, parts: Sequence[HeadPart], temperature: float = 1.0
) -> Tensor:
    """log p of ``ids`` Int64[N] at the temperature, Float32[N].

    ``hidden`` Float[N, D] are the states that predict them, ``head`` Float[V, D] the rows of the output head. An id is
    normalised over the part of the ids, from a first one to before a last one, that it is in; the parts follow one
    another and cover the vocabulary. At most `losses.LOGITS_AT_ONCE` logits are held at a time.
    """

    def of_part(states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return -head_loss(states, rows, columns, "none").float()

    return _by_part(_scaled(hidden, temperature), head, ids, parts, of_part)


def token_entropies(
    hidden: Tensor, head: Tensor, ids: Tensor, parts: Sequence[HeadPart], temperature: float = 1.0
) -> Tensor:
    """The entropy in nats of the distribution that each of ``ids`` was drawn from, Float32[N]; as `token_logprobs`."""

    def of_chunk(states: Tensor, rows: Tensor) -> Tensor:
        logs = linear(states, rows).float().log_softmax(dim=-1)
        return -(logs.exp() * logs).sum(dim=-1)

    def of_part(states: Tensor, rows: Tensor, _: Tensor) -> Tensor:
        chunks = torch.split(states, max(1, LOGITS_AT_ONCE // len(rows)))
        return torch.cat([checkpoint(of_chunk, chunk, rows, use_reentrant=False) for chunk in chunks])

    return _by_part(_scaled(hidden, temperature), head, ids, parts, of_part)


def _scaled(hidden: Tensor, temperature: float) -> Tensor:
    return hidden if temperature == 1 else hidden / temperature


def _by_part(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    parts: Sequence[HeadPart],
    measure: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """``measure(states, rows of the head, columns)`` of the tokens of each part, put back into their order."""
    found = hidden.new_zeros(len(ids), dtype=torch.float32)
    for (start, stop), rows in _pieces(head, parts):
        chosen = (ids >= start) & (ids < stop)
        count = int(chosen.sum())
        if count == len(ids):
            return measure(hidden, rows, ids - start)
        if count:
            found = found.masked_scatter(chosen, measure(hidden[chosen], rows, ids[chosen] - start))
    return found


def _pieces(head: Tensor, parts: Sequence[HeadPart]) -> Iterator[tuple[HeadPart, Tensor]]:
    """The head's rows of each part; gradients of pieces are put together once, those of slices added at full size."""
    return zip(parts, torch.split(head, [stop - start for start, stop in parts]), strict=True)


@dataclass(frozen=True, eq=False)
class SampledGroup:
    """A prompt and completions of it, as ids int64; ``trained`` bool[n] says for each which of its tokens count."""

    prompt: NDArray[np.int64]
    completions: tuple[NDArray[np.int64], ...]
    trained: tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass takes: ``ids`` Int64[N] are the trained tokens, predicted by the states at ``places``.

    The tokens stand in the order of the groups, of their completions, and of the sequence.
    """

    groups: tuple[PromptGroup, ...]
    places: Tensor
    ids: Tensor


def pack(pieces: Sequence[SampledGroup], device: torch.device) -> Batch | None:
    """The batch of these completions; what follows a completion's last trained token isn't run. None if none is."""
    groups: list[PromptGroup] = []
    places: list[NDArray[np.int64]] = []
    ids: list[NDArray[np.int64]] = []
    start = 0
    for piece in pieces:
        chosen = [np.flatnonzero(trained) for trained in piece.trained]
        longest = max((int(each[-1]) + 1 for each in chosen if len(each)), default=0)
        if longest == 0:
            continue
        inputs = np.zeros((len(chosen), longest), dtype=np.int64)
        inputs[:, 0] = piece.prompt[-1]
        for row, (tokens, trained) in enumerate(zip(piece.completions, chosen, strict=True)):
            before = tokens[: longest - 1]
            inputs[row, 1 : 1 + len(before)] = before
            places.append(start + row * longest + trained)
            ids.append(tokens[trained])
        groups.append(PromptGroup(torch.from_numpy(piece.prompt[:-1]).to(device), torch.from_numpy(inputs).to(device)))
        start += inputs.size
    if not groups:
        return None
    joined = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in (places, ids))
    return Batch(tuple(groups), *joined)


class ScoringHead(nn.Linear):
    """The output head, which gives log-probabilities of ids and, if asked, the entropies they were drawn with.

    A module of its own, because sharded training (ZeRO-3) brings a module's weight together while it runs.
    """

    parts: tuple[HeadPart, ...]
    temperature: float

    def forward(self, hidden: Tensor, ids: Tensor, entropies: bool) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Float32[N] twice for Float[N, D] and Int64[N], as `logprobs.token_logprobs`."""
        settings = (self.weight, ids, self.parts, self.temperature)
        return token_logprobs(hidden, *settings), token_entropies(hidden, *settings) if entropies else None


class Policy(nn.Module):
    """A language model, plain or with adapters, that is sampled from and trained: one set of weights for both."""

    def __init__(
        self, language: Any, parts: Sequence[HeadPart], temperature: float, *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.language = language
        self.recompute = recompute
        self.head = ScoringHead(1, 1, bias=False, device="meta")
        self.head.weight = self.base.lm_head.weight
        self.head.parts, self.head.temperature = tuple(parts), temperature

    @property
    def base(self) -> Any:
        """The `Emu3ForCausalLM`, with adapters inside it if there are some."""
        return self.language.get_base_model() if self.adapted else self.language

    @property
    def adapted(self) -> bool:
        """Whether low-rank adapters are trained, and not the weights."""
        return hasattr(self.language, "get_base_model")

    def forward(self, batch: Batch, entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities Float32[N] of the batch's tokens at the sampling temperature, and their entropies."""
        states = completion_states(self.base.model, batch.groups, recompute=self.recompute)
        found: tuple[Tensor, Tensor | None] = self.head(states[batch.places], batch.ids, entropies)
        return found
