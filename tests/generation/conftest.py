"""A tiny model with random weights, and prompts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from earl_cli.generation.engine import SamplingRequest
from earl_cli.models.bundle import EarlModel, load_model
from earl_cli.tokens.layout import Grid, Mode

MakeRequest = Callable[..., SamplingRequest]


@pytest.fixture(scope="session")
def tiny(tiny_model_dir: Path) -> EarlModel:
    """The tiny model, with weights large enough that its choices aren't all alike."""
    model = load_model(str(tiny_model_dir), device="cpu")
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.language.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.15)
    return model


@pytest.fixture
def request_for(tiny: EarlModel) -> MakeRequest:
    def make(
        instruction: str = "make it snowy",
        grid: tuple[int, int] = (4, 4),
        mode: Mode = "edit",
        seeds: tuple[int, ...] = (0,),
        source: int = 0,
    ) -> SamplingRequest:
        codes = np.random.default_rng(source).integers(0, tiny.layout.vocabulary.codes, grid)
        prompt = tiny.layout.prompt(codes, instruction, mode)
        return SamplingRequest(tuple(prompt.tolist()), mode, Grid(*grid), seeds)

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Kernels split among threads round by the split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
