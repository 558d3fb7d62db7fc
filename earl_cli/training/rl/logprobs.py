"""Log-probabilities of sampled tokens, with only those rows of the output head that the sampler chose among."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from earl_cli.training.sft.loss import LOGITS_AT_ONCE, Part, head_loss


def token_logprobs(
    hidden: Tensor, head: Tensor, ids: Tensor, parts: Sequence[Part], temperature: float = 1.0
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
    hidden: Tensor, head: Tensor, ids: Tensor, parts: Sequence[Part], temperature: float = 1.0
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
    parts: Sequence[Part],
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


def _pieces(head: Tensor, parts: Sequence[Part]) -> Iterator[tuple[Part, Tensor]]:
    """The head's rows of each part; gradients of pieces are put together once, those of slices added at full size."""
    return zip(parts, torch.split(head, [stop - start for start, stop in parts]), strict=True)
