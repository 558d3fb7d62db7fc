"""The training of the vision tokenizer goes on where it stopped, in the same bits."""

from __future__ import annotations

from pathlib import Path

import finer_vision
import pytest
import torch
import vision
from torch import Tensor


def batch(step: int) -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1


def trained(state: Path, *stops: int) -> dict[str, Tensor]:
    """The weights after four steps, begun anew from the file at each of ``stops``."""
    schedule = vision.Schedule(steps=4, warm_up=2, peak=1e-3)
    for stop in (*stops, None):
        model = vision.new_model()

        def watched(step: int, stop: int | None = stop) -> Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return batch(step)

        try:
            vision.fit(model, watched, finer_vision.loss_of, lambda: 0.0, state, schedule, save_every=1)
        except KeyboardInterrupt:
            assert stop is not None
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, torn = trained(tmp_path / "whole.pt"), trained(tmp_path / "torn.pt", 1, 3)
    assert all(torch.equal(whole[name], torn[name]) for name in whole)
    start = vision.new_model().state_dict()
    assert any(not torch.equal(whole[name], start[name]) for name in whole)


def test_the_rate_rises_and_falls_to_a_fiftieth() -> None:
    rates = [vision.Schedule(steps=100, warm_up=10, peak=1.0).rate(step) for step in range(101)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == 1.0
    assert abs(rates[100] - 0.02) < 1e-9
    assert rates[10:] == sorted(rates[10:], reverse=True)
