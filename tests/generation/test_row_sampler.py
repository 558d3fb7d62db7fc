"""Drawing in rows of logits: what an engine is left with, and that a state follows from the tokens alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import InputError
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.generation.vllm.row_sampler import RowSpec, RowState, sample_rows

if TYPE_CHECKING:
    from conftest import MakeRequest

    from earl_cli.models.bundle import EarlModel
    from earl_cli.tokens.layout import Mode

POSITIONS = 1024


def an_order(
    mode: Mode = "edit", seed: int = 0, sampling: SamplingParams | None = None, grammar: bool = True
) -> RowSpec:
    return RowSpec(mode, 3, 4, grammar, seed, POSITIONS, 60, 5, 24, sampling or SamplingParams())


def test_an_order_crosses_as_json() -> None:
    order = an_order("mixed", 7, SamplingParams(0.7, 12, 0.9, 0.05))
    assert RowSpec.from_dict(json.loads(json.dumps(order.to_dict()))) == order
    with pytest.raises(InputError, match="sampling"):
        RowSpec.from_dict({"mode": "edit"})
    with pytest.raises(InputError, match="top_p: must be above 0"):
        RowSpec.from_dict({**order.to_dict(), "sampling": {"top_p": 0}})


@pytest.mark.parametrize("mode", ["edit", "mixed"])
@pytest.mark.parametrize("sampling", [SamplingParams(0), SamplingParams(), SamplingParams(1.3, 50, 0.8, 0.1)])
def test_rows_give_what_the_transformers_engine_draws(
    tiny: EarlModel, request_for: MakeRequest, mode: Mode, sampling: SamplingParams
) -> None:
    request = request_for(grid=(3, 4), mode=mode, seeds=(5,))
    engine = TransformersEngine(tiny.language, tiny.layout, max_text_tokens=5, max_positions=POSITIONS)
    expected = engine.generate([request], sampling)[0][0]
    lane = RowState(an_order(mode, 5, sampling), tiny.layout)
    ids: list[int] = []
    with torch.inference_mode():
        while not lane.state.done:
            logits = tiny.language(torch.tensor([[*request.prompt, *ids]])).logits[:, -1].float().repeat(3, 1)
            untouched = logits[0].clone()
            sample_rows(logits, [(1, lane)])
            assert torch.equal(logits[0], untouched) and torch.equal(logits[2], untouched)
            assert int(logits[1].isfinite().sum()) == 1
            token = int(logits[1].argmax())
            assert logits[1, token].item() == pytest.approx(float(expected.logprobs[len(ids)]), abs=1e-4)
            ids.append(token)
            lane.catch_up(ids)
    assert ids == expected.ids.tolist()


@pytest.mark.parametrize("mode", ["edit", "reasoning"])
def test_a_lane_that_begins_late_is_where_the_old_one_was(
    tiny: EarlModel, request_for: MakeRequest, mode: Mode
) -> None:
    """As after a preemption, when all that was written comes at once."""
    request = request_for(grid=(3, 4), mode=mode, seeds=(5,))
    engine = TransformersEngine(tiny.language, tiny.layout, max_text_tokens=5, max_positions=POSITIONS)
    ids = engine.generate([request], SamplingParams())[0][0].ids.tolist()
    steady = RowState(an_order(mode, 5), tiny.layout)
    for place in range(len(ids)):
        late = RowState(an_order(mode, 5), tiny.layout)
        late.catch_up(ids[:place])
        steady.catch_up(ids[:place])
        assert (late.state, late.uniform) == (steady.state, steady.uniform)
        assert ids[place] in late.state.choices()


def test_lanes_of_every_kind_share_a_batch(tiny: EarlModel) -> None:
    torch.manual_seed(0)
    vocabulary = tiny.layout.vocabulary
    lanes = [
        RowState(an_order("edit", 1), tiny.layout),
        RowState(an_order("edit", 2, SamplingParams(0)), tiny.layout),
        RowState(an_order("mixed", 3), tiny.layout),
        RowState(an_order("edit", 4, grammar=False), tiny.layout),
        RowState(an_order("edit", 5), tiny.layout),
    ]
    lanes[4].catch_up([vocabulary.visual_start] * 4)  # a row of codes is full
    logits = torch.randn(5, vocabulary.size)
    best = int(logits[1, vocabulary.visual_start :].argmax()) + vocabulary.visual_start
    sample_rows(logits, enumerate(lanes))
    tokens = logits.argmax(dim=-1).tolist()
    assert (logits.isfinite().sum(dim=-1) == 1).all()
    assert tokens[0] >= vocabulary.visual_start and tokens[1] == best
    assert tokens[2] < vocabulary.visual_start
    assert (tokens[4], logits[4, tokens[4]].item()) == (vocabulary.eol, 0)


def test_logits_that_are_no_numbers_stay_so(tiny: EarlModel) -> None:
    logits = torch.full((1, tiny.layout.vocabulary.size), torch.nan)
    sample_rows(logits, [(0, RowState(an_order(), tiny.layout))])
    assert np.isnan(logits[0].numpy()).sum() == 1
