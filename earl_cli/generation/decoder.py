"""The forward pass for sampling: Emu3's layers over a key-value cache that is allocated once and written in place.

It calls the model's own projections, norms and MLPs, so it works with whatever they have been replaced by (quantized or
adapted layers), follows every update of the weights, and computes what the model's own forward pass computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import Emu3ForCausalLM


class Decoder:
    """A model with a cache of ``lanes`` sequences; slot i of a lane belongs to position i of its sequence."""

    def __init__(self, model: Emu3ForCausalLM, lanes: int, capacity: int) -> None:
        config = model.config
        self.model = model
        self.layers: list[Any] = list(model.model.layers)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = int(self.layers[0].self_attn.head_dim)
        weight = model.model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.keys = [self._slots(lanes, capacity) for _ in self.layers]
        self.values = [self._slots(lanes, capacity) for _ in self.layers]
        self._tabulate(capacity)

    @property
    def lanes(self) -> int:
        """Number of sequences."""
        return len(self.keys[0])

    @property
    def capacity(self) -> int:
        """Number of positions that there is room for."""
        return int(self.keys[0].shape[2])

    def prefill(self, lane: int, copies: int, prompt: Sequence[int]) -> Tensor:
        """Runs a prompt once, into ``lane`` and the ``copies`` lanes after it; returns Float[hidden] at its last token.

        A prompt runs alone, so nothing else can change its bits.
        """
        ids = torch.tensor([prompt], device=self.device)
        hidden = self._forward(ids, slice(lane, lane + 1), [0])[0, -1]
        length = len(prompt)
        for cache in (*self.keys, *self.values):
            cache[lane + 1 : lane + 1 + copies, :, :length] = cache[lane, :, :length]
        return hidden

    def step(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Appends one or more tokens to every lane, of which ``starts`` are filled; returns Float[lanes, hidden] at the
        last token of each.
        """
        counts = [len(each) for each in tokens]
        longest = max(counts)
        if max(starts) + longest > self.capacity:
            self._grow(max(starts) + longest)
        ids = torch.tensor([[*each, *[0] * (longest - len(each))] for each in tokens], device=self.device)
        hidden = self._forward(ids, slice(None), starts)
        if min(counts) == longest:
            return hidden[:, -1]
        last = torch.tensor(counts, device=self.device) - 1
        return hidden[torch.arange(len(counts), device=self.device), last]

    def keep(self, lanes: Sequence[int]) -> None:
        """Keeps these lanes, in this order, and forgets the others."""
        index = torch.tensor(lanes, device=self.device)
        for caches in (self.keys, self.values):
            for layer, cache in enumerate(caches):
                caches[layer] = cache.index_select(0, index)

    def _forward(self, ids: Tensor, lanes: slice, starts: Sequence[int]) -> Tensor:
        """Normed hidden states Float[rows, tokens, hidden] of ids put after the ``starts`` filled slots of each row."""
        rows, count = ids.shape
        level = min(starts) == max(starts)
        if level:
            first, end = starts[0], starts[0] + count
            cos, sin, slots = self.cos[first:end], self.sin[first:end], None
        else:
            slots = torch.tensor(starts, device=self.device)[:, None] + torch.arange(count, device=self.device)
            first, end = min(starts), max(starts) + count
            cos, sin = self.cos[slots], self.sin[slots]
        mask = None if (level and count == 1) or first == end - count == 0 else self._mask(slots, first, count, end)
        hidden = self.model.model.embed_tokens(ids)
        for layer, all_keys, all_values in zip(self.layers, self.keys, self.values, strict=True):
            keys, values = all_keys[lanes], all_values[lanes]
            normed = layer.input_layernorm(hidden)
            attention = layer.self_attn
            query = self._heads(attention.q_proj(normed), self.heads)
            key = self._heads(attention.k_proj(normed), self.kv_heads)
            value = self._heads(attention.v_proj(normed), self.kv_heads)
            rotated = torch.cat((query, key), dim=2)
            rotated = rotated * cos + rotated.roll(self.width // 2, dims=-1) * sin
            query, key = rotated.split((self.heads, self.kv_heads), dim=2)
            if slots is None:
                keys[:, :, first:end] = key.transpose(1, 2)
                values[:, :, first:end] = value.transpose(1, 2)
            else:
                where = torch.arange(rows, device=self.device)[:, None]
                keys[where, :, slots] = key
                values[where, :, slots] = value
            mixed = self._attend(query, keys[:, :, :end], values[:, :, :end], mask)
            hidden = hidden + attention.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        states: Tensor = self.model.model.norm(hidden)
        return states

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Float[rows, tokens, heads * width] from queries Float[rows, tokens, heads, width] over the filled slots.

        The queries that share a key head lie side by side as tokens, so no key is ever copied.
        """
        rows, count = query.shape[:2]
        group = self.heads // self.kv_heads
        if count == keys.shape[2] > 1:  # a whole prompt
            keys, values = (cache.repeat_interleave(group, dim=1) for cache in (keys, values))
            mixed = scaled_dot_product_attention(query.transpose(1, 2), keys, values, is_causal=True)
            return mixed.transpose(1, 2).reshape(rows, count, -1)
        grouped = query.view(rows, count, self.kv_heads, group, self.width).transpose(1, 2)
        grouped = grouped.reshape(rows, self.kv_heads, count * group, self.width)
        mixed = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        mixed = mixed.view(rows, self.kv_heads, count, group, self.width).transpose(1, 2)
        return mixed.reshape(rows, count, -1)

    def _mask(self, slots: Tensor | None, first: int, count: int, end: int) -> Tensor:
        """Float[rows or 1, 1, tokens * group, end]: 0 up to a token's own slot, -inf after it."""
        if slots is None:
            slots = torch.arange(first, first + count, device=self.device)[None]
        hidden = torch.arange(end, device=self.device) > slots[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        return mask.repeat_interleave(self.heads // self.kv_heads, dim=1)[:, None]

    def _heads(self, projected: Tensor, count: int) -> Tensor:
        return projected.view(*projected.shape[:2], count, self.width)

    def _slots(self, lanes: int, capacity: int) -> Tensor:
        return torch.zeros(lanes, self.kv_heads, capacity, self.width, device=self.device, dtype=self.dtype)

    def _grow(self, needed: int) -> None:
        capacity = max(needed, self.capacity * 3 // 2)
        for caches in (self.keys, self.values):
            for layer, cache in enumerate(caches):
                caches[layer] = self._slots(self.lanes, capacity)
                caches[layer][:, :, : cache.shape[2]] = cache
        self._tabulate(capacity)

    def _tabulate(self, capacity: int) -> None:
        """Rotary factors of all positions, Float[capacity, 1, width]; the sign of the rotated half is in the sine."""
        positions = torch.arange(capacity, device=self.device)[None]
        cos, sin = self.model.model.rotary_emb(torch.empty(0, device=self.device, dtype=self.dtype), positions)
        sign = torch.ones(self.width, device=self.device, dtype=self.dtype)
        sign[: self.width // 2] = -1
        self.cos, self.sin = cos[0, :, None], (sin[0] * sign)[:, None]
