"""Sampling in rows of logits: what an engine is left with, and that a state follows from the tokens alone."""

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


def a_spec(mode: Mode = "edit", seed: int = 0, sampling: SamplingParams | None = None, grammar: bool = True) -> RowSpec:
    return RowSpec(mode, 3, 4, grammar, seed, POSITIONS, 60, 5, 24, sampling or SamplingParams())


def test_a_row_spec_crosses_as_json() -> None:
    spec = a_spec("mixed", 7, SamplingParams(0.7, 12, 0.9, 0.05))
    assert RowSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(InputError, match="sampling"):
        RowSpec.from_dict({"mode": "edit"})
    with pytest.raises(InputError, match="top_p: must be above 0"):
        RowSpec.from_dict({**spec.to_dict(), "sampling": {"top_p": 0}})


@pytest.mark.parametrize("mode", ["edit", "mixed"])
@pytest.mark.parametrize("sampling", [SamplingParams(0), SamplingParams(), SamplingParams(1.3, 50, 0.8, 0.1)])
def test_rows_give_what_the_transformers_engine_samples(
    tiny: EarlModel, request_for: MakeRequest, mode: Mode, sampling: SamplingParams
) -> None:
    request = request_for(grid=(3, 4), mode=mode, seeds=(5,))
    engine = TransformersEngine(tiny.language, tiny.layout, max_text_tokens=5, max_positions=POSITIONS)
    expected = engine.generate([request], sampling)[0][0]
    state = RowState(a_spec(mode, 5, sampling), tiny.layout)
    ids: list[int] = []
    with torch.inference_mode():
        while not state.grammar.done:
            logits = tiny.language(torch.tensor([[*request.prompt, *ids]])).logits[:, -1].float().repeat(3, 1)
            untouched = logits[0].clone()
            sample_rows(logits, [(1, state)])
            assert torch.equal(logits[0], untouched) and torch.equal(logits[2], untouched)
            assert int(logits[1].isfinite().sum()) == 1
            token = int(logits[1].argmax())
            assert logits[1, token].item() == pytest.approx(float(expected.logprobs[len(ids)]), abs=1e-4)
            ids.append(token)
            state.advance_to(ids)
    assert ids == expected.ids.tolist()


@pytest.mark.parametrize("mode", ["edit", "reasoning"])
def test_a_state_that_begins_late_equals_the_old_one(tiny: EarlModel, request_for: MakeRequest, mode: Mode) -> None:
    """As after a preemption, when all that was written comes at once."""
    request = request_for(grid=(3, 4), mode=mode, seeds=(5,))
    engine = TransformersEngine(tiny.language, tiny.layout, max_text_tokens=5, max_positions=POSITIONS)
    ids = engine.generate([request], SamplingParams())[0][0].ids.tolist()
    steady = RowState(a_spec(mode, 5), tiny.layout)
    for place in range(len(ids)):
        late = RowState(a_spec(mode, 5), tiny.layout)
        late.advance_to(ids[:place])
        steady.advance_to(ids[:place])
        assert (late.grammar, late.uniform) == (steady.grammar, steady.uniform)
        assert ids[place] in late.grammar.allowed()


def test_rows_of_every_kind_share_a_batch(tiny: EarlModel) -> None:
    torch.manual_seed(0)
    vocabulary = tiny.layout.vocabulary
    rows = [
        RowState(a_spec("edit", 1), tiny.layout),
        RowState(a_spec("edit", 2, SamplingParams(0)), tiny.layout),
        RowState(a_spec("mixed", 3), tiny.layout),
        RowState(a_spec("edit", 4, grammar=False), tiny.layout),
        RowState(a_spec("edit", 5), tiny.layout),
    ]
    rows[4].advance_to([vocabulary.visual_start] * 4)  # a row of codes is full
    logits = torch.randn(5, vocabulary.size)
    best = int(logits[1, vocabulary.visual_start :].argmax()) + vocabulary.visual_start
    sample_rows(logits, enumerate(rows))
    tokens = logits.argmax(dim=-1).tolist()
    assert (logits.isfinite().sum(dim=-1) == 1).all()
    assert tokens[0] >= vocabulary.visual_start and tokens[1] == best
    assert tokens[2] < vocabulary.visual_start
    assert (tokens[4], logits[4, tokens[4]].item()) == (vocabulary.eol, 0)


def test_logits_that_are_no_numbers_stay_so(tiny: EarlModel) -> None:
    logits = torch.full((1, tiny.layout.vocabulary.size), torch.nan)
    sample_rows(logits, [(0, RowState(a_spec(), tiny.layout))])
    assert np.isnan(logits[0].numpy()).sum() == 1
