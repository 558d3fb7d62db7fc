"""The loss of supervised fine-tuning, −log p of every labelled token, computed in chunks of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions
from torch.utils.checkpoint import checkpoint

from earl_cli.tokens.vocabulary import Vocabulary

IGNORED = -100
MAX_LOGITS = 1 << 26
"""The most logits in memory at a time: 0.25 GB in float32."""
IdRange = tuple[int, int]


def whole_vocabulary(vocabulary: Vocabulary) -> tuple[IdRange, ...]:
    """Every token is normalised over the whole vocabulary, as in the published training."""
    return ((0, vocabulary.size),)


def separate_vocabularies(vocabulary: Vocabulary) -> tuple[IdRange, ...]:
    """Visual tokens are normalised over the visual ids, others over the ids below, as in sampling."""
    return ((0, vocabulary.text_end), (vocabulary.visual_start, vocabulary.size))


def summed_loss(hidden: Tensor, head: Tensor, labels: Tensor, ranges: Sequence[IdRange]) -> Tensor:
    """Σ −log p over the labelled tokens, a scalar.

    ``hidden`` Float[B, L, D] are the last hidden states, ``head`` Float[V, D] the rows of the output head, ``labels``
    Int[B, L] the ids with -100 where there is no loss; the state at position t predicts the label at t + 1. A label is
    normalised over the range of ids that contains it; ``ranges`` are consecutive half-open intervals that cover the
    vocabulary.
    """
    states, targets = hidden[:, :-1], labels[:, 1:]
    total = hidden.new_zeros((), dtype=torch.float32)
    # the gradients of a split are concatenated once; those of slices would be summed at full size
    pieces = torch.split(head, [stop - start for start, stop in ranges])
    for (start, stop), piece in zip(ranges, pieces, strict=True):
        chosen = (targets >= start) & (targets < stop)
        count = int(chosen.sum())
        if count:
            total = total + head_loss(states[chosen], piece, targets[chosen] - start, "sum")
    return total


def count_labels(labels: Tensor) -> int:
    """The number of labelled tokens; no state predicts the first position."""
    return int((labels[:, 1:] != IGNORED).sum())


def head_loss(states: Tensor, rows: Tensor, columns: Tensor, reduction: Literal["sum", "none"]) -> Tensor:
    """−log softmax(``states`` Float[N, D] · ``rows`` Float[V, D]ᵀ) at ``columns`` Int[N]: Float[N], or their sum.

    At most `MAX_LOGITS` logits are in memory at a time. For states in 16 bits the logits have 16 bits and the rest of
    the computation 32, as in the published training; torch's own function would round the result to 16.
    """
    chunk = max(1, MAX_LOGITS // len(rows))
    if states.dtype not in (torch.bfloat16, torch.float16):
        options = LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=None)
        chunked = options if len(states) > chunk else None
        return linear_cross_entropy(states, rows, columns, reduction=reduction, options=chunked)

    def of_chunk(some: Tensor, ids: Tensor) -> Tensor:
        return cross_entropy(linear(some, rows).float(), ids, reduction=reduction)

    chunks = zip(torch.split(states, chunk), torch.split(columns, chunk), strict=True)
    parts = [checkpoint(of_chunk, some, ids, use_reentrant=False) for some, ids in chunks]
    return torch.stack(parts).sum() if reduction == "sum" else torch.cat(parts)
