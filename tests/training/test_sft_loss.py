"""The loss against a plain one in double precision, written from the definition."""

from __future__ import annotations

import pytest
import torch

from earl_cli.tokens.vocabulary import small_vocabulary
from earl_cli.training.rl.policy import token_logprobs
from earl_cli.training.sft import loss
from earl_cli.training.sft.loss import count_labels, separate_vocabularies, summed_loss, whole_vocabulary

VOCABULARY = small_vocabulary(text_size=11, codes=23)


def by_definition(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    total = hidden.new_zeros(())
    for row in range(len(labels)):
        for at in range(1, labels.shape[1]):
            label = int(labels[row, at])
            if label == -100:
                continue
            visual = label >= VOCABULARY.visual_start
            rows = range(VOCABULARY.visual_start, VOCABULARY.size) if visual else range(VOCABULARY.visual_start)
            logits = head[list(rows)] @ hidden[row, at - 1]
            total = total - (logits[label - rows[0]] - logits.exp().sum().log())
    return total


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_are_those_of_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(VOCABULARY.size, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, VOCABULARY.size, (2, 9), generator=generator)
    labels[:, :3] = -100
    expected = by_definition(hidden, head, labels)
    wanted = torch.autograd.grad(expected, (hidden, head))
    found = summed_loss(hidden, head, labels, separate_vocabularies(VOCABULARY))
    gradients = torch.autograd.grad(found, (hidden, head))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-6, atol=1e-9)
    assert count_labels(labels) == 12


def test_nothing_labelled_is_no_loss() -> None:
    labels = torch.full((1, 4), -100)
    loss = summed_loss(torch.randn(1, 4, 5), torch.randn(VOCABULARY.size, 5), labels, separate_vocabularies(VOCABULARY))
    assert loss.item() == 0
    assert count_labels(labels) == 0


@pytest.mark.parametrize("at_once", [1 << 26, 12_000])
def test_of_sixteen_bits_all_but_the_product_has_thirty_two(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published loss: logits in bfloat16, everything after them in float32."""
    monkeypatch.setattr(loss, "MAX_LOGITS", at_once)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 1001, 5, generator=generator).bfloat16().requires_grad_()
    head = torch.randn(VOCABULARY.size, 5, generator=generator).bfloat16().requires_grad_()
    labels = torch.randint(0, VOCABULARY.size, (1, 1001), generator=generator)
    logits = torch.nn.functional.linear(hidden[0, :-1], head).float()
    each = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none")
    wanted = torch.autograd.grad(each.sum(), (hidden, head), retain_graph=True)
    found = summed_loss(hidden, head, labels, whole_vocabulary(VOCABULARY))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(each.sum().item(), rel=1e-6)
    for gradient, want in zip(torch.autograd.grad(found, (hidden, head)), wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0.05, atol=0.2)
    logprobs = token_logprobs(hidden[0, :-1], head, labels[0, 1:], whole_vocabulary(VOCABULARY))
    torch.testing.assert_close(logprobs, -each, rtol=1e-6, atol=1e-6)
