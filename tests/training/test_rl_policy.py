"""Shared prompts give the states and gradients of every completion in a sequence of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Emu3ForCausalLM, Emu3TextConfig

from earl_cli.training.rl.policy import (
    PromptGroup,
    completion_states,
    fused_attention,
    matmul_attention,
    token_entropies,
    token_logprobs,
)

VOCABULARY = 60


@pytest.fixture(params=[(4, 2), (4, 4), (6, 1)], ids=str)
def model(request: pytest.FixtureRequest) -> Emu3ForCausalLM:
    heads, kv_heads = request.param
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=8 * heads,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
        attention_dropout=0.0,
        pad_token_id=0,
        attn_implementation="eager",
    )
    return Emu3ForCausalLM(config).eval()


def groups() -> list[PromptGroup]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 3, 5), (1, 1, 4), (0, 2, 6), (12, 4, 1)]
    return [
        PromptGroup(
            torch.randint(VOCABULARY, (prompt,), generator=generator),
            torch.randint(VOCABULARY, (count, length), generator=generator),
        )
        for prompt, count, length in shapes
    ]


def apart(model: Emu3ForCausalLM, group: PromptGroup) -> Tensor:
    """The same states from transformers' own forward pass, every completion behind a prompt of its own."""
    sequences = torch.cat((group.prompt.expand(len(group.inputs), -1), group.inputs), dim=1)
    return model.model(input_ids=sequences, use_cache=False).last_hidden_state[:, len(group.prompt) :].flatten(0, 1)


def gradients(model: Emu3ForCausalLM) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in model.model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("recompute", [False, True])
def test_states_and_gradients_are_those_of_whole_sequences(model: Emu3ForCausalLM, recompute: bool) -> None:
    shared = completion_states(model.model, groups(), recompute=recompute)
    weights = torch.randn(shared.shape, generator=torch.Generator().manual_seed(2))
    (shared * weights).sum().backward()
    ours = gradients(model)
    separate = torch.cat([apart(model, group) for group in groups()])
    (separate * weights).sum().backward()
    theirs = gradients(model)
    torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-5)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_without_gradients_the_states_are_the_same(model: Emu3ForCausalLM) -> None:
    with torch.no_grad():
        bare = completion_states(model.model, groups())
    assert torch.equal(bare, completion_states(model.model, groups()))


@pytest.mark.parametrize("shared", [0, 1, 9])
def test_both_kinds_of_attention_agree(shared: int) -> None:
    """GPUs take the fused kernels, processors plain products."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 5, 4, 8, generator=generator)
    key, value = torch.randn(2, 3, 5, 2, 8, generator=generator)
    given = torch.randn(2, shared, 2, 8, generator=generator)
    for prompt in [(given[0], given[1])] if shared else [None, (given[0], given[1])]:
        torch.testing.assert_close(
            fused_attention(query, key, value, prompt), matmul_attention(query, key, value, prompt)
        )


PARTS = ((0, 20), (20, VOCABULARY))


@pytest.mark.parametrize("parts", [PARTS, ((0, VOCABULARY),)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("at_once", [1 << 26, 100])
def test_logprobs_and_entropies_against_softmax_in_float64(
    parts: tuple[tuple[int, int], ...], temperature: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earl_cli.training.rl.policy.MAX_LOGITS", at_once)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(17, 8, generator=generator, requires_grad=True)
    head = torch.randn(VOCABULARY, 8, generator=generator, requires_grad=True)
    ids = torch.randint(VOCABULARY, (17,), generator=generator)
    weights = torch.randn(2, 17, generator=generator)
    logprobs = token_logprobs(hidden, head, ids, parts, temperature)
    entropies = token_entropies(hidden, head, ids, parts, temperature)
    (weights * torch.stack((logprobs, entropies))).sum().backward()

    exact_hidden, exact_head = (each.detach().double().requires_grad_() for each in (hidden, head))
    rows = []
    for state, token in zip(exact_hidden, ids.tolist(), strict=True):
        start, stop = next(part for part in parts if part[0] <= token < part[1])
        scores = (exact_head[start:stop] @ state) / temperature
        probabilities = scores.exp() / scores.exp().sum()
        rows.append(torch.stack((probabilities[token - start].log(), -(probabilities * probabilities.log()).sum())))
    naive = torch.stack(rows, dim=1)
    (weights * naive).sum().backward()
    torch.testing.assert_close(logprobs.double(), naive[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies.double(), naive[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), exact_hidden.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.grad.double(), exact_head.grad, rtol=1e-4, atol=1e-4)
