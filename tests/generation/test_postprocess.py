"""A thread beside the one that samples: the same bits as here, nothing begun after an error, nothing left half."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from earl_cli.generation.editing import decode_image
from earl_cli.generation.pipeline import PostprocessThread
from earl_cli.models.bundle import load_model

CODES = np.random.default_rng(0).integers(0, 512, (4, 9, 7))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_it_gives_the_bits_that_this_thread_gives(threads: int, tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        here = [decode_image(model, codes) for codes in CODES]
        with PostprocessThread() as beside, torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            there = [beside.submit(decode_image, model, codes) for codes in CODES]
            assert all(np.array_equal(one, other.result()) for one, other in zip(here, there, strict=True))
            assert beside.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(usual)


def test_an_interruption_waits_for_what_has_begun_and_drops_the_rest() -> None:
    done: list[str] = []

    def begun() -> None:
        assert beside.stopping.wait(60)
        done.append("begun")

    waiting: list[Future[None]] = []
    with pytest.raises(KeyboardInterrupt), PostprocessThread() as beside:
        waiting += [beside.submit(begun), beside.submit(done.append, "next")]
        while not waiting[0].running():
            pass
        raise KeyboardInterrupt
    assert done == ["begun"]
    assert waiting[1].cancelled()


def test_what_fails_there_is_raised_where_it_is_waited_for() -> None:
    with pytest.raises(ZeroDivisionError), PostprocessThread() as beside:
        beside.submit(divmod, 1, 0).result()
