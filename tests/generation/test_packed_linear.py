"""Products from weights laid out for few rows: the same numbers, and the same bits for a row in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from earl_cli.generation.packed_linear import MAX_COPIES, head_projection, pack


@pytest.mark.parametrize("shape", [(512, 256), (256, 640), (17, 48)], ids=str)
def test_packed_products_are_the_plain_ones(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(shape), torch.randn(5, shape[1])]
    product = pack(weights)
    for size in ((8, shape[1]), (8, 2, shape[1]), (1, 30, shape[1]), (70, shape[1]), (8, shape[1])):
        hidden = torch.randn(size)
        assert torch.allclose(product(hidden), linear(hidden, torch.cat(weights)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(512, 256), (256, 640), (64, 64)], ids=str)
def test_a_row_has_the_same_bits_in_any_company(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    product, hidden = pack([torch.randn(shape)]), torch.randn(96, shape[1])
    expected = product(hidden[:4])
    for rows in (8, 9, 24, 64, 96):
        assert torch.equal(product(hidden[:rows])[:4], expected)
        assert torch.equal(product(hidden[:rows].flip(0)).flip(0)[:4], expected)


def test_two_row_counts_have_their_own_layouts_which_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout that doesn't fit the number of rows costs fifty times as much, and so does making one at every step."""
    made: list[int] = []
    reorder = torch._C._nn.mkldnn_reorder_conv2d_weight

    def counted(weight: torch.Tensor, *layout: Any) -> torch.Tensor:
        made.append(layout[-1][2])
        return reorder(weight, *layout)

    monkeypatch.setattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", counted)
    torch.manual_seed(0)
    product = pack([torch.randn(1280, 256)])
    for rows in (32, 64) * 5:
        product(torch.randn(rows, 256))
    assert made == [32, 64]
    assert len(made) == MAX_COPIES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slice_of_the_head_gives_a_slice_of_the_logits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(4, 32).to(dtype)
    for bias in (False, True):
        head = nn.Linear(32, 100, bias=bias).to(dtype)
        with torch.no_grad():
            found, expected = head_projection(head, 20, 90)(hidden), head(hidden)[:, 20:90]
        assert found.dtype == dtype
        assert torch.allclose(found.float(), expected.float(), atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
