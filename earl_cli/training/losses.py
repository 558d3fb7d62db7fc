"""The loss of supervised fine-tuning: −log p of every labelled token, within the part of the head it belongs to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear_cross_entropy

from earl_cli.data.batches import IGNORED
from earl_cli.tokens.vocabulary import Vocabulary


def summed_loss(hidden: Tensor, head: Tensor, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Σ −log p over the labelled tokens, a scalar.

    ``hidden`` Float[B, L, D] are the last hidden states, ``head`` Float[V, D] the rows of the output head, ``labels``
    Int[B, L] the ids with -100 where there is no loss; the state at position t predicts the label at t + 1. A visual
    label is normalised over the visual ids and any other over the ids below them, as sampling under the grammar does.
    """
    states, targets = hidden[:, :-1], labels[:, 1:]
    total = hidden.new_zeros((), dtype=torch.float32)
    parts = ((0, vocabulary.text_end), (vocabulary.visual_start, vocabulary.size))
    for start, stop in parts:
        chosen = (targets >= start) & (targets < stop) & (targets != IGNORED)
        if bool(chosen.any()):
            ids = targets[chosen] - start
            total = total + linear_cross_entropy(states[chosen], head[start:stop], ids, reduction="sum").float()
    return total


def labelled(labels: Tensor) -> int:
    """How many tokens carry loss; the first position is predicted by nothing."""
    return int((labels[:, 1:] != IGNORED).sum())
