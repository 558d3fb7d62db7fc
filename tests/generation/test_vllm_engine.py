"""The vLLM engine against the transformers engine, both on the embedded model: real runs, the same answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from needs_vllm import need_vllm
from safetensors.torch import load_file, save_file

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import InputError, ModelError, UsageError
from earl_cli.generation.engine import Completion, SamplingRequest
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.generation.vllm.engine import Timeouts, VllmEngine
from earl_cli.generation.vllm.environment import parse_engine_arguments
from earl_cli.generation.vllm.watchdog import EngineError
from earl_cli.models.bundle import EarlModel, load_model
from earl_cli.models.checkpoint import save_language
from earl_cli.models.weights import read_json, write_json
from earl_cli.tokens.layout import Grid, Mode, SequenceLayout
from earl_cli.tokens.vocabulary import small_vocabulary
from earl_cli.training.rl.policy import Policy, SampledGroup, pack
from earl_cli.training.sft.loss import separate_vocabularies

need_vllm()
pytestmark = pytest.mark.vllm

GREEDY = SamplingParams(0)
INSTRUCTIONS = ("make it snowy", "turn it into night", "make it brighter", "add a red circle in the top left")


@pytest.fixture(scope="module")
def embedded() -> EarlModel:
    return load_model(None, device="cpu")


@pytest.fixture(scope="module")
def engine(embedded: EarlModel) -> Iterator[VllmEngine]:
    found = an_engine(embedded)
    yield found
    found.close()


def an_engine(model: EarlModel, folder: Path | None = None, **options: object) -> VllmEngine:
    return VllmEngine(folder or model.folder, model.layout, device=model.device, dtype=model.dtype, **options)  # type: ignore[arg-type]


def prompts(
    model: EarlModel, count: int, mode: Mode = "edit", seeds: tuple[int, ...] = (1,), grid: Grid | None = None
) -> list[SamplingRequest]:
    """Prompts with random images, of grids of 3 to 12 codes a side unless one is given."""
    numbers = np.random.default_rng(count)
    found = []
    for place in range(count):
        shape = grid or Grid(*map(int, numbers.integers(3, 13, 2)))
        codes = numbers.integers(0, model.layout.vocabulary.codes, (shape.height, shape.width))
        ids = model.layout.prompt(codes, INSTRUCTIONS[place % len(INSTRUCTIONS)], mode, shape)
        found.append(SamplingRequest(tuple(ids.tolist()), mode, shape, seeds))
    return found


def flat(groups: Sequence[Sequence[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def assert_same(
    model: EarlModel,
    engine: VllmEngine,
    requests: Sequence[SamplingRequest],
    sampling: SamplingParams,
    language: object = None,
) -> list[Completion]:
    """Every completion is the transformers engine's, and so is what is said of it.

    Of those that are drawn by chance one in eight may part: where a random number lies so close to the border between
    two ids that the last bits of the logits decide. Up to there it must be the same.
    """
    reference = TransformersEngine(language or model.language, model.layout)  # type: ignore[arg-type]
    found, expected = flat(engine.generate(requests, sampling)), flat(reference.generate(requests, sampling))
    parted = 0
    for ours, theirs in zip(found, expected, strict=True):
        pairs = zip(ours.ids.tolist(), theirs.ids.tolist(), strict=False)
        common = next((place for place, (one, other) in enumerate(pairs) if one != other), len(theirs.ids))
        if common == len(theirs.ids):
            assert (ours.ids.tolist(), ours.finished) == (theirs.ids.tolist(), theirs.finished)
        else:
            parted += 1
        assert ours.sampled[:common].tolist() == theirs.sampled[:common].tolist()
        assert np.abs(ours.logprobs[:common] - theirs.logprobs[:common]).max(initial=0) < 1e-3
    assert parted <= (0 if sampling.temperature == 0 else len(found) // 8)
    return found


# -- same answers ------------------------------------------------------------------------------------------------------


def test_greedy_ids_of_60_prompts_are_those_of_transformers(embedded: EarlModel, engine: VllmEngine) -> None:
    requests = prompts(embedded, 60)
    found = assert_same(embedded, engine, requests, GREEDY)
    assert len({request.grid for request in requests}) > 30
    for request, completion in zip(requests, found, strict=True):
        parsed = embedded.layout.parse_completion(completion.ids, "edit", request.grid)
        assert parsed.finished and parsed.problem is None


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(1.3, 0), SamplingParams(0.7, 100, 0.8, 0.1)])
def test_a_seed_means_the_same_image_in_both_engines(
    embedded: EarlModel, engine: VllmEngine, sampling: SamplingParams
) -> None:
    found = assert_same(embedded, engine, prompts(embedded, 8, seeds=(1, 2, 3)), sampling)
    assert len({tuple(completion.ids) for completion in found}) == 24


@pytest.mark.parametrize("mode", ["reasoning", "mixed"])
def test_text_before_the_image_is_the_same_too(embedded: EarlModel, engine: VllmEngine, mode: Mode) -> None:
    """Drawn by a model that writes anything, so that headers come right and wrong, and texts end and don't."""
    language = copy.deepcopy(embedded.language)
    torch.manual_seed(2)
    with torch.no_grad():
        language.lm_head.weight[: embedded.layout.vocabulary.visual_start].normal_(0, 0.02)
        language.lm_head.weight[embedded.layout.vocabulary.eos] = 0
    try:
        engine.update_weights(language.state_dict().items())
        found = assert_same(embedded, engine, prompts(embedded, 5, mode, (1, 2)), SamplingParams(), language)
    finally:
        engine.update_weights(embedded.language.state_dict().items())
    parsed = [embedded.layout.parse_completion(completion.ids, mode) for completion in found]
    assert sum(each.codes is not None for each in parsed) > 2
    assert len({len(completion.ids) for completion in found}) > 6


