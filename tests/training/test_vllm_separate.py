"""The engine vllm in a process of its own: the same samples, weights sent to it, its end, and a run that uses it."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from bright_runs import prepare, run, train
from needs_vllm import need_vllm
from pydantic import ValidationError
from trainings import CPU

from earl_cli.config.rl import RlConfig
from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import DeviceError, InputError, UsageError
from earl_cli.generation.engine import Completion, SamplingRequest
from earl_cli.generation.vllm.engine import Timeouts, VllmEngine
from earl_cli.generation.vllm.process import HOST_MODULE, ProcessEngine, process_environment
from earl_cli.generation.vllm.watchdog import EngineError
from earl_cli.models.bundle import EarlModel, load_model
from earl_cli.tokens.layout import Grid
from earl_cli.training.rl.policy import Policy, SampledGroup, pack
from earl_cli.training.rl.rollout_engines import check_engine_gpus
from earl_cli.training.sft.loss import separate_vocabularies

need_vllm()
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def embedded() -> EarlModel:
    return load_model(None, device="cpu")


@pytest.fixture(scope="module")
def changed(embedded: EarlModel) -> torch.nn.Module:
    """The embedded model's language model with other weights."""
    language = copy.deepcopy(embedded.language)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in language.parameters():
            weight.mul_(1 + 0.3 * torch.randn_like(weight))
    return language


@pytest.fixture(scope="module")
def separate(embedded: EarlModel) -> Iterator[ProcessEngine]:
    engine = a_process(embedded)
    yield engine
    engine.close()
    assert not psutil.pid_exists(engine._process.pid)


def a_process(model: EarlModel, **how: object) -> ProcessEngine:
    return ProcessEngine(model.folder, model.layout, device=model.device, dtype=model.dtype, **how)


def prompts(model: EarlModel, count: int, side: int = 6, seeds: tuple[int, ...] = (1, 2)) -> list[SamplingRequest]:
    numbers, grid, found = np.random.default_rng(count), Grid(side, side), []
    for _ in range(count):
        codes = numbers.integers(0, model.layout.vocabulary.codes, (side, side))
        ids = model.layout.prompt(codes, "make it snowy", "edit", grid)
        found.append(SamplingRequest(tuple(ids.tolist()), "edit", grid, seeds))
    return found


def ids(groups: Sequence[Sequence[Completion]]) -> list[list[int]]:
    return [completion.ids.tolist() for group in groups for completion in group]


def assert_logprobs(
    language: torch.nn.Module,
    model: EarlModel,
    generated: Sequence[Sequence[Completion]],
    requested: Sequence[SamplingRequest],
) -> None:
    """The engine's are those that training computes."""
    policy = Policy(language, separate_vocabularies(model.layout.vocabulary), 1.0)
    for request, group in zip(requested, generated, strict=True):
        sampled = SampledGroup(np.array(request.prompt), tuple(e.ids for e in group), tuple(e.sampled for e in group))
        batch = pack([sampled], torch.device("cpu"))
        assert batch is not None
        with torch.no_grad():
            trained = policy(batch)[0].numpy()
        assert np.abs(np.concatenate([each.logprobs[each.sampled] for each in group]) - trained).max() < 1e-3


# -- the same as with a colocated engine--------------------------------------------------------------------------------


def test_it_samples_as_the_engine_in_this_process_after_new_weights_too(
    embedded: EarlModel, changed: torch.nn.Module, separate: ProcessEngine
) -> None:
    colocated = VllmEngine(embedded.folder, embedded.layout, device=embedded.device, dtype=embedded.dtype)
    requested, seen = prompts(embedded, 4), []
    try:
        for language in (embedded.language, changed, embedded.language):
            for engine in (colocated, separate):
                engine.update_weights(language.state_dict().items())
            ours, theirs = (engine.generate(requested, SamplingParams(1.0, 0)) for engine in (separate, colocated))
            assert ids(ours) == ids(theirs)
            for one, other in zip(ours, theirs, strict=True):
                for a, b in zip(one, other, strict=True):
                    assert np.abs(a.logprobs - b.logprobs).max() < 1e-5
            assert_logprobs(language, embedded, ours, requested)
            seen.append(ids(ours))
    finally:
        colocated.close()
    assert seen[0] == seen[2]
    assert all(one != other for one, other in zip(seen[0], seen[1], strict=True))


