"""One training in two processes: the model of one process, from torchrun or Slurm, and one message for each error."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from local_server import free_port
from safetensors.torch import load_file
from torch import Tensor
from trainings import Trainings, options, torchrun, write_pairs
from transformers import Emu3ForCausalLM
from victims import Run

from earl_cli.config.loader import load_config
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.data.batches import collate, load_rows
from earl_cli.errors import EarlError, UsageError
from earl_cli.models.bundle import load_model
from earl_cli.training.common import distributed
from earl_cli.training.common.checkpoints import CHECKPOINTS, latest
from earl_cli.training.common.distributed import (
    check_world_size,
    rank,
    read_slurm_environment,
    report_once,
    set_single_process_environment,
    world_size,
)

full = pytest.mark.full
SHARDINGS = ("none", pytest.param("zero2", marks=full), "zero3")
STEPS = 5
TOLERANCE = 2e-6
"""Of a weight, which five steps move by up to 1e-2: the sums are the same, in another order."""
Together: TypeAlias = Callable[[str], tuple[Path, list[Run]]]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Setting:
    """One training of 8 rows a step, four of them at a time: in one process, or two in each of two."""

    start: Trainings
    arguments: tuple[object, ...]

    def run(self, output: Path, count: int, *more: object) -> list[Run]:
        batch = options(batch_size=4 // count, accumulation=2)
        runs = self.start.ranks(count, *self.arguments, *batch, *more, "-o", output)
        for each in runs:
            assert each.wait() == 0, each.output
        return runs


@pytest.fixture(scope="module")
def setting(launch: Trainings, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    store = write_pairs(tmp_path_factory.mktemp("data") / "store", 16)
    values = {"max_steps": STEPS, "warmup_steps": 1, "learning_rate": 3e-3, "log_every": 1, "precision": "float32"}
    common = ("sft", "--model", tiny_model_dir, "--data", store, "--device", "cpu", *options(**values))
    return Setting(launch, common)


@pytest.fixture(scope="module")
def alone(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    output = tmp_path_factory.mktemp("alone") / "out"
    setting.run(output, 1)
    return output


@pytest.fixture(scope="module")
def together(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """What two processes make with a way of sharding, once for all tests, and what they printed."""

    @cache
    def made(sharding: str) -> tuple[Path, list[Run]]:
        output = tmp_path_factory.mktemp("together") / "out"
        return output, setting.run(output, 2, *options(sharding=sharding))

    return made


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model.safetensors")


# -- the same model --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_make_the_model_of_one(
    sharding: str, alone: Path, together: Together, tiny_model_dir: Path
) -> None:
    output, _ = together(sharding)
    start, expected, found = weights(tiny_model_dir), weights(alone), weights(output)
    assert found.keys() == expected.keys()
    moved = max(float((expected[name] - start[name]).abs().max()) for name in expected)
    assert moved > 1000 * TOLERANCE
    for name in expected:
        assert (found[name] - expected[name]).abs().max() < TOLERANCE, name


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_every_step_has_the_loss_and_the_gradient_of_one_process(
    sharding: str, alone: Path, together: Together
) -> None:
    def logged(output: Path) -> list[tuple[float, float]]:
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]

    expected = logged(alone)
    assert len(expected) == STEPS
    for one, other in zip(expected, logged(together(sharding)[0]), strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_model_loads_here_and_in_transformers(sharding: str, together: Together) -> None:
    output, _ = together(sharding)
    stored = weights(output)
    for language in (load_model(str(output), device="cpu").language, Emu3ForCausalLM.from_pretrained(output)):
        state = language.state_dict()
        assert state.keys() == stored.keys()
        assert all(torch.equal(state[name], stored[name]) for name in stored)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", pytest.param("zero2", marks=full)])
def test_rank_zero_writes_galleries_and_the_weights_stay_the_same(
    sharding: str, setting: Setting, together: Together, tmp_path: Path
) -> None:
    data = setting.arguments[setting.arguments.index("--data") + 1]
    held = ("--validation", data, *options(validate_every=2, gallery_examples=2, sharding=sharding))
    setting.run(tmp_path / "out", 2, *held)
    model = together(sharding)[0] / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model.read_bytes()
    pages = sorted(path.name for path in (tmp_path / "out" / "validation").iterdir())
    assert pages == [f"step-{step:06}.html" for step in (2, 4, 5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "sharding"), [(2, "none"), pytest.param(1, "none", marks=full), pytest.param(2, "zero3", marks=full)]
)
def test_the_validation_loss_is_the_mean_over_all_tokens(
    count: int, sharding: str, setting: Setting, tmp_path: Path
) -> None:
    """Whatever the batches were; rows have 17, 20 or 23 tokens with loss here."""
    data = setting.arguments[setting.arguments.index("--data") + 1]
    setting.run(tmp_path / "out", count, "--validation", data, *options(gallery_examples=0, sharding=sharding))
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    model = load_model(str(tmp_path / "out"), device="cpu")
    rows = load_rows([Path(str(data))], model.layout)
    batch = collate([("", rows.example(row)) for row in range(len(rows))], model.layout.vocabulary.pad)
    with torch.no_grad():
        logits = model.language(batch["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert [line["eval_loss"] for line in lines if "eval_loss" in line][-1] == pytest.approx(float(expected), rel=1e-5)


@full
@pytest.mark.slow
def test_deepspeed_alone_needs_no_launcher(setting: Setting, together: Together, tmp_path: Path) -> None:
    setting.run(tmp_path / "out", 1, *options(sharding="zero2"))
    for name, weight in weights(tmp_path / "out").items():
        torch.testing.assert_close(weight, weights(together("zero2")[0])[name], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [pytest.param("zero2", marks=full), "zero3"])
def test_each_process_keeps_its_part_of_the_optimizer(sharding: str, together: Together) -> None:
    output, _ = together(sharding)
    checkpoint = latest(output / CHECKPOINTS)
    assert checkpoint
    parts = sorted(checkpoint.glob("global_step*/*optim_states.pt"))
    assert len(parts) == 2
    whole = 12 * sum(weight.numel() for weight in weights(output).values())  # two moments and the weights
    for part in parts:
        assert part.stat().st_size == pytest.approx(whole / 2, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "now", "words"),
    [
        ("none", {"sharding": "zero2"}, "all weights trained, sharding none"),
        ("none", {"lora_rank": 4}, "all weights trained, sharding none"),
        pytest.param("zero2", {}, "all weights trained, sharding zero2, 2 processes", marks=full),
        pytest.param("zero2", {"sharding": "zero2"}, "sharding zero2, 2 processes", marks=full),
        ("zero3", {"sharding": "zero2"}, "sharding zero3, 2 processes"),
    ],
)
def test_a_run_started_with_other_settings_is_one_message(
    begun: str, now: dict[str, object], words: str, setting: Setting, together: Together
) -> None:
    """Without it, an optimizer's state would be forgotten silently, or DeepSpeed would fail in its own words."""
    output, _ = together(begun)
    (run,) = setting.start.ranks(1, *setting.arguments, *options(**now), "-o", output)
    assert run.wait() == 2, run.output
    (message,) = [line for line in run.output.splitlines() if line.startswith("error:")]
    assert message.startswith(f"error: {output / CHECKPOINTS}/checkpoint-{STEPS}: this run was started with ")
    assert message.endswith(words)


