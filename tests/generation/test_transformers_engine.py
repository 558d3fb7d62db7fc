"""The engine against transformers' own generate, and its promises: seeds, company, grammar, log-probabilities."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import InputError, ModelError
from earl_cli.generation.decoder import Decoder
from earl_cli.generation.engine import Completion, SamplingRequest
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.tokens.grammar import start_state
from earl_cli.tokens.layout import Grid, SequenceLayout
from earl_cli.tokens.vocabulary import small_vocabulary

if TYPE_CHECKING:
    from conftest import MakeRequest

    from earl_cli.models.bundle import EarlModel

GREEDY = SamplingParams(temperature=0)


class GrammarMask(LogitsProcessor):
    """What users of transformers write: everything but the allowed ids to -inf, from the whole sequence each step."""

    def __init__(self, layout: SequenceLayout, request: SamplingRequest, prompt_length: int) -> None:
        self.layout, self.request, self.prompt_length = layout, request, prompt_length

    def __call__(self, ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        masked = torch.full_like(scores, float("-inf"))
        for row, sequence in enumerate(ids[:, self.prompt_length :].tolist()):
            state = start_state(self.layout, self.request.mode, self.request.grid)
            for token in sequence:
                state = state.advance(token)
            allowed = state.allowed()
            masked[row, allowed.start : allowed.stop] = scores[row, allowed.start : allowed.stop]
        return masked


def transformers_ids(tiny: EarlModel, requests: list[SamplingRequest]) -> list[list[int]]:
    """Greedy completions of one transformers batch, prompts padded on the left."""
    vocabulary = tiny.layout.vocabulary
    longest = max(len(request.prompt) for request in requests)
    ids = torch.tensor([[vocabulary.pad] * (longest - len(r.prompt)) + list(r.prompt) for r in requests])
    mask = torch.tensor([[0] * (longest - len(r.prompt)) + [1] * len(r.prompt) for r in requests])
    out = tiny.language.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=400,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
        logits_processor=LogitsProcessorList([GrammarMask(tiny.layout, requests[0], longest)]),
    )
    rows = out[:, longest:].tolist()
    return [row[: row.index(vocabulary.eos) + 1] for row in rows]


def test_greedy_ids_are_those_of_transformers(tiny: EarlModel, request_for: MakeRequest) -> None:
    requests = [request_for("make it snowy", source=1), request_for("turn it into night, please", source=2)]
    found = TransformersEngine(tiny.language, tiny.layout).generate(requests, GREEDY)
    assert [group[0].ids.tolist() for group in found] == transformers_ids(tiny, requests)
    assert len({tuple(group[0].ids) for group in found}) == 2


def test_every_completion_is_an_image(tiny: EarlModel, request_for: MakeRequest) -> None:
    requests = [request_for(grid=grid, seeds=(1, 2, 3), source=i) for i, grid in enumerate([(4, 4), (3, 5), (1, 1)])]
    found = TransformersEngine(tiny.language, tiny.layout).generate(requests, SamplingParams())
    for request, group in zip(requests, found, strict=True):
        assert len(group) == 3
        for completion in group:
            parsed = tiny.layout.parse_completion(completion.ids, "edit", request.grid)
            assert parsed.problem is None
            assert parsed.finished
            assert completion.finished
            assert completion.ids[-1] == tiny.layout.vocabulary.eos
            assert completion.sampled.sum() == request.grid.codes


@pytest.mark.parametrize(
    "sampling", [SamplingParams(0.7, 50), SamplingParams(1.0, -1), SamplingParams(1.3, 0, 0.9, 0.1), GREEDY]
)
def test_logprobs_are_those_of_a_full_forward_pass(
    tiny: EarlModel, request_for: MakeRequest, sampling: SamplingParams
) -> None:
    request = request_for(seeds=(3, 4))
    start = tiny.layout.vocabulary.visual_start
    for completion in TransformersEngine(tiny.language, tiny.layout).generate([request], sampling)[0]:
        ids = torch.tensor([[*request.prompt, *completion.ids]])
        with torch.no_grad():
            logits = tiny.language(ids).logits[0, len(request.prompt) - 1 : -1, start:]
        expected = (logits / (sampling.temperature or 1)).log_softmax(-1)
        chosen = torch.from_numpy(completion.sampled)
        columns = torch.from_numpy(completion.ids)[chosen] - start
        found = torch.from_numpy(completion.logprobs)
        assert torch.allclose(found[chosen], expected[chosen].gather(1, columns[:, None])[:, 0], atol=1e-4)
        assert (found[~chosen] == 0).all()


def test_a_small_image_is_given_out_while_a_large_one_is_sampled(tiny: EarlModel, request_for: MakeRequest) -> None:
    steps: list[int] = []
    given: dict[int, tuple[int, Completion]] = {}

    def take(number: int, _: int, completion: Completion) -> None:
        given[number] = len(steps), completion

    requests = [request_for(grid=(6, 6)), request_for(grid=(2, 2))]
    engine = TransformersEngine(tiny.language, tiny.layout)
    found = engine.generate(requests, GREEDY, lambda done, _: steps.append(done), take)
    assert given[1][0] < given[0][0] == len(steps) - 1
    assert all(given[number][1] is group[0] for number, group in enumerate(found))


def identical(one: Completion, other: Completion) -> bool:
    return np.array_equal(one.ids, other.ids) and np.allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_a_seed_means_the_same_in_any_company(tiny: EarlModel, request_for: MakeRequest) -> None:
    engine, sampling = TransformersEngine(tiny.language, tiny.layout), SamplingParams(1.0, 64)
    requests = [
        request_for("make it snowy", (4, 4), seeds=(11, 12, 11), source=1),
        request_for("turn it into night", (3, 6), seeds=(11,), source=2),
        request_for("make it snowy", (4, 4), mode="reasoning", seeds=(11, 5), source=1),
        request_for("snow", (2, 2), mode="mixed", seeds=(1, 2, 3, 4, 5), source=3),
    ]
    together = engine.generate(requests, sampling)
    for request, group in zip(requests, together, strict=True):
        for seed, completion in zip(request.seeds, group, strict=True):
            alone = engine.generate([SamplingRequest(request.prompt, request.mode, request.grid, (seed,))], sampling)[
                0
            ][0]
            assert identical(completion, alone)
    assert identical(together[0][0], together[0][2])
    assert not np.array_equal(together[0][0].ids, together[0][1].ids)


def test_sequences_of_one_grid_agree_bit_for_bit(tiny: EarlModel, request_for: MakeRequest) -> None:
    engine = TransformersEngine(tiny.language, tiny.layout)
    requests = [request_for(seeds=(7, 8, 9), source=source) for source in (1, 2, 3)]
    together = engine.generate(requests, SamplingParams())
    for request, group in zip(requests, together, strict=True):
        for seed, completion in zip(request.seeds, group, strict=True):
            alone = engine.generate([SamplingRequest(request.prompt, "edit", request.grid, (seed,))], SamplingParams())[
                0
            ][0]
            assert np.array_equal(completion.ids, alone.ids)
            assert np.array_equal(completion.logprobs, alone.logprobs)


def test_a_small_budget_splits_batches_and_changes_nothing(tiny: EarlModel, request_for: MakeRequest) -> None:
    requests = [request_for(seeds=(1, 2, 3), source=i, grid=(3, 3 + i)) for i in range(3)]
    whole = TransformersEngine(tiny.language, tiny.layout).generate(requests, SamplingParams())
    for budget in (1, 120, 200):
        split = TransformersEngine(tiny.language, tiny.layout, max_batch_tokens=budget).generate(
            requests, SamplingParams()
        )
        for group, other in zip(whole, split, strict=True):
            assert all(identical(a, b) for a, b in zip(group, other, strict=True))


def test_forced_tokens_cost_no_step_of_their_own(
    tiny: EarlModel, request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[list[int]] = []
    step = Decoder.step

    def counted(self: Decoder, tokens: list[list[int]], starts: list[int]) -> torch.Tensor:
        fed.append([len(each) for each in tokens])
        return step(self, tokens, starts)

    monkeypatch.setattr(Decoder, "step", counted)
    TransformersEngine(tiny.language, tiny.layout).generate([request_for(grid=(3, 4))], SamplingParams())
    assert len(fed) == 3 * 4 - 1
    assert [counts[0] for counts in fed] == [1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1]


def test_a_prompt_runs_once_for_all_its_seeds(
    tiny: EarlModel, request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    prefill = Decoder.prefill

    def counted(self: Decoder, prompt: list[int], copies: int) -> torch.Tensor:
        runs.append(len(prompt))
        return prefill(self, prompt, copies)

    monkeypatch.setattr(Decoder, "prefill", counted)
    request = request_for(seeds=tuple(range(9)))
    TransformersEngine(tiny.language, tiny.layout).generate([request], SamplingParams())
    assert runs == [len(request.prompt)]


@pytest.mark.parametrize("mode", ["reasoning", "mixed"])
def test_thinking_ends_in_an_image(tiny: EarlModel, request_for: MakeRequest, mode: str) -> None:
    request = request_for(mode=mode, seeds=tuple(range(16)))
    engine = TransformersEngine(tiny.language, tiny.layout, max_text_tokens=40)
    completions = engine.generate([request], SamplingParams())[0]
    assert len({len(completion.ids) for completion in completions}) > 1
    for completion in completions:
        assert completion.finished
        parsed = tiny.layout.parse_completion(completion.ids, mode, request.grid)
        if tiny.layout.vocabulary.img in completion.ids:
            assert parsed.codes is not None
            assert parsed.codes.size <= 2 * request.grid.codes
        else:
            assert completion.ids[-1] == tiny.layout.vocabulary.eos


def test_the_image_can_come_at_once(tiny: EarlModel, request_for: MakeRequest) -> None:
    request = request_for(mode="mixed", seeds=(1, 2))
    for completion in TransformersEngine(tiny.language, tiny.layout, max_text_tokens=0).generate([request], GREEDY)[0]:
        parsed = tiny.layout.parse_completion(completion.ids, "mixed", request.grid)
        assert parsed.grid == request.grid
        assert parsed.finished


def test_without_a_grid_the_sources_own_holds(tiny: EarlModel, request_for: MakeRequest) -> None:
    given = request_for(grid=(2, 5), seeds=(4,))
    engine = TransformersEngine(tiny.language, tiny.layout)
    found = engine.generate([SamplingRequest(given.prompt, "edit", None, (4,))], SamplingParams())[0][0]
    assert identical(found, engine.generate([given], SamplingParams())[0][0])


def test_progress_rises_to_the_end(tiny: EarlModel, request_for: MakeRequest) -> None:
    seen: list[tuple[int, int]] = []
    requests = [request_for(seeds=(1, 2)), request_for(mode="reasoning", seeds=(3,)), request_for(grid=(2, 3))]
    engine = TransformersEngine(tiny.language, tiny.layout, max_batch_tokens=300, max_text_tokens=20)
    found = engine.generate(requests, SamplingParams(), lambda done, total: seen.append((done, total)))
    done = [each[0] for each in seen]
    assert done == sorted(done)
    assert all(now <= total for now, total in seen)
    assert seen[-1] == (sum(len(c.ids) for group in found for c in group),) * 2
    edit_only: list[int] = []
    engine.generate(requests[:1], SamplingParams(), lambda _, total: edit_only.append(total))
    assert len(set(edit_only)) == 1


def test_an_interrupt_leaves_the_engine_usable(tiny: EarlModel, request_for: MakeRequest) -> None:
    engine, request = TransformersEngine(tiny.language, tiny.layout), request_for(seeds=(1,))
    expected = engine.generate([request], SamplingParams())[0][0]

    def interrupt(done: int, _: int) -> None:
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([request], SamplingParams(), interrupt)
    assert identical(engine.generate([request], SamplingParams())[0][0], expected)
    assert not torch.is_inference_mode_enabled()


def test_new_weights_count_from_the_next_call_on(tiny: EarlModel, request_for: MakeRequest) -> None:
    engine, request = TransformersEngine(tiny.language, tiny.layout), request_for()
    before = engine.generate([request], GREEDY)[0][0]
    weight = tiny.language.lm_head.weight
    with torch.no_grad():
        weight.neg_()
        after = engine.generate([request], GREEDY)[0][0]
        weight.neg_()
    assert not np.array_equal(before.ids, after.ids)
    assert identical(engine.generate([request], GREEDY)[0][0], before)


def test_positions_that_run_out(tiny: EarlModel, request_for: MakeRequest) -> None:
    request = request_for(mode="mixed", seeds=(0, 1, 2))
    engine = TransformersEngine(tiny.language, tiny.layout, max_text_tokens=60)
    engine.positions = len(request.prompt) + 30
    completions = engine.generate([request], SamplingParams())[0]
    assert any(not completion.finished for completion in completions)
    assert all(len(completion.ids) <= 31 for completion in completions)
    engine.positions = len(request.prompt) + 10
    with pytest.raises(InputError, match=r"more than the model's \d+ positions"):
        engine.generate([request], SamplingParams())


def test_prompts_that_are_none_are_named(tiny: EarlModel, request_for: MakeRequest) -> None:
    engine = TransformersEngine(tiny.language, tiny.layout)
    with pytest.raises(InputError, match="request 2: the prompt holds ids outside"):
        engine.generate([request_for(), SamplingRequest((1, 10**6), "edit", Grid(1, 1), (0,))], GREEDY)
    with pytest.raises(InputError, match="begins with bos and an image"):
        engine.generate([SamplingRequest((1, 2), "edit", None, (0,))], GREEDY)
    with pytest.raises(InputError, match="empty prompt"):
        engine.generate([SamplingRequest((), "edit", Grid(1, 1), (0,))], GREEDY)
    assert engine.generate([], GREEDY) == []
    assert engine.generate([SamplingRequest(request_for().prompt, "edit", Grid(1, 1), ())], GREEDY) == [[]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_samples_whole_images(tiny: EarlModel, request_for: MakeRequest, dtype: torch.dtype) -> None:
    requests = [
        request_for(seeds=(1, 2), source=1),
        request_for(mode="reasoning", seeds=(3,)),
        request_for(grid=(3, 5)),
    ]
    language = copy.deepcopy(tiny.language).to("cuda", dtype)
    found = TransformersEngine(language, tiny.layout).generate(requests, GREEDY)
    assert all(completion.finished for group in found for completion in group)
    if dtype == torch.float32:
        expected = TransformersEngine(tiny.language, tiny.layout).generate(requests, GREEDY)
        assert [c.ids.tolist() for group in found for c in group] == [c.ids.tolist() for g in expected for c in g]


def test_a_layout_of_another_model_is_refused(tiny: EarlModel) -> None:
    with pytest.raises(ModelError, match="778 ids"):
        TransformersEngine(tiny.language, SequenceLayout(small_vocabulary(tiny.layout.text.size, 99), tiny.layout.text))