def test_progress_and_completions_are_reported_and_bad_requests_refused(
    embedded: EarlModel, separate: ProcessEngine
) -> None:
    progress: list[tuple[int, int]] = []
    given: list[tuple[int, int, Completion]] = []
    generated = separate.generate(
        prompts(embedded, 2, 3), SamplingParams(), lambda *it: progress.append(it), lambda *it: given.append(it)
    )
    assert progress[-1][0] == progress[-1][1] == sum(map(len, ids(generated)))
    assert len(progress) > 10
    assert sorted((request, index) for request, index, _ in given) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(generated[request][index].ids.tolist() == each.ids.tolist() for request, index, each in given)
    with pytest.raises(InputError, match="outside the vocabulary"):
        separate.generate([SamplingRequest((1, 99_999), "edit", Grid(2, 2), (0,))], SamplingParams())
    assert len(separate.generate(prompts(embedded, 1), SamplingParams())[0]) == 2


@pytest.mark.full
def test_several_workers_get_the_weights(
    embedded: EarlModel, changed: torch.nn.Module, separate: ProcessEngine
) -> None:
    requested = prompts(embedded, 2)
    engine = a_process(embedded, engine_args={"tensor_parallel_size": 2}, timeouts=Timeouts(step=60))
    try:
        assert engine.workers == 2
        generated = engine.generate(requested, SamplingParams(0))
        engine.update_weights(changed.state_dict().items())
        again = engine.generate(requested, SamplingParams(0))
        assert_logprobs(changed, embedded, engine.generate(requested, SamplingParams(1.0, 0)), requested)
        assert ids(generated) != ids(again)
        processes = family(engine)
        assert len(processes) > 2
        engine._process.kill()
        engine._process.wait()
        with pytest.raises(EngineError, match="sending requests by the vLLM engine failed: its process ended with -9"):
            engine.generate(requested, SamplingParams(0))
    finally:
        engine.close()
    assert not psutil.wait_procs(processes, timeout=30)[1]


def family(engine: ProcessEngine) -> list[psutil.Process]:
    first = psutil.Process(engine._process.pid)
    return [first, *first.children(recursive=True)]


# -- death and time-outs -----------------------------------------------------------------------------------------------


def test_a_process_that_is_killed_is_an_error_with_the_end_of_its_log(embedded: EarlModel) -> None:
    engine = a_process(embedded)

    def kill(done: int, expected: int) -> None:
        engine._process.kill()

    try:
        with pytest.raises(
            EngineError, match="a sampling step by the vLLM engine failed: its process ended with -9"
        ) as caught:
            engine.generate(prompts(embedded, 4, 12), SamplingParams(), kill)
        assert "the end of its log:\n" in str(caught.value)
        with pytest.raises(EngineError, match="an update of the weights can't be done: the vLLM engine is dead"):
            engine.update_weights(embedded.language.state_dict().items())
    finally:
        engine.close()


@pytest.mark.full
def test_a_process_that_hangs_is_an_error_that_names_what_was_waited_for(embedded: EarlModel) -> None:
    engine = a_process(embedded, timeouts=Timeouts(step=3))
    engine._process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(EngineError, match="a sampling step by the vLLM engine took longer than 3 s"):
            engine.generate(prompts(embedded, 1), SamplingParams())
    finally:
        engine.close()
    assert engine._process.returncode == -signal.SIGKILL


def test_a_failed_start_is_reported_and_leaves_no_process(embedded: EarlModel) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(UsageError, match=r"takes no such argument.*speed"):
        a_process(embedded, engine_args={"speed": 3})
    with pytest.raises(EngineError, match=r"the start by the vLLM engine took longer than 0\.1 s"):
        a_process(embedded, timeouts=Timeouts(start=0.1))
    assert set(psutil.Process().children()) <= before


ORPHAN = """
import numpy as np
from earl_cli.config.sampling import SamplingParams
from earl_cli.generation.engine import SamplingRequest
from earl_cli.generation.vllm.process import ProcessEngine
from earl_cli.models.bundle import load_model
from earl_cli.tokens.layout import Grid

if __name__ == "__main__":
    model = load_model(None, device="cpu")
    engine = ProcessEngine(model.folder, model.layout, device=model.device, dtype=model.dtype)
    layout, grid = model.layout, Grid(6, 6)
    prompt = layout.prompt(np.zeros((6, 6), np.int64), "make it snowy", "edit", grid)
    request = SamplingRequest(tuple(prompt.tolist()), "edit", grid, (1, 2))
    print(engine._process.pid, flush=True)
    while True:
        engine.generate([request], SamplingParams())
"""


