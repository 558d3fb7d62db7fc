"""Sampling one token from a row of logits and one uniform number; rows don't depend on each other.

Both engines sample here, so that a seed means the same image in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import UsageError


def uniforms(seed: int, count: int) -> Tensor:
    """Random numbers Float64[count] in [0, 1) of a completion, number i for token i; the same on every machine.

    Raises UsageError for a seed outside 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"the seed {seed} doesn't fit 64 bits", where="seed")
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_tokens(logits: Tensor, uniform: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Column Int64[rows] and its log-probability Float32[rows] for each row of ``logits`` Float[rows, columns].

    The logits are divided by the temperature; of the ``top_k`` best columns those stay that come before the sum of the
    probabilities reaches ``top_p``, and of these those with at least ``min_p`` times the largest probability (Nguyen et
    al., arXiv 2407.01082). ``uniform`` Float64[rows] in [0, 1) picks among what is left by the inverse of the
    cumulative distribution. The log-probabilities are those at the temperature (at 1 if it is 0), over all columns.
    """
    scaled = logits.float()
    if sampling.temperature not in (0, 1):
        scaled = scaled / sampling.temperature
    if sampling.temperature == 0:
        columns = scaled.argmax(dim=-1)
    elif sampling.top_p < 1 or 0 < sampling.top_k < scaled.shape[-1]:
        limit = sampling.top_k if 0 < sampling.top_k < scaled.shape[-1] else scaled.shape[-1]
        best, places = scaled.topk(limit, dim=-1)
        columns = places.gather(-1, _columns(best, uniform, sampling)[:, None])[:, 0]
    else:
        columns = _columns(scaled, uniform, sampling)
    return columns, scaled.log_softmax(dim=-1).gather(-1, columns[:, None])[:, 0]


def _columns(scores: Tensor, uniform: Tensor, sampling: SamplingParams) -> Tensor:
    """Columns Int64[rows]; with ``top_p`` below 1 each row of ``scores`` must be sorted, the largest first."""
    precise = torch.float32 if scores.device.type == "mps" else torch.float64
    weights = (scores - scores.amax(dim=-1, keepdim=True)).to(precise).exp()
    if sampling.top_p < 1:
        before = weights.cumsum(dim=-1) - weights
        weights = weights.where(before < sampling.top_p * weights.sum(dim=-1, keepdim=True), 0)
    if sampling.min_p > 0:
        weights = weights.where(weights >= sampling.min_p, 0)  # the largest weight is 1
    steps = weights.cumsum(dim=-1)
    total = steps[:, -1:].contiguous()
    found = torch.searchsorted(steps, uniform.to(steps.dtype).to(steps.device)[:, None] * total, right=True)
    last = torch.searchsorted(steps, total)  # where rounding gives the total itself
    return torch.minimum(found, last)[:, 0].clamp(max=scores.shape[-1] - 1)  # beyond only where scores are NaN
