"""One token for each row of logits, drawn with one uniform number a row, so that rows know nothing of each other."""

from __future__ import annotations

import torch
from torch import Tensor

from earl_cli.errors import UsageError
from earl_cli.generation.engine import Sampling


def uniforms(seed: int, count: int) -> Tensor:
    """The numbers Float64[count] in [0, 1) that decide a completion, number i its token i; the same on every machine.

    Raises UsageError for a seed outside 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"the seed {seed} doesn't fit 64 bits", where="seed")
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Column Int64[rows] and its log-probability Float32[rows] for each row of ``logits`` Float[rows, columns].

    ``uniform`` Float64[rows] in [0, 1) picks by the inverse of the cumulative distribution over what top-k and then
    top-p leave. The log-probabilities are those at the temperature (at 1 if greedy), before top-k and top-p.
    """
    scaled = logits.float()
    if sampling.temperature not in (0, 1):
        scaled = scaled / sampling.temperature
    if sampling.temperature == 0:
        columns = scaled.argmax(dim=-1)
    elif sampling.top_p < 1 or 0 < sampling.top_k < scaled.shape[-1]:
        limit = sampling.top_k if 0 < sampling.top_k < scaled.shape[-1] else scaled.shape[-1]
        best, places = scaled.topk(limit, dim=-1)
        columns = places.gather(-1, _pick(best, uniform, sampling.top_p)[:, None])[:, 0]
    else:
        columns = _pick(scaled, uniform, 1.0)
    return columns, scaled.log_softmax(dim=-1).gather(-1, columns[:, None])[:, 0]


def _pick(scores: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """Columns Int64[rows]; with ``top_p`` below 1 each row of ``scores`` must fall from left to right."""
    precise = torch.float32 if scores.device.type == "mps" else torch.float64
    weights = (scores - scores.amax(dim=-1, keepdim=True)).to(precise).exp()
    if top_p < 1:
        before = weights.cumsum(dim=-1) - weights
        weights = weights.where(before < top_p * weights.sum(dim=-1, keepdim=True), 0)
    steps = weights.cumsum(dim=-1)
    total = steps[:, -1:].contiguous()
    found = torch.searchsorted(steps, uniform.to(steps.dtype).to(steps.device)[:, None] * total, right=True)
    last = torch.searchsorted(steps, total)  # where rounding takes the aim up to the total itself
    return torch.minimum(found, last)[:, 0].clamp(max=scores.shape[-1] - 1)  # beyond only if scores are no numbers