@pytest.mark.full
def test_it_ends_when_the_trainer_is_killed_while_it_samples() -> None:
    command = [sys.executable, "-c", ORPHAN]
    trainer = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **CPU}
    )
    assert trainer.stdout is not None
    engine = psutil.Process(int(trainer.stdout.readline()))
    assert HOST_MODULE in engine.cmdline()
    time.sleep(2)
    trainer.kill()
    trainer.communicate()
    assert not psutil.wait_procs([engine], timeout=20)[1]


# -- GPUs --------------------------------------------------------------------------------------------------------------


def test_the_process_sees_its_gpus_and_nothing_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert process_environment((2, 3))["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert not {"RANK", "TORCHELASTIC_RUN_ID"} & process_environment(()).keys()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert process_environment((2, 0))["CUDA_VISIBLE_DEVICES"] == "6,4"


def test_gpus_of_the_engine_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**values: object) -> RlConfig:
        return RlConfig(data=(Path("x"),), output=Path("y"), **values)

    for values in ({"engine_gpus": (1,)}, {"engine_place": "separate", "engine": "transformers"}):
        with pytest.raises(ValidationError, match="engine_"):
            config(**values)
    check_engine_gpus(config(engine_place="separate", device="cpu"))
    with pytest.raises(UsageError, match="so the engine can't have GPUs"):
        check_engine_gpus(config(engine_place="separate", device="cpu", engine_gpus=(1,)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    check_engine_gpus(config(engine_place="separate", device="cuda:0", engine_gpus=(1, 2)))
    with pytest.raises(UsageError, match="no process trains on"):
        check_engine_gpus(config(engine_place="separate", device="cuda:0"))
    with pytest.raises(DeviceError, match="only 3 CUDA devices"):
        check_engine_gpus(config(engine_place="separate", device="cuda:0", engine_gpus=(3,)))
    with pytest.raises(UsageError, match="a process trains on cuda:1"):
        check_engine_gpus(config(engine_place="separate", device="cuda:1", engine_gpus=(1,)))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_weights_come_by_nccl_to_another_gpu(changed: torch.nn.Module) -> None:
    model = load_model(None, device="cuda:0")
    language = copy.deepcopy(changed).to("cuda:0")
    engine = a_process(model, gpus=(1,))
    try:
        requested = prompts(model, 4)
        before = engine.generate(requested, SamplingParams(0))
        engine.update_weights(language.state_dict().items())
        after = engine.generate(requested, SamplingParams(0))
        engine.update_weights(model.language.state_dict().items())
        assert ids(engine.generate(requested, SamplingParams(0))) == ids(before) != ids(after)
    finally:
        engine.close()


# -- runs --------------------------------------------------------------------------------------------------------------

SEPARATE = {"engine": "vllm", "engine_place": "separate"}
SAME = ("reward/mean", "loss", "grad_norm", "kl", "sampler_mismatch", "completions/mean_length", "reward/group_std")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("vllm-separate"))


@pytest.fixture(scope="module")
def expected(place: Path) -> list[dict[str, float]]:
    return train(place, "colocated", engine="vllm", num_iterations=3)


def assert_same(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert {name: ours[name] for name in SAME} == pytest.approx({name: theirs[name] for name in SAME}, abs=1e-4)
        assert ours["sampler_mismatch"] < 1e-3


def test_a_run_logs_the_same_as_with_a_colocated_engine_and_resumes(
    place: Path, expected: list[dict[str, float]]
) -> None:
    assert_same(train(place, "separate", **SEPARATE), expected[:2])
    assert_same(train(place, "separate", **SEPARATE, num_iterations=3), expected)


@pytest.mark.full
def test_two_processes_have_one_engine(place: Path, expected: list[dict[str, float]]) -> None:
    assert_same(train(place, "two", 2, **SEPARATE), expected[:2])


@pytest.mark.full
def test_what_is_wrong_with_the_engine_ends_every_process(place: Path) -> None:
    done = run(place, "wrong", 2, **SEPARATE, engine_args=json.dumps({"speed": 3}))
    assert done.returncode != 0
    assert done.stderr.count("vLLM takes no such argument") == 1
