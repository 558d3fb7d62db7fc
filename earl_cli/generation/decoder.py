"""The forward pass for sampling: a prompt is cached once for all its completions, their own tokens in a static cache.

The result is that of the model's own forward pass. It uses the model's layers as they are (also quantized or adapted
ones), or copies of plain linear layers packed for few rows. A decoder is made for one batch, so weights may change
between two batches. Attention over the prompt and over a completion's own tokens are computed apart and merged by their
log-sum-exps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from earl_cli.generation.packed_linear import LayerProjections, Projection, head_projection, layer_projections

if TYPE_CHECKING:
    from transformers import Emu3ForCausalLM

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

MIN_ROWS = 4
"""From this number of rows on, matrix kernels round a row the same whatever the number of rows."""


@dataclass(frozen=True, eq=False)
class PromptCache:
    """Keys and values of a prompt, one Float[1, kv_heads, length, width] for each layer."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int


PromptSet = tuple[int, list[Tensor], list[Tensor]]
"""How many completions follow some prompts; these prompts' keys and values, Float[prompts, kv_heads, length, width]."""


class Decoder:
    """A model with a cache for a batch of completions, each after a prompt; slots count from the prompt's end on."""

    def __init__(self, model: Emu3ForCausalLM, batch_size: int, capacity: int) -> None:
        config, weight = model.config, model.model.embed_tokens.weight
        self.model = model
        self.layers: list[Any] = list(model.model.layers)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = int(self.layers[0].self_attn.head_dim)
        self.device, self.dtype = weight.device, weight.dtype
        self.keys = [self._slots(batch_size, capacity) for _ in self.layers]
        self.values = [self._slots(batch_size, capacity) for _ in self.layers]
        self.projections = layer_projections(self.layers, packed=True)
        self.head_projections: dict[tuple[int, int], Projection] = {}
        self.prompts: list[PromptCache] = []
        self.sets: list[PromptSet] | None = None
        self.positions = 0

    @property
    def batch_size(self) -> int:
        """Number of completions."""
        return len(self.keys[0])

    @property
    def capacity(self) -> int:
        """Tokens of its own that every completion has room for."""
        return int(self.keys[0].shape[2])

    def prefill(self, prompt: Sequence[int], copies: int) -> Tensor:
        """Runs a prompt for the next ``copies`` completions; returns Float[hidden] at its last token.

        A prompt runs alone, so its bits don't depend on other prompts.
        """
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            key, value = key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()
            keys.append(key)
            values.append(value)
            key, value = (each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (key, value))
            mixed = scaled_dot_product_attention(query.transpose(1, 2), key, value, is_causal=True)
            return mixed.transpose(1, 2).reshape(1, len(prompt), -1)

        ids = torch.tensor([prompt], device=self.device)
        self._tabulate(len(prompt) + self.capacity)
        projections = layer_projections(self.layers)
        hidden = self._forward(ids, self.cos[: len(prompt)], self.sin[: len(prompt)], projections, attend)
        self.prompts += [PromptCache(keys, values, len(prompt))] * copies
        self.sets = None
        return hidden[0, -1]

    def step(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Appends one or more tokens to every completion, of which ``starts`` slots are filled.

        Returns Float[batch, hidden] at the last token of each.
        """
        counts = [len(each) for each in tokens]
        longest = max(counts)
        if max(starts) + longest > self.capacity:
            self._grow(max(starts) + longest)
        ids = torch.tensor([[*each, *[0] * (longest - len(each))] for each in tokens], device=self.device)
        places = [prompt.length + start for prompt, start in zip(self.prompts, starts, strict=True)]
        index = self._range(places, longest)
        attend = self._attend_to_cache(starts, longest)
        hidden = self._forward(ids, self.cos[index], self.sin[index], self.projections, attend)
        if min(counts) == longest:
            return hidden[:, -1]
        return hidden[torch.arange(len(counts), device=self.device), torch.tensor(counts, device=self.device) - 1]

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows of the batch, in this order, and drops the others; one may be kept several times."""
        index = torch.tensor(rows, device=self.device)
        self.prompts = [self.prompts[row] for row in rows]
        self.sets = None
        for caches in (self.keys, self.values):
            for layer, cache in enumerate(caches):
                caches[layer] = cache.index_select(0, index)

    def logits(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Logits Float[batch, stop - start] of the ids in ``[start, stop)`` for hidden states Float[batch, hidden]."""
        if (start, stop) not in self.head_projections:
            self.head_projections[start, stop] = head_projection(self.model.lm_head, start, stop)
        return self.head_projections[start, stop](hidden)

    def _forward(
        self, ids: Tensor, cos: Tensor, sin: Tensor, projections: Sequence[LayerProjections], attend: Attend
    ) -> Tensor:
        """Normalised hidden states Float[rows, tokens, hidden]; ``attend`` is one layer's attention with its cache."""
        hidden = self.model.model.embed_tokens(ids)
        for index, (layer, projection) in enumerate(zip(self.layers, projections, strict=True)):
            states = projection.qkv(layer.input_layernorm(hidden)).view(*ids.shape, -1, self.width)
            both = states[:, :, : -self.kv_heads]
            both = both * cos + both.roll(self.width // 2, dims=-1) * sin
            query, key, value = both[:, :, : self.heads], both[:, :, self.heads :], states[:, :, -self.kv_heads :]
            hidden = hidden + projection.out(attend(index, query, key, value))
            gate, up = projection.gate_up(layer.post_attention_layernorm(hidden)).chunk(2, dim=-1)
            hidden = hidden + projection.down(layer.mlp.act_fn(gate) * up)
        normed: Tensor = self.model.model.norm(hidden)
        return normed

    def _attend_to_cache(self, starts: Sequence[int], count: int) -> Attend:
        """Attention of ``count`` new tokens a completion over its prompt, its own earlier tokens and themselves."""
        index, end = self._range(starts, count), max(starts) + count
        rows = torch.arange(self.batch_size, device=self.device)[:, None]
        mask = None if count == 1 and isinstance(index, slice) else self._mask(starts, count, end)
        sets = self._prompt_sets()
        group = self.heads // self.kv_heads

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own_keys, own_values = self.keys[layer], self.values[layer]
            if isinstance(index, slice):
                own_keys[:, :, index] = key.transpose(1, 2)
                own_values[:, :, index] = value.transpose(1, 2)
            else:
                own_keys[rows, :, index] = key
                own_values[rows, :, index] = value
            query = query.reshape(self.batch_size, count, self.kv_heads, group, self.width).transpose(1, 2)
            query = query.reshape(self.batch_size, self.kv_heads, count * group, self.width)
            own, own_log = _attention(query, own_keys[:, :, :end], own_values[:, :, :end], mask)
            parts = [
                _prompt_attention(part, keys[layer], values[layer])
                for part, (_, keys, values) in zip(torch.split(query, [n for n, *_ in sets]), sets, strict=True)
            ]
            given, given_log = (torch.cat(part) for part in zip(*parts, strict=True)) if len(parts) > 1 else parts[0]
            share = torch.sigmoid(own_log - given_log)[..., None].to(own.dtype)
            mixed = torch.lerp(given, own, share)
            mixed = mixed.view(self.batch_size, self.kv_heads, count, -1).transpose(1, 2)
            return mixed.reshape(self.batch_size, count, -1)

        return attend

    def _prompt_sets(self) -> list[PromptSet]:
        """The prompts in the order of the batch; neighbours of one length with as many completions each are one set."""
        if self.sets is None:
            groups = [(prompt, len(list(members))) for prompt, members in groupby(self.prompts)]
            alike = groupby(groups, key=lambda group: (group[0].length, group[1]))
            self.sets = [_stack([prompt for prompt, _ in members], copies) for (_, copies), members in alike]
        return self.sets

    def _range(self, starts: Sequence[int], count: int) -> slice | Tensor:
        """Indices of ``count`` places from each start on: a slice where all are equal, else Int[batch, count]."""
        if min(starts) == max(starts):
            return slice(starts[0], starts[0] + count)
        return torch.tensor(starts, device=self.device)[:, None] + torch.arange(count, device=self.device)

    def _mask(self, starts: Sequence[int], count: int, end: int) -> Tensor:
        """Float[batch, 1, count * group, end]: 0 up to a token's own slot, -inf after it."""
        slots = torch.tensor(starts, device=self.device)[:, None] + torch.arange(count, device=self.device)
        hidden = torch.arange(end, device=self.device) > slots[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        return mask.repeat_interleave(self.heads // self.kv_heads, dim=1)[:, None]

    def _slots(self, batch_size: int, capacity: int) -> Tensor:
        return torch.zeros(batch_size, self.kv_heads, capacity, self.width, device=self.device, dtype=self.dtype)

    def _grow(self, needed: int) -> None:
        capacity = max(needed, self.capacity * 3 // 2)
        for caches in (self.keys, self.values):
            for layer, cache in enumerate(caches):
                caches[layer] = self._slots(self.batch_size, capacity)
                caches[layer][:, :, : cache.shape[2]] = cache
        self._tabulate(max(prompt.length for prompt in self.prompts) + capacity)

    def _tabulate(self, positions: int) -> None:
        """Rotary factors Float[positions, 1, width]; the sign of the rotated half is in the sine."""
        if positions <= self.positions:
            return
        index = torch.arange(positions, device=self.device)[None]
        cos, sin = self.model.model.rotary_emb(torch.empty(0, device=self.device, dtype=self.dtype), index)
        sign = torch.ones(self.width, device=self.device, dtype=self.dtype)
        sign[: self.width // 2] = -1
        self.cos, self.sin, self.positions = cos[0, :, None], (sin[0] * sign)[:, None], positions


def _stack(prompts: Sequence[PromptCache], copies: int) -> PromptSet:
    """Prompts of one length as a set, each with ``copies`` completions; a single one isn't copied."""
    if len(prompts) == 1:
        return copies, prompts[0].keys, prompts[0].values
    keys, values = (
        [torch.cat(layer) for layer in zip(*parts, strict=True)]
        for parts in ([prompt.keys for prompt in prompts], [prompt.values for prompt in prompts])
    )
    return copies * len(prompts), keys, values


def _prompt_attention(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """As `_attention`, for queries Float[batch, kv_heads, rows, width], equally many for each of some prompts."""
    batch, kv_heads, rows, width = query.shape
    prompts = len(keys)
    each = batch // prompts * rows
    together = query.view(prompts, -1, kv_heads, rows, width).transpose(1, 2).reshape(prompts, kv_heads, each, width)
    if each < MIN_ROWS:
        together = together.repeat(1, 1, MIN_ROWS, 1)
    mixed, log = _attention(together, keys, values, None)
    mixed, log = mixed[:, :, :each], log[:, :, :each]
    mixed = mixed.reshape(prompts, kv_heads, -1, rows, width).transpose(1, 2).reshape(batch, kv_heads, rows, width)
    return mixed, log.reshape(prompts, kv_heads, -1, rows).transpose(1, 2).reshape(batch, kv_heads, rows)


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention Float[batch, heads, rows, width] and the logarithm of its normaliser Float[batch, heads, rows].

    On a CPU the logarithm is Float64, so that vectorised and scalar loops round alike.
    """
    if query.device.type == "cpu":
        mixed, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values, attn_mask=mask)
        return mixed, log.double()
    return plain_attention(query, keys, values, mask)


def plain_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same by definition, in float32, on any device; the matrix of scores is small, since a step has few rows."""
    scores = query.float() @ keys.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores if mask is None else scores + mask
    log = scores.logsumexp(dim=-1)
    return ((scores - log[..., None]).exp() @ values.float()).to(query.dtype), log
