"""Products from weights laid out for few rows: the same numbers, and the same bits for a row in any company."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from earl_cli.generation.products import head_product, packed


@pytest.mark.parametrize("shape", [(512, 256), (256, 640), (17, 48), (1, 3)], ids=str)
@pytest.mark.parametrize("rows", [4, 8, 13])
def test_packed_products_are_the_plain_ones(shape: tuple[int, int], rows: int) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(shape), torch.randn(5, shape[1])]
    product = packed(weights, rows)
    for size in ((rows, shape[1]), (rows, 2, shape[1]), (1, 30, shape[1])):
        hidden = torch.randn(size)
        assert torch.allclose(product(hidden), linear(hidden, torch.cat(weights)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(512, 256), (64, 64), (512, 64)], ids=str)
def test_a_row_has_the_same_bits_in_any_company(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, hidden = torch.randn(shape), torch.randn(24, shape[1])
    expected = packed([weight], 4)(hidden[:4])
    for rows in (8, 9, 12, 16, 24):
        product = packed([weight], rows)
        assert torch.equal(product(hidden[:rows])[:4], expected)
        assert torch.equal(product(hidden[:rows].flip(0)).flip(0)[:4], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slice_of_the_head_gives_a_slice_of_the_logits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(4, 32).to(dtype)
    for bias in (False, True):
        head = nn.Linear(32, 100, bias=bias).to(dtype)
        with torch.no_grad():
            found, expected = head_product(head, 20, 90, 4)(hidden), head(hidden)[:, 20:90]
        assert found.dtype == dtype
        assert torch.allclose(found.float(), expected.float(), atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
