"""The matrix products of a decoding step, which has few rows: on a CPU their weights are laid out once for that.

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

Product = Callable[[Tensor], Tensor]

MAX_PACKED_BYTES = 1_000_000_000
"""Above this the copies would cost more memory than they save time."""


@dataclass(frozen=True)
class LayerProducts:
    """A decoder layer's products: queries, keys and values side by side; the output; gate and up side by side; down."""

    qkv: Product
    out: Product
    gate_up: Product
    down: Product


def layer_products(layers: Sequence[Any], rows: int | None = None) -> list[LayerProducts]:
    """The products of every layer, for inputs Float[..., in]; with ``rows`` laid out for so many, if possible."""
    groups = [
        (
            (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            (layer.self_attn.o_proj,),
            (layer.mlp.gate_proj, layer.mlp.up_proj),
            (layer.mlp.down_proj,),
        )
        for layer in layers
    ]
    modules = [module for group in groups for part in group for module in part]
    if rows is None or not _packable(modules):
        return [LayerProducts(*map(_side_by_side, group)) for group in groups]
    return [LayerProducts(*(packed([m.weight for m in part], rows) for part in group)) for group in groups]


def head_product(head: nn.Module, start: int, stop: int, rows: int) -> Product:
    """Logits of the ids in ``[start, stop)`` alone."""
    weight: Any = head.weight[start:stop]  # type: ignore[index]
    if _packable([head]):
        return packed([weight], rows)
    bias: Any = head.bias
    return lambda hidden: linear(hidden, weight, None if bias is None else bias[start:stop])


def packed(weights: Sequence[Tensor], rows: int) -> Product:
    """The product with weights Float[out, in] one below the other, from a copy laid out for ``rows`` rows."""
    weight = torch.cat([each.detach() for each in weights])
    width, inputs = weight.shape
    kernel = weight.view(width, inputs, 1, 1).to_mkldnn()
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    kernel = reorder(kernel, (0, 0), (1, 1), (1, 1), 1, (1, inputs, rows, 1))
    convolve = torch.ops.mkldnn._convolution_pointwise

    def product(hidden: Tensor) -> Tensor:
        pixels = hidden.reshape(1, -1, 1, inputs).permute(0, 3, 1, 2)
        result: Tensor = convolve(pixels, kernel, None, (0, 0), (1, 1), (1, 1), 1, "none", [], "")
        return result.permute(0, 2, 3, 1).reshape(*hidden.shape[:-1], width)

    return product


def _packable(modules: Sequence[nn.Module]) -> bool:
    if any(type(each) is not nn.Linear or each.bias is not None for each in modules):
        return False
    weights = [weight for each in modules for weight in each.parameters()]
    suited = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    small = sum(weight.nbytes for weight in weights) <= MAX_PACKED_BYTES
    return suited and small and bool(torch._C._has_mkldnn) and bool(torch.backends.mkldnn.enabled)


def _side_by_side(modules: Sequence[nn.Module]) -> Product:
    if len(modules) == 1:
        return modules[0]
    return lambda hidden: torch.cat([module(hidden) for module in modules], dim=-1)
