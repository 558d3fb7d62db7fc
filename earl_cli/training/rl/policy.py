"""The policy: a language model whose forward pass gives the log-probabilities of sampled tokens.

Completions that share a prompt share its forward pass, gradients included. The tokens of all groups form one row, so
that linear layers see no padding except between completions of different lengths; only attention knows about groups.
A completion attends to its prompt and to itself, as it would in a sequence of its own: states and gradients are those
of the unshared computation (Liu et al., arXiv 2506.05433). Only the rows of the output head that the sampler could
choose from are computed, never the logits of the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from earl_cli.training.sft.loss import MAX_LOGITS, IdRange, head_loss

# -- the model ---------------------------------------------------------------------------------------------------------


class ScoringHead(nn.Linear):
    """The output head, whose forward gives log-probabilities of ids and optionally the entropies at their positions.

    It is a module because sharded training (ZeRO-3) gathers the weight of a module while its forward runs.
    """

    ranges: tuple[IdRange, ...]
    temperature: float

    def forward(self, hidden: Tensor, ids: Tensor, entropies: bool) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Float32[N] twice for Float[N, D] and Int64[N], as `token_logprobs`."""
        settings = (self.weight, ids, self.ranges, self.temperature)
        return token_logprobs(hidden, *settings), token_entropies(hidden, *settings) if entropies else None


