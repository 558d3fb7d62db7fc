"""Sampling one token: the right distribution, the right shortlist, and rows that know nothing of each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import UsageError
from earl_cli.generation.sampling import sample_tokens, uniforms


def allowed(logits: np.ndarray, sampling: SamplingParams) -> np.ndarray:
    """Probabilities of one row by definition: temperature, then top-k, of these top-p, of these min-p."""
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if 0 < sampling.top_k < len(scaled):
        order = order[: sampling.top_k]
    probability = np.exp(scaled[order] - scaled.max())
    probability /= probability.sum()
    kept = order[np.cumsum(probability) - probability < sampling.top_p]
    kept = kept[scaled[kept] - scaled.max() >= np.log(sampling.min_p)] if sampling.min_p else kept
    result = np.zeros(len(scaled))
    result[kept] = np.exp(scaled[kept] - scaled.max())
    return result / result.sum()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    columns=st.integers(1, 40),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([-1, 0, 1, 3, 2048]),
    top_p=st.sampled_from([0.2, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_every_share_of_the_unit_interval_goes_to_the_right_column(
    seed: int, columns: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = SamplingParams(temperature, top_k, top_p, min_p)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, columns).astype(np.float32))
    points = 4000
    chosen, logprobs = sample_tokens(logits.expand(points, -1), (torch.arange(points) + 0.5) / points, sampling)
    shares = np.bincount(chosen.numpy(), minlength=columns) / points
    assert np.abs(shares - allowed(logits.numpy(), sampling)).max() < 2 / points
    expected = torch.log_softmax(logits / temperature, dim=-1)[chosen]
    assert torch.allclose(logprobs, expected, atol=1e-5)


def test_greedy_takes_the_best_and_says_its_probability() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 0.0]])
    columns, logprobs = sample_tokens(logits, torch.tensor([0.999, 0.999]), SamplingParams(temperature=0))
    assert columns.tolist() == [1, 0]
    assert torch.allclose(logprobs, logits.log_softmax(-1).amax(-1))


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(top_k=5), SamplingParams(top_p=0.5), SamplingParams(min_p=1)]
)
def test_the_ends_of_the_interval_stay_inside(sampling: SamplingParams) -> None:
    logits = torch.full((2, 50), -1e4)
    logits[:, 7] = 0
    columns, _ = sample_tokens(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), sampling)
    assert columns.tolist() == [7, 7]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits, uniform = torch.randn(9, 300) * 3, torch.rand(9, dtype=torch.float64)
    for sampling in (
        SamplingParams(),
        SamplingParams(top_k=20),
        SamplingParams(0.5, 50, 0.8),
        SamplingParams(2, 0, 1, 0.2),
    ):
        together, _ = sample_tokens(logits, uniform, sampling)
        alone = [sample_tokens(logits[i : i + 1], uniform[i : i + 1], sampling)[0].item() for i in range(9)]
        assert together.tolist() == alone


def test_the_numbers_of_a_seed_are_always_the_same() -> None:
    assert uniforms(7, 3).tolist() == uniforms(7, 10)[:3].tolist()
    assert uniforms(7, 3).tolist() == pytest.approx([0.2794, 0.2737, 0.8621], abs=1e-4)
    assert uniforms(-1, 3).tolist() != uniforms(1, 3).tolist()
    with pytest.raises(UsageError, match="64 bits"):
        uniforms(2**64, 1)


def test_min_p_counts_from_the_likeliest_token() -> None:
    """Of 0.5, 0.25, 0.2 and 0.05 a share of 0.4 keeps what is at least 0.2, so 0.5, 0.25 and 0.2 of 0.95."""
    logits = torch.tensor([0.05, 0.5, 0.2, 0.25], dtype=torch.float64).log()
    points = 9500
    uniform = (torch.arange(points) + 0.5) / points
    columns, logprobs = sample_tokens(logits.expand(points, -1), uniform, SamplingParams(1, 0, 1, 0.4 - 1e-6))
    assert torch.bincount(columns, minlength=4).tolist() == pytest.approx([0, 5000, 2000, 2500], abs=1)
    assert torch.allclose(logprobs, logits[columns].float())  # those of the model, before anything is left out
