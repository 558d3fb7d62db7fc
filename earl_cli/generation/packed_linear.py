"""Linear projections of a decoding step, which has few rows: on a CPU with weights packed for that number of rows.

A plain product of eight rows spends half its time on reordering the weights for the kernel. oneDNN can keep them in
that order, through a 1x1 convolution over rows. On other devices, in other dtypes, for large models and for layers that
aren't plain linear ones the layers themselves are called.
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
"""The most memory for packed copies; larger models are not packed."""

MIN_PACKED_SIZE = 1 << 17
"""Elements of the smallest matrix that is packed; for smaller ones the convolution is slower."""

MAX_COPIES = 2
"""Row counts for which a copy is kept: steps of one and of two tokens a completion."""


@dataclass(frozen=True)
class LayerProjections:
    """A decoder layer's projections: queries, keys and values as one; the output; gate and up as one; down."""

    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection


def layer_projections(layers: Sequence[Any], *, packed: bool = False) -> list[LayerProjections]:
    """The projections of every layer, for inputs Float[..., in]; ``packed`` for few rows where that is faster."""
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
    """The projection with weights Float[out, in] stacked, from a copy packed for each row count.

    A copy packed for another row count would be reordered at every call.
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