class Policy(nn.Module):
    """A language model, with or without adapters; sampling and training use the same weights."""

    def __init__(
        self, language: Any, ranges: Sequence[IdRange], temperature: float, *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.language = language
        self.recompute = recompute
        self.head = ScoringHead(1, 1, bias=False, device="meta")
        self.head.weight = self.base.lm_head.weight
        self.head.ranges, self.head.temperature = tuple(ranges), temperature

    @property
    def base(self) -> Any:
        """The `Emu3ForCausalLM`, including adapters if there are any."""
        return self.language.get_base_model() if self.adapted else self.language

    @property
    def adapted(self) -> bool:
        """Whether low-rank adapters are trained instead of the weights."""
        return hasattr(self.language, "get_base_model")

    def forward(self, batch: Batch, entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities Float32[N] of the batch's tokens at the sampling temperature, and their entropies."""
        states = completion_states(self.base.model, batch.groups, recompute=self.recompute)
        found: tuple[Tensor, Tensor | None] = self.head(states[batch.positions], batch.ids, entropies)
        return found


# -- batches -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PromptGroup:
    """``prompt`` Int64[P] without its last id; ``inputs`` Int64[n, L]: that id, then a completion, right-padded."""

    prompt: Tensor
    inputs: Tensor


@dataclass(frozen=True, eq=False)
class SampledGroup:
    """A prompt and its completions, as ids int64; ``trained`` are masks of their trained tokens, bool[tokens]."""

    prompt: NDArray[np.int64]
    completions: tuple[NDArray[np.int64], ...]
    trained: tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of a forward pass: ``ids`` Int64[N] are the trained tokens, predicted by the states at ``positions``.

    The tokens are in the order of the groups, of their completions, and of the sequence.
    """

    groups: tuple[PromptGroup, ...]
    positions: Tensor
    ids: Tensor


def pack(pieces: Sequence[SampledGroup], device: torch.device) -> Batch | None:
    """The batch of these completions, cut after the last trained token of each group; None without trained tokens."""
    groups: list[PromptGroup] = []
    positions: list[NDArray[np.int64]] = []
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
            positions.append(start + row * longest + trained)
            ids.append(tokens[trained])
        groups.append(PromptGroup(torch.from_numpy(piece.prompt[:-1]).to(device), torch.from_numpy(inputs).to(device)))
        start += inputs.size
    if not groups:
        return None
    joined = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in (positions, ids))
    return Batch(tuple(groups), *joined)


# -- log-probabilities -------------------------------------------------------------------------------------------------


def token_logprobs(
    hidden: Tensor, head: Tensor, ids: Tensor, ranges: Sequence[IdRange], temperature: float = 1.0
) -> Tensor:
    """log p of ``ids`` Int64[N] at the temperature, Float32[N].

    ``hidden`` Float[N, D] are the states that predict them, ``head`` Float[V, D] the rows of the output head. An id is
    normalised over the range of ids that contains it; ``ranges`` are consecutive half-open intervals that cover the
    vocabulary. At most `MAX_LOGITS` logits are in memory at a time.
    """

    def of_range(states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return -head_loss(states, rows, columns, "none").float()

    return _by_range(_scaled(hidden, temperature), head, ids, ranges, of_range)


def token_entropies(
    hidden: Tensor, head: Tensor, ids: Tensor, ranges: Sequence[IdRange], temperature: float = 1.0
) -> Tensor:
    """The entropy in nats of the distribution of each of ``ids``, Float32[N]; arguments as of `token_logprobs`."""

    def of_chunk(states: Tensor, rows: Tensor) -> Tensor:
        logs = linear(states, rows).float().log_softmax(dim=-1)
        return -(logs.exp() * logs).sum(dim=-1)

    def of_range(states: Tensor, rows: Tensor, _: Tensor) -> Tensor:
        chunks = torch.split(states, max(1, MAX_LOGITS // len(rows)))
        return torch.cat([checkpoint(of_chunk, chunk, rows, use_reentrant=False) for chunk in chunks])

    return _by_range(_scaled(hidden, temperature), head, ids, ranges, of_range)


def _scaled(hidden: Tensor, temperature: float) -> Tensor:
    return hidden if temperature == 1 else hidden / temperature


def _by_range(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    ranges: Sequence[IdRange],
    measure: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """``measure(states, rows of the head, columns)`` of the tokens of each range, in the order of the tokens."""
    found = hidden.new_zeros(len(ids), dtype=torch.float32)
    for (start, stop), rows in _split(head, ranges):
        chosen = (ids >= start) & (ids < stop)
        count = int(chosen.sum())
        if count == len(ids):
            return measure(hidden, rows, ids - start)
        if count:
            found = found.masked_scatter(chosen, measure(hidden[chosen], rows, ids[chosen] - start))
    return found


def _split(head: Tensor, ranges: Sequence[IdRange]) -> Iterator[tuple[IdRange, Tensor]]:
    """The head's rows of each range. Gradients of a split are concatenated once; those of slices would be summed."""
    return zip(ranges, torch.split(head, [stop - start for start, stop in ranges]), strict=True)


# -- the forward pass of groups ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Span:
    """The position of a group in the row: its prompt from ``start`` on, then ``count`` completions of ``length``."""

    start: int
    prompt: int
    count: int
    length: int

    @property
    def completions(self) -> slice:
        begin = self.start + self.prompt
        return slice(begin, begin + self.count * self.length)


def completion_states(model: Any, groups: Sequence[PromptGroup], *, recompute: bool = False) -> Tensor:
    """The last hidden states Float[tokens, D] of all inputs of all groups, one completion after another.

    ``model`` is an `Emu3TextModel` (the decoder without its head). ``recompute`` is gradient checkpointing: only the
    inputs of the layers are kept for the backward pass.
    """
    spans, start = [], 0
    for group in groups:
        spans.append(_Span(start, len(group.prompt), *group.inputs.shape))
        start = spans[-1].completions.stop
    device = groups[0].inputs.device
    ids = torch.cat([part for group in groups for part in (group.prompt, group.inputs.flatten())])
    positions = torch.cat([part for span in spans for part in _positions(span, device)])
    hidden = model.embed_tokens(ids)
    cos, sin = (factor[0, :, None] for factor in model.rotary_emb(hidden[None], positions[None]))
    layers = list(model.layers)
    for index, layer in enumerate(layers):
        run = partial(_layer, layer, spans=spans, last=index == len(layers) - 1)
        if recompute and torch.is_grad_enabled():
            hidden = checkpoint(run, hidden, cos, sin, use_reentrant=False)
        else:
            hidden = run(hidden, cos, sin)
    states: Tensor = model.norm(hidden)
    return states


def _positions(span: _Span, device: torch.device) -> tuple[Tensor, Tensor]:
    own = torch.arange(span.prompt, span.prompt + span.length, device=device)
    return torch.arange(span.prompt, device=device), own.repeat(span.count)


def _layer(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, *, spans: Sequence[_Span], last: bool) -> Tensor:
    """One decoder layer; the last one computes the states of the completions' tokens only."""
    attention = layer.self_attn
    width = int(attention.head_dim)
    states = layer.input_layernorm(hidden)

    def of_completions(tokens: Tensor) -> Tensor:
        return torch.cat([tokens[span.completions] for span in spans]) if last else tokens

    query = _by_head(attention.q_proj(of_completions(states)), width)
    key, value = (_by_head(project(states), width) for project in (attention.k_proj, attention.v_proj))
    query, key = _rotated(query, of_completions(cos), of_completions(sin)), _rotated(key, cos, sin)
    mixed: list[Tensor] = []
    done = 0
    for span in spans:
        given = slice(span.start, span.start + span.prompt)
        if not last and span.prompt:
            mixed.append(_prompt_attention(query[given], key[given], value[given]))
        size = span.count * span.length
        own = query[done : done + size] if last else query[span.completions]
        done += size
        parts = (key[given], value[given], key[span.completions], value[span.completions])
        mixed.append(_completion_attention(own, *parts, count=span.count))
    hidden = of_completions(hidden) + attention.o_proj(torch.cat(mixed).flatten(1))
    result: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return result


def _by_head(states: Tensor, width: int) -> Tensor:
    return states.view(len(states), -1, width)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., arXiv 2104.09864) of Float[tokens, heads, width]."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def _prompt_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of a prompt's tokens: Float[P, heads, width] from queries of that shape and kv_heads of keys."""
    attend = matmul_attention if query.device.type == "cpu" else fused_attention
    return attend(query[None], key[None], value[None], None)[0]


def _completion_attention(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, key: Tensor, value: Tensor, *, count: int
) -> Tensor:
    """Attention of ``count`` completions over their prompt and, causally, themselves: Float[tokens, heads, width]."""
    attend = matmul_attention if query.device.type == "cpu" else fused_attention
    query, key, value = (each.reshape(count, -1, *each.shape[1:]) for each in (query, key, value))
    return attend(query, key, value, (prompt_key, prompt_value)).flatten(0, 1)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, prompt: tuple[Tensor, Tensor] | None) -> Tensor:
    """As `matmul_attention`, by torch's kernels."""
    if prompt is not None:
        key, value = (
            torch.cat((given.expand(len(own), -1, -1, -1), own), dim=1)
            for given, own in zip(prompt, (key, value), strict=True)
        )
    mask: Any = causal_lower_right(query.shape[1], key.shape[1])
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, prompt: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attention of queries Float[n, L, heads, width] over own keys, causally, and all keys of one prompt.

    Keys and values are Float[n, L, kv_heads, width] and, the prompt's, Float[P, kv_heads, width]. Plain matrix
    products: on CPUs their backward pass is faster than that of torch's fused kernel.
    """
    count, length, heads, width = query.shape
    kv_heads = key.shape[2]
    rows = heads // kv_heads * length
    query = (query * width**-0.5).view(count, length, kv_heads, -1, width).permute(2, 0, 3, 1, 4)
    key, value = (each.permute(2, 0, 1, 3) for each in (key, value))  # [kv, n, L, width]
    query = query.reshape(kv_heads, count, rows, width)
    own = query @ key.transpose(-1, -2)
    own = own.view(kv_heads, count, -1, length, length) + _future(length, query)
    if prompt is None:
        shares = own.softmax(dim=-1).view(kv_heads, count, rows, length)
        mixed = shares @ value
    else:
        given_key, given_value = (each.transpose(0, 1) for each in prompt)  # [kv, P, width]
        given = query.reshape(kv_heads, count * rows, width) @ given_key.transpose(-1, -2)
        scores = torch.cat((given.view(kv_heads, count, rows, -1), own.view(kv_heads, count, rows, length)), dim=-1)
        before, after = torch.split(scores.softmax(dim=-1), [given_key.shape[1], length], dim=-1)
        mixed = after @ value
        mixed = mixed + (before.reshape(kv_heads, count * rows, -1) @ given_value).view_as(mixed)
    return mixed.view(kv_heads, count, -1, length, width).permute(1, 3, 0, 2, 4).reshape(count, length, heads, width)


def _future(length: int, like: Tensor) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)
