"""Loss and gradients against an independent float64 computation, one token at a time with Python's own numbers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.config.rl import RlConfig
from earl_cli.training.rl.loss import Objective, group_advantages, has_signal, k3, token_losses, trained_kind

rewards_of_a_group = st.lists(st.floats(0, 10), min_size=1, max_size=8)


def double(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(rewards_of_a_group, st.booleans())
def test_advantages(rewards: list[float], over_std: bool) -> None:
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((each - mean) ** 2 for each in rewards) / len(rewards))
    expected = [(each - mean) / ((std + 1e-4) if over_std else 1) for each in rewards]
    found = group_advantages(torch.tensor(rewards), over_std=over_std).tolist()
    assert found == pytest.approx(expected, abs=1e-3)


@given(rewards_of_a_group, st.integers(0, 8))
def test_a_missing_reward_changes_nothing_for_the_others(rewards: list[float], place: int) -> None:
    gaps = [*rewards[:place], math.nan, *rewards[place:]]
    found = group_advantages(double(gaps))
    there = group_advantages(double(rewards))
    assert torch.equal(found[~found.isnan()], there)
    assert int(found.isnan().sum()) == 1
    assert has_signal(double(gaps)) == has_signal(double(rewards)) == (len(set(rewards)) > 1)


def test_no_reward_at_all_is_no_signal() -> None:
    assert group_advantages(torch.tensor([math.nan, math.nan])).isnan().all()
    assert not has_signal(torch.tensor([math.nan, math.nan]))
    assert not has_signal(torch.tensor([math.nan, 3.0]))


def test_k3_is_an_estimate_of_the_divergence() -> None:
    torch.manual_seed(0)
    policy, reference = (torch.randn(6, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * k3(policy, reference)).sum(), exact)
    assert (k3(policy, reference) >= 0).all()


def naive(objective: Objective, weights: list[float], rows: list[tuple[float, ...]]) -> float:
    """Σ w·loss / Σ w in Python floats."""
    total = 0.0
    for weight, (logprob, advantage, old, reference, entropy) in zip(weights, rows, strict=True):
        if math.isnan(old):
            gain = logprob * advantage
        else:
            ratio = math.exp(logprob - old)
            low, high = 1 - objective.clip_low, 1 + objective.clip_high
            gain = min(ratio * advantage, min(max(ratio, low), high) * advantage)
        kl = math.exp(reference - logprob) - 1 - (reference - logprob)
        total += weight * (-gain + objective.kl_coeff * kl - objective.entropy_coeff * entropy)
    return total / sum(weights)


@pytest.mark.parametrize("several", [False, True])
def test_loss_and_gradient_of_every_token(several: bool) -> None:
    objective = Objective(kl_coeff=0.3, clip_low=0.2, clip_high=0.28, entropy_coeff=0.1)
    torch.manual_seed(0)
    logprobs = -3 * torch.rand(40, dtype=torch.float64)
    old = logprobs + 0.3 * torch.randn(40, dtype=torch.float64)
    reference = logprobs + 0.5 * torch.randn(40, dtype=torch.float64)
    advantage, entropy = torch.randn(40, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    weights = [1.0] * 30 + [0.0] * 10
    logprobs.requires_grad_()
    losses = token_losses(
        objective, logprobs, advantage, old=old if several else None, reference=reference, entropy=entropy
    )
    loss = (torch.tensor(weights, dtype=torch.float64) * losses).sum() / sum(weights)
    loss.backward()

    def shifted(place: int, by: float) -> float:
        rows = [
            (value + (by if i == place else 0), a, o if several else math.nan, r, h)
            for i, (value, a, o, r, h) in enumerate(
                zip(
                    logprobs.tolist(),
                    advantage.tolist(),
                    old.tolist(),
                    reference.tolist(),
                    entropy.tolist(),
                    strict=True,
                )
            )
        ]
        return naive(objective, weights, rows)

    assert loss.item() == pytest.approx(shifted(-1, 0), rel=1e-12)
    slopes = [(shifted(i, 1e-6) - shifted(i, -1e-6)) / 2e-6 for i in range(40)]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def test_the_first_of_several_updates_has_the_gradient_of_the_only_one() -> None:
    objective = Objective(kl_coeff=0.0, clip_low=0.2, clip_high=0.2, entropy_coeff=0.0)
    logprobs = torch.randn(9, requires_grad=True)
    advantage = torch.randn(9)
    (once,) = torch.autograd.grad(token_losses(objective, logprobs, advantage).sum(), logprobs)
    old = logprobs.detach()
    (several,) = torch.autograd.grad(token_losses(objective, logprobs, advantage, old=old).sum(), logprobs)
    torch.testing.assert_close(once, several)


def settings(**values: object) -> RlConfig:
    return RlConfig(data=("store",), output="run", **values)


def test_which_tokens_are_trained_in_a_cycle() -> None:
    def kinds(**values: object) -> list[str]:
        return [trained_kind(settings(**values), iteration) for iteration in range(8)]

    assert kinds() == ["all"] * 8
    text = kinds(train_text_tokens_only=True, text_only_cycle_steps=4, text_only_steps=1)
    assert text == ["text", "visual", "visual", "visual"] * 2
    vision = kinds(train_vision_tokens_only=True, vision_only_cycle_steps=4, vision_only_steps=3)
    assert vision == ["visual", "visual", "visual", "all"] * 2
    assert kinds(train_text_tokens_only=True) == ["text"] * 8  # as published: 10 of 10


@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_a_table_of_probabilities_reaches_its_optimum(kl: float) -> None:
    """One token, five choices: without KL the best one; with it what the gradient's zero gives in closed form."""
    torch.manual_seed(0)
    rewards = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5])
    reference = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1]).log()
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    objective = Objective(kl_coeff=kl, clip_low=0.2, clip_high=0.2, entropy_coeff=0.0)
    for _ in range(600):
        sampled = torch.multinomial(logits.detach().softmax(0), 512, replacement=True)
        logprobs = logits.log_softmax(0)[sampled]
        advantage = group_advantages(rewards[sampled], over_std=False).float()
        losses = token_losses(objective, logprobs, advantage, reference=reference[sampled])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    found = logits.detach().softmax(0)
    if not kl:
        assert found[-1] > 0.95
        assert all(early <= late + 0.02 for early, late in pairwise(found.tolist()))
    else:
        torch.testing.assert_close(found, optimum(rewards, reference.exp(), kl), atol=0.03, rtol=0)


def optimum(rewards: torch.Tensor, reference: torch.Tensor, kl: float) -> torch.Tensor:
    """Where the expected gradient vanishes: p = kl · reference / (λ − reward), λ such that p sums to one.

    On samples of the policy the gradient of k3 is that of KL(reference‖policy).
    """
    low, high = rewards.max().item(), 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (kl * reference / (middle - rewards)).sum() > 1 else (low, middle)
    return kl * reference / (high - rewards)
