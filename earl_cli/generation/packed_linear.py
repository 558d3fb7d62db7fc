"""The matrix products of a decoding step, which has few rows: on a CPU their weights are laid out for just so many.

A plain product of eight rows spends half its time on bringing the weights into the order that the kernel wants. oneDNN
keeps them in that order, reached here as a 1x1 convolution over rows. Other devices, types, large models and layers
that aren't plain linear ones use the layers themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Projection = Callable[[Tensor], Tensor]

MAX_PACKED_BYTES = 256_000_000
"""Above this the copies would cost more memory than they are worth."""

MIN_PACKED_SIZE = 1 << 17
"""Numbers in a matrix from which a copy pays; a smaller one is read faster than a convolution is set up."""

MAX_COPIES = 2
"""Row counts that a copy is kept for: a step of one token for every lane, and one of two."""


@dataclass(frozen=True)
class LayerProjections:
    """A decoder layer's products: queries, keys and values side by side; the output; gate and up side by side; down."""

    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection


def layer_projections(layers: Sequence[Any], *, packed: bool = False) -> list[LayerProjections]:
    """The products of every layer, for inputs Float[..., in]; ``packed`` from copies for few rows, where that pays."""
    groups = [
        (
            (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            (layer.self_attn.o_proj,),
            (layer.mlp.gate_proj, layer.mlp.up_proj),
            (layer.mlp.down_proj,),
        )
        for layer in layers
    ]
    if packed and _packable([module for group in groups for part in group for module in part]):
        return [LayerProjections(*(pack([module.weight for module in part]) for part in group)) for group in groups]
    return [LayerProjections(*map(_side_by_side, group)) for group in groups]


def head_projection(head: nn.Module, start: int, stop: int) -> Projection:
    """Logits of the ids in ``[start, stop)`` alone."""
    weight: Any = head.weight[start:stop]  # type: ignore[index]
    if _packable([head]):
        return pack([weight])
    bias: Any = head.bias
    return lambda hidden: linear(hidden, weight, None if bias is None else bias[start:stop])


def pack(weights: Sequence[Tensor]) -> Projection:
    """The product with weights Float[out, in] one below the other, each row count from a copy of its own layout.

    A copy in the layout of another row count would be laid out again at every call.
    """
    weight = torch.cat([each.detach() for each in weights])
    if weight.numel() < MIN_PACKED_SIZE:
        return lambda hidden: linear(hidden, weight)
    width, inputs = weight.shape
    convolve, reorder = torch.ops.mkldnn._convolution_pointwise, torch._C._nn.mkldnn_reorder_conv2d_weight
    kernels: dict[int, Tensor] = {}

    def kernel(rows: int) -> Tensor:
        if rows not in kernels:
            if len(kernels) == MAX_COPIES:
                kernels.pop(next(iter(kernels)))
            layout: tuple[Any, ...] = ((0, 0), (1, 1), (1, 1), 1, (1, inputs, rows, 1))
            kernels[rows] = reorder(weight.view(width, inputs, 1, 1).to_mkldnn(), *layout)
        return kernels[rows]

    def project(hidden: Tensor) -> Tensor:
        pixels = hidden.reshape(1, -1, 1, inputs).permute(0, 3, 1, 2)
        result: Tensor = convolve(pixels, kernel(pixels.shape[2]), None, (0, 0), (1, 1), (1, 1), 1, "none", [], "")
        return result.permute(0, 2, 3, 1).reshape(*hidden.shape[:-1], width)

    return project


def _packable(modules: Sequence[nn.Module]) -> bool:
    if any(type(each) is not nn.Linear or each.bias is not None for each in modules):
        return False
    weights = [weight for each in modules for weight in each.parameters()]
    suited = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    small = sum(weight.nbytes for weight in weights) <= MAX_PACKED_BYTES
    return suited and small and bool(torch._C._has_mkldnn) and bool(torch.backends.mkldnn.enabled)


def _side_by_side(modules: Sequence[nn.Module]) -> Projection:
    if len(modules) == 1:
        return modules[0]
    return lambda hidden: torch.cat([module(hidden) for module in modules], dim=-1)