def test_without_a_grammar_any_id_may_come(embedded: EarlModel, engine: VllmEngine) -> None:
    requests = [SamplingRequest(r.prompt, r.mode, r.grid, (1, 2, 3), grammar=False) for r in prompts(embedded, 3)]
    assert all(
        completion.sampled.all() for completion in assert_same(embedded, engine, requests, SamplingParams(1.2, 0))
    )


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_log_probabilities_are_those_that_training_sees(
    embedded: EarlModel, engine: VllmEngine, temperature: float
) -> None:
    requests = prompts(embedded, 4, seeds=(1, 2)) + prompts(embedded, 2, "mixed", (1, 2))
    generated = engine.generate(requests, SamplingParams(temperature, 0))
    policy = Policy(embedded.language, separate_vocabularies(embedded.layout.vocabulary), temperature)
    for request, group in zip(requests, generated, strict=True):
        ids, sampled = tuple(each.ids for each in group), tuple(each.sampled for each in group)
        batch = pack([SampledGroup(np.array(request.prompt), ids, sampled)], torch.device("cpu"))
        assert batch is not None
        with torch.no_grad():
            trained = policy(batch)[0].numpy()
        own = np.concatenate([each.logprobs[each.sampled] for each in group])
        assert np.abs(own - trained).max() < 1e-3
        assert all((each.logprobs[~each.sampled] == 0).all() for each in group)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_progress_comes_by_tokens_and_in_large_batches_by_finished_images(
    embedded: EarlModel, engine: VllmEngine
) -> None:
    for seeds, jumps in (((1, 2), 1), (tuple(range(40)), 18)):
        progress: list[tuple[int, int]] = []
        request = prompts(embedded, 1, seeds=seeds, grid=Grid(3, 4))[0]
        engine.generate([request], SamplingParams(), lambda *counts, progress=progress: progress.append(counts))
        assert [done for done, _ in progress] == sorted(done for done, _ in progress)
        assert progress[-1] == (18 * len(seeds), 18 * len(seeds))
        assert all(done % jumps == 0 and expected == 18 * len(seeds) for done, expected in progress)


def test_a_completion_is_given_out_while_others_are_sampled(embedded: EarlModel, engine: VllmEngine) -> None:
    small, large = (prompts(embedded, 1, seeds=(1, 2), grid=grid)[0] for grid in (Grid(2, 2), Grid(9, 9)))
    given: list[tuple[int, int, Completion]] = []
    progress: list[int] = []
    generated = engine.generate(
        [large, small], GREEDY, lambda *_: progress.append(len(given)), lambda *it: given.append(it)
    )
    assert [request for request, _, _ in given] == [1, 1, 0, 0]
    assert all(generated[request][index] is completion for request, index, completion in given)
    assert progress.count(2) > 50


def test_bad_requests_are_refused_before_anything_is_sampled(embedded: EarlModel, engine: VllmEngine) -> None:
    with pytest.raises(InputError, match="are more than the model's 2048 positions"):
        engine.generate([SamplingRequest((1, 2), "edit", Grid(60, 60), (0,))], GREEDY)
    with pytest.raises(InputError, match="outside the vocabulary"):
        engine.generate([SamplingRequest((1, 99_999), "edit", Grid(2, 2), (0,))], GREEDY)


def test_an_interrupted_batch_leaves_nothing_behind(embedded: EarlModel, engine: VllmEngine) -> None:
    def interrupt(done: int, expected: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts(embedded, 3), SamplingParams(), interrupt)
    assert_same(embedded, engine, prompts(embedded, 2), GREEDY)
    assert not engine._llm.llm_engine.has_unfinished_requests()


# -- weights -----------------------------------------------------------------------------------------------------------


def test_new_weights_take_their_place_without_a_disk(embedded: EarlModel, engine: VllmEngine) -> None:
    requests, language = prompts(embedded, 6), copy.deepcopy(embedded.language)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in language.parameters():
            weight.mul_(1 + 0.3 * torch.randn_like(weight))
    before = assert_same(embedded, engine, requests, GREEDY)
    engine.update_weights(language.state_dict().items())
    after = assert_same(embedded, engine, requests, GREEDY, language)
    engine.update_weights(embedded.language.state_dict().items())
    again = assert_same(embedded, engine, requests, GREEDY)
    assert [each.ids.tolist() for each in before] == [each.ids.tolist() for each in again]
    assert all(one.ids.tolist() != two.ids.tolist() for one, two in zip(before, after, strict=True))