# -- who speaks ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_only_the_first_process_speaks(sharding: str, together: Together) -> None:
    output, (first, second) = together(sharding)
    assert second.output == ""
    outcome = [line for line in first.output.splitlines() if not line.startswith("training ")]
    warning, device, result = outcome
    assert warning == "warning: checkpoint_every 100: the only checkpoint is that of the end, 5"
    assert device.startswith("cpu · float32")
    assert result.startswith(f"{STEPS} steps; the model is in {output}")


@pytest.mark.slow
def test_torchrun_prints_one_document_and_makes_the_same_bits(
    setting: Setting, together: Together, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    more = options(batch_size=2, accumulation=2, sharding="zero3", processes=2)
    process = torchrun(2, *setting.arguments, *more, "-o", output, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out) == {
        "model": str(output),
        "steps": STEPS,
        "validation_loss": None,
        "resumed_from": 0,
        "skipped": 0,
        "best": None,
    }
    assert "Warning" not in err
    assert (output / "model.safetensors").read_bytes() == (together("zero3")[0] / "model.safetensors").read_bytes()


@full
@pytest.mark.slow
def test_an_error_of_all_ranks_is_reported_once(setting: Setting, tmp_path: Path) -> None:
    process = torchrun(2, *setting.arguments, *options(processes=4, batch_size=2), "-o", tmp_path / "out", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count("error:") == 1, err
    assert "error: processes: this config is for 4 processes, 2 run" in err
    assert json.loads(out)["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    ("number", "failure", "message", "waits"),
    [
        ("0", EarlError("mine"), "mine", 0),
        ("3", EarlError("mine"), "mine", 1),
        ("0", RuntimeError("[../gloo/…/pair.cc:553] Connection closed by peer"), "another process .* has ended", 2),
        ("3", torch.distributed.DistBackendError("NCCL …"), "another process of this training has ended", 2),
    ],
)
def test_the_others_wait_for_the_one_that_knows_why(
    number: str, failure: Exception, message: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(distributed.time, "sleep", slept.append)
    monkeypatch.setenv("RANK", number)
    with pytest.raises(EarlError, match=message), report_once():
        raise failure
    assert slept == [waits * distributed.REPORT_DELAY] * (waits > 0)


# -- how many processes ----------------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher has left anything in the environment."""
    for name in [*VARIABLES, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.slow
def test_the_wrong_number_of_processes_is_one_message(setting: Setting, tmp_path: Path) -> None:
    (run,) = setting.start.ranks(1, *setting.arguments, *options(processes=4), "-o", tmp_path / "out")
    assert run.wait() == 2
    first, second = run.output.splitlines()
    assert first == "error: processes: this config is for 4 processes, 1 run"
    assert second.startswith("hint: torchrun --nproc_per_node 4 -m earl_cli sft …, or --set processes=1 --set acc")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("there", "hint"),
    [("1", "--set processes=1 --set accumulation=32 keeps the 64 examples"), ("2", "accumulation=16"), ("3", None)],
)
def test_the_hint_keeps_the_examples_of_a_step(there: str, hint: str | None, bare: pytest.MonkeyPatch) -> None:
    bare.setenv("WORLD_SIZE", there)
    given = {"data": ["a"], "output": "o", "batch_size": 2, "accumulation": 8}
    with pytest.raises(UsageError, match=f"for 4 processes, {there} run") as raised:
        check_world_size("sft", load_config(SftConfig, None, given={**given, "processes": 4}))
    assert "torchrun --nproc_per_node 4" in str(raised.value.hint)
    assert (hint or "torchrun") in str(raised.value.hint)
    assert ("keeps" in str(raised.value.hint)) == (hint is not None)
    for processes in (int(there), None):
        check_world_size("sft", load_config(SftConfig, None, given={**given, "processes": processes}))


@pytest.mark.parametrize(("there", "hint"), [("2", "--set processes=2 keeps the 6 prompts an iteration"), ("5", None)])
def test_the_hint_for_reinforcement_learning_names_its_own_settings(
    there: str, hint: str | None, bare: pytest.MonkeyPatch
) -> None:
    bare.setenv("WORLD_SIZE", there)
    given = {"data": ["a"], "output": "o", "episodes_per_iteration": 12, "generations_per_sample": 2, "processes": 3}
    with pytest.raises(UsageError, match=f"for 3 processes, {there} run") as raised:
        check_world_size("rl", load_config(RlConfig, None, given=given))
    first, _, second = str(raised.value.hint).partition(", or ")
    assert first == "torchrun --nproc_per_node 3 -m earl_cli rl …"
    assert second == (hint or "")
    for name in re.findall(r"--set (\w+)=", second):
        assert name in RlConfig.model_fields


# -- Slurm -----------------------------------------------------------------------------------------------------------


def slurm(number: int, port: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(port - 20000),
        "SLURM_PROCID": str(number),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": str(number),
        "SLURM_STEP_NODELIST": "localhost",
    }


@pytest.mark.slow
def test_slurm_gives_the_bits_of_torchrun(setting: Setting, together: Together, tmp_path: Path) -> None:
    more = (*options(batch_size=2, accumulation=2), "-o", tmp_path / "out")
    port = free_port()
    runs = [setting.start(*setting.arguments, *more, environment=slurm(number, port)) for number in range(2)]
    for run in runs:
        assert run.wait() == 0, run.output
    assert runs[1].output == ""
    model = together("none")[0] / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model.read_bytes()


def test_slurms_variables_are_torchruns(bare: pytest.MonkeyPatch) -> None:
    for name, value in {**slurm(1, 29500), "SLURM_STEP_NODELIST": "gpu7,gpu9"}.items():
        bare.setenv(name, value)
    bare.setenv("PATH", "")  # without Slurm's own scontrol
    read_slurm_environment()
    assert (rank(), world_size()) == (1, 2)
    assert {name: os.environ[name] for name in VARIABLES} == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu7",
        "MASTER_PORT": "29500",
    }


def test_slurm_names_the_first_node(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[07-09]" ] && printf "gpu07\\ngpu08\\ngpu09\\n"\n')
    scontrol.chmod(0o755)
    bare.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {**slurm(0, 29500), "SLURM_STEP_NODELIST": "gpu[07-09]"}.items():
        bare.setenv(name, value)
    read_slurm_environment()
    assert os.environ["MASTER_ADDR"] == "gpu07"


@pytest.mark.parametrize("change", [{"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_PROCID": None}, {"RANK": "0"}])
def test_nothing_is_adopted_for_one_task_outside_a_step_or_under_torchrun(
    change: dict[str, str | None], bare: pytest.MonkeyPatch
) -> None:
    for name, value in {**slurm(1, 29500), **change}.items():
        if value is not None:
            bare.setenv(name, value)
    before = dict(os.environ)
    read_slurm_environment()
    assert dict(os.environ) == before
    assert (rank(), world_size()) == (0, 1)


def test_standing_alone_changes_nothing_under_a_launcher(bare: pytest.MonkeyPatch) -> None:
    set_single_process_environment()
    assert (rank(), world_size(), os.environ["MASTER_ADDR"]) == (0, 1, "localhost")
    bare.setenv("RANK", "5")
    before = dict(os.environ)
    set_single_process_environment()
    assert dict(os.environ) == before


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


@full
@pytest.mark.slow
def test_ctrl_c_stops_every_process(setting: Setting, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = torchrun(
        2, *setting.arguments, *options(max_steps=100_000, checkpoint_every=2, keep_checkpoints=2), "-o", output
    )
    try:
        while latest(output / CHECKPOINTS) is None:
            assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert "error:" not in err
    assert latest(output / CHECKPOINTS)
