"""The forward pass of completions that share a prompt: the prompt is run once for all of them, gradients included.

Tokens of all groups stand in one row, so that linear layers meet no padding but that between completions of different
lengths; only attention knows of groups. A completion attends to its prompt and to itself, which is what it would see
in a sequence of its own: states and gradients are those of the unshared computation (Liu et al., arXiv 2506.05433).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, eq=False)
class PromptGroup:
    """``prompt`` Int64[P] without its last id, and ``inputs`` Int64[n, L]: that id, then a completion, padded right."""

    prompt: Tensor
    inputs: Tensor


@dataclass(frozen=True)
class _Span:
    """Where a group's tokens are: the prompt from ``start`` on, then ``count`` completions of ``length`` tokens."""

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

    ``model`` is an `Emu3TextModel` (the decoder without its head). ``recompute`` keeps only the layers' inputs for the
    way back (gradient checkpointing).
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
    """One decoder layer; the last one goes on with the completions' tokens only, whose states are asked for."""
    attention = layer.self_attn
    width = int(attention.head_dim)
    states = layer.input_layernorm(hidden)

    def kept(tokens: Tensor) -> Tensor:
        return torch.cat([tokens[span.completions] for span in spans]) if last else tokens

    query = _by_head(attention.q_proj(kept(states)), width)
    key, value = (_by_head(project(states), width) for project in (attention.k_proj, attention.v_proj))
    query, key = _rotated(query, kept(cos), kept(sin)), _rotated(key, cos, sin)
    mixed: list[Tensor] = []
    done = 0
    for span in spans:
        given = slice(span.start, span.start + span.prompt)
        if not last and span.prompt:
            mixed.append(_prompt_attention(query[given], key[given], value[given]))
        size = span.count * span.length
        asked = query[done : done + size] if last else query[span.completions]
        done += size
        parts = (key[given], value[given], key[span.completions], value[span.completions])
        mixed.append(_completion_attention(asked, *parts, count=span.count))
    hidden = kept(hidden) + attention.o_proj(torch.cat(mixed).flatten(1))
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
    attend = products if query.device.type == "cpu" else fused
    return attend(query[None], key[None], value[None], None)[0]


def _completion_attention(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, key: Tensor, value: Tensor, *, count: int
) -> Tensor:
    """Attention of ``count`` completions over their prompt and, causally, themselves: Float[tokens, heads, width]."""
    attend = products if query.device.type == "cpu" else fused
    query, key, value = (each.reshape(count, -1, *each.shape[1:]) for each in (query, key, value))
    return attend(query, key, value, (prompt_key, prompt_value)).flatten(0, 1)


def fused(query: Tensor, key: Tensor, value: Tensor, prompt: tuple[Tensor, Tensor] | None) -> Tensor:
    """As `products`, by torch's kernels."""
    if prompt is not None:
        key, value = (
            torch.cat((given.expand(len(own), -1, -1, -1), own), dim=1)
            for given, own in zip(prompt, (key, value), strict=True)
        )
    mask: Any = causal_lower_right(query.shape[1], key.shape[1])
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def products(query: Tensor, key: Tensor, value: Tensor, prompt: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attention of queries Float[n, L, heads, width] over own keys, causally, and all keys of one prompt.

    Keys and values are Float[n, L, kv_heads, width] and, the prompt's, Float[P, kv_heads, width]. Plain matrix
    products: on processors their way back is faster than that of torch's fused kernel.
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