def test_weights_that_are_no_numbers_are_an_error(embedded: EarlModel, engine: VllmEngine) -> None:
    damaged = {name: weight * torch.nan for name, weight in embedded.language.state_dict().items()}
    try:
        engine.update_weights(damaged.items())
        with pytest.raises(ModelError, match="not finite"):
            engine.generate(prompts(embedded, 1), SamplingParams())
    finally:
        engine.update_weights(embedded.language.state_dict().items())
    assert_same(embedded, engine, prompts(embedded, 2), GREEDY)


def test_the_original_layout_in_too_little_memory_gives_the_same(embedded: EarlModel, tmp_path: Path) -> None:
    """Room for two images at a time: others are put aside half sampled, and begun again."""
    save_language(embedded.language, tmp_path, "original")
    assert read_json(tmp_path / "config.json")["model_type"] == "Emu3"
    engine = an_engine(embedded, tmp_path, max_positions=640, engine_args={"num_gpu_blocks_override": 24})
    try:
        assert_same(embedded, engine, prompts(embedded, 4, seeds=(1, 2), grid=Grid(12, 12)), SamplingParams())
        assert_same(embedded, engine, prompts(embedded, 6, "mixed", grid=Grid(8, 8)), SamplingParams())
    finally:
        engine.close()


@pytest.mark.full
def test_the_language_half_of_a_combined_model_loads(embedded: EarlModel, tmp_path: Path) -> None:
    config = read_json(embedded.folder / "config.json")
    text = {key: value for key, value in config.items() if key != "architectures"}
    vision = read_json(embedded.folder / "vision" / "config.json")
    write_json(tmp_path / "config.json", {"model_type": "emu3", "text_config": text, "vq_config": vision})
    weights = load_file(embedded.folder / "model.safetensors")
    renamed = {
        name if name.startswith("lm_head") else f"model.text_{name.replace('model.', 'model.', 1)}": weight
        for name, weight in weights.items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    engine = an_engine(embedded, tmp_path)
    try:
        assert_same(embedded, engine, prompts(embedded, 3), GREEDY)
    finally:
        engine.close()


# -- arguments, several processes, death -------------------------------------------------------------------------------


def test_arguments_are_checked(embedded: EarlModel) -> None:
    assert parse_engine_arguments(["tensor-parallel-size=2", "quantization=fp8", "enforce_eager=true"]) == {
        "tensor_parallel_size": 2,
        "quantization": "fp8",
        "enforce_eager": True,
    }
    with pytest.raises(UsageError, match="isn't KEY=VALUE"):
        parse_engine_arguments(["fast"])
    with pytest.raises(UsageError, match="logprobs_mode is set by earl itself"):
        parse_engine_arguments(["logprobs_mode=raw_logits"])
    with pytest.raises(UsageError, match=r"takes no such argument.*speed"):
        an_engine(embedded, engine_args={"speed": 3})
    for name in ("cuda:1", "mps"):
        with pytest.raises(UsageError, match="vLLM"):
            VllmEngine(embedded.folder, embedded.layout, device=torch.device(name), dtype=embedded.dtype)
    with pytest.raises(ModelError, match="model and tokenizer belong to different models"):
        layout = SequenceLayout(small_vocabulary(embedded.layout.text.size, 99), embedded.layout.text)
        VllmEngine(embedded.folder, layout, device=embedded.device, dtype=embedded.dtype)


def test_a_start_that_takes_too_long_is_an_error_that_says_so(embedded: EarlModel) -> None:
    with pytest.raises(EngineError, match=r"the start by the vLLM engine took longer than 0\.01 s"):
        an_engine(embedded, timeouts=Timeouts(start=0.01))


@pytest.mark.full
def test_two_processes_give_the_same_and_their_death_is_an_error(embedded: EarlModel) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    engine = an_engine(embedded, engine_args={"tensor_parallel_size": 2}, timeouts=Timeouts(step=60))
    try:
        assert_same(embedded, engine, prompts(embedded, 4, grid=Grid(4, 4)), SamplingParams())
        children = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        workers = [child for child in children if "Worker" in " ".join(child.cmdline())]
        assert len(workers) == 2

        def kill(done: int, expected: int) -> None:
            workers[1].kill()

        with pytest.raises(EngineError, match="a sampling step by the vLLM engine failed") as caught:
            engine.generate(prompts(embedded, 2, grid=Grid(12, 12)), SamplingParams(), kill)
        assert "the end of its log" in str(caught.value)
        with pytest.raises(EngineError, match="the vLLM engine is dead"):
            engine.generate(prompts(embedded, 1), GREEDY)
    finally:
        engine.close()
    assert not psutil.wait_procs(workers, timeout=30)[1]
