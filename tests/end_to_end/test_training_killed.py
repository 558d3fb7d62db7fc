"""``earl sft`` and ``earl rl`` killed at any moment and started again: they end as if nothing had happened, to the bit.

Model, episodes, galleries and what was logged are the undisturbed run's. `make soak` kills them at random moments.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest
from _pytest.mark import ParameterSet
from killing import (
    KILLS,
    Setting,
    assert_disk_is_full,
    files,
    kill,
    kill_at_operations,
    kill_in,
    kill_over_and_over,
    kill_under_torchrun,
    make,
    refused,
    start_and_fill,
    start_twice,
    stop,
    stop_under_torchrun,
    under_torchrun,
)
from phases import ITERATIONS, MOMENTS, RL, SFT, STEPS, Command, is_stripped
from trainings import Trainings, options, write_pairs
from victims import own_program

from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints
from earl_cli.training.common.curves import LOG, read_run

pytestmark = pytest.mark.slow
full = pytest.mark.full
Values: TypeAlias = Mapping[str, object]
Settings: TypeAlias = Callable[[str], Setting]

COMMANDS: dict[str, tuple[Command, int, tuple[object, ...], Values]] = {
    "sft": (
        SFT,
        16,
        (),
        {
            "max_steps": STEPS,
            "checkpoint_every": 2,
            "keep_checkpoints": SFT.keep,
            "log_every": 1,
            "precision": "float32",
        }
        | {"batch_size": 2, "accumulation": 1, "warmup_steps": 1, "learning_rate": 3e-3},
    ),
    "rl": (
        RL,
        8,
        ("--reward", "reference"),
        {"num_iterations": ITERATIONS, "episodes_per_iteration": 8, "precision": "float32", "learning_rate": 3e-3}
        | {"generations_per_sample": 2, "batch_size": 4, "kl_coeff": 0.01, "max_response_tokens": 64}
        | {"max_length": 128, "gradient_checkpointing": "false", "keep_checkpoints": RL.keep}
        | {"checkpoint_every": 1, "keep_model_every": 2},
    ),
}
"""What each command has in all its ways: pairs of its store, arguments, values."""
WAYS: dict[str, tuple[int, Values]] = {
    "sft alone": (1, {"accumulation": 2, "dropout": 0.1, "validate_every": 3, "gallery_examples": 1}),
    "sft adapters": (1, {"accumulation": 2, "lora_rank": 4, "lora_dropout": 0.1}),
    "sft together": (2, {}),
    "sft zero2": (2, {"sharding": "zero2"}),
    "sft zero3": (2, {"sharding": "zero3"}),
    "rl alone": (
        1,
        {"log_episodes_every_n_iterations": 1, "gallery_examples": 1, "updates_per_iteration": 2}
        | {"validate_every": 3, "validation_examples": 2},
    ),
    "rl adapters": (1, {"lora_rank": 4}),
    "rl together": (2, {}),
    "rl zero2": (2, {"sharding": "zero2"}),
    "rl zero3": (2, {"sharding": "zero3", "assistant_prefill": "reasoning"}),
    "rl adapters in zero2": (2, {"sharding": "zero2", "lora_rank": 4}),
}
"""How many processes, and which values; every step of sft has the same four rows in all of them."""


@pytest.fixture(scope="module")
def settings(launch: Trainings, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The setting of that name, made when it is first needed."""
    made: dict[str, Setting] = {}
    stores = {
        name: write_pairs(tmp_path_factory.mktemp("data") / "store", pairs)
        for name, (_, pairs, _, _) in COMMANDS.items()
    }

    def undisturbed(way: str) -> Setting:
        if way not in made:
            name = way.split(maxsplit=1)[0]
            command, _, arguments, common = COMMANDS[name]
            processes, values = WAYS[way]
            given = (name, "--model", tiny_model_dir, "--data", stores[name], "--device", "cpu", *arguments)
            if "validate_every" in values:
                given = (*given, "--validation", stores[name])
            all_kept = options(keep_checkpoints=50, **({"checkpoint_every": 1} if name == "sft" else {}))
            output = tmp_path_factory.mktemp(name) / "run"
            found = make(command, launch, processes, (*given, *options(**{**common, **values})), all_kept, output)
            units = STEPS if name == "sft" else ITERATIONS
            assert len(set(found.undisturbed.saved.values())) == units
            assert len(found.undisturbed.metrics["grad_norm"]) == units
            made[way] = found
        return made[way]

    return undisturbed


def long(*ways: object) -> list[ParameterSet]:
    """Parameters that `make test` leaves to `make test-full`."""
    return [pytest.param(*(way if isinstance(way, tuple) else (way,)), marks=full) for way in ways]


# -- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "touches"),
    [
        ("sft alone", range(2, 200, 9)),
        ("rl alone", (47, 68, 74)),
        *long(("sft alone", range(1, 200)), ("rl alone", range(1, 400))),
    ],
    ids=["sft", "rl", "sft at every one", "rl at every one"],
)
def test_killed_before_operations_on_files(
    way: str, touches: range | tuple[int, ...], settings: Settings, tmp_path: Path
) -> None:
    setting = settings(way)
    seen = kill_at_operations(setting, tmp_path / "run", touches)
    setting.finish(tmp_path / "run")
    assert len(seen) >= 2, seen


@full
@pytest.mark.parametrize("way", ["sft alone", "rl alone"])
@pytest.mark.parametrize("moment", ["while starting", *MOMENTS])
def test_killed_in_a_phase(way: str, moment: str, settings: Settings, tmp_path: Path) -> None:
    kill_in(settings(way), moment, tmp_path / "run")
    settings(way).finish(tmp_path / "run")


@pytest.mark.parametrize(
    "way",
    [
        "sft zero2",
        *(pytest.param(way, marks=full) for way in ("sft zero3", "rl zero2", "rl zero3", "rl adapters in zero2")),
    ],
)
def test_both_processes_killed(way: str, settings: Settings, tmp_path: Path) -> None:
    """In a checkpoint, and between two: what DeepSpeed keeps in parts goes on as well."""
    setting = settings(way)
    for moment in ("in a checkpoint", "between checkpoints"):
        kill_in(setting, moment, tmp_path / "run")
    setting.finish(tmp_path / "run")


@full
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("way", ["sft together", "rl together"])
def test_one_process_killed_under_torchrun(way: str, killed: int, settings: Settings, tmp_path: Path) -> None:
    kill_under_torchrun(settings(way), tmp_path / "run", killed)


@full
def test_processes_whose_torchrun_was_killed_end_too(settings: Settings, tmp_path: Path) -> None:
    """Nothing else would end them: they have groups of their own."""
    with under_torchrun(settings("sft together"), tmp_path / "run") as (process, workers):
        process.kill()
        os.kill(workers[0], signal.SIGCONT)
        process.communicate()
        end = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < end
            time.sleep(0.1)


@full
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_over_and_over(command: str, settings: Settings, tmp_path: Path) -> None:
    kill_over_and_over(settings, [way for way in WAYS if way.startswith(command)], KILLS, tmp_path)


@full
@pytest.mark.parametrize("way", ["sft alone", "rl adapters"])
def test_the_command_itself_killed_and_started_again(way: str, settings: Settings, tmp_path: Path) -> None:
    """Not forked: with all its imports, in which it is killed too."""
    setting, output = settings(way), tmp_path / "run"
    imports = own_program(tmp_path, *setting.arguments, "-o", output)
    imports.wait_for_library("libtorch")
    assert kill([imports]) == 1
    training = own_program(tmp_path, *setting.arguments, "-o", output, freeze="between checkpoints")
    assert kill([training.frozen()]) == 1
    last = own_program(tmp_path, *setting.arguments, "-o", output)
    assert last.wait() == 0, last.output
    assert files(output) == setting.undisturbed.files


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "moment", "number"),
    [
        ("sft alone", "between checkpoints", signal.SIGTERM),
        ("rl alone", "in a checkpoint", signal.SIGINT),
        *long(
            ("sft alone", "while starting", signal.SIGINT),
            ("sft alone", "in a checkpoint", signal.SIGINT),
            ("rl alone", "while starting", signal.SIGINT),
            ("sft together", "between checkpoints", signal.SIGTERM),
            ("rl together", "between checkpoints", signal.SIGTERM),
            *((way, "between checkpoints", signal.SIGINT) for way in WAYS),
        ),
    ],
)
def test_stopped(way: str, moment: str, number: signal.Signals, settings: Settings, tmp_path: Path) -> None:
    stop(settings(way), tmp_path / "run", moment, number)


@full
def test_stopped_under_torchrun(settings: Settings, tmp_path: Path) -> None:
    stop_under_torchrun(settings("sft together"), tmp_path / "run")


# -- two at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sft alone", *long("rl adapters")])
def test_a_second_training_in_the_same_folder_is_refused(way: str, settings: Settings, tmp_path: Path) -> None:
    """As after a kill of torchrun alone, whose processes go on for a while."""
    start_twice(settings(way), tmp_path / "run")


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    ["rl alone", *long("sft alone", "sft zero2", "sft zero3", "rl zero2", "rl zero3", "rl adapters in zero2")],
)
def test_a_full_disk(way: str, settings: Settings, small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    setting, name = settings(way), way.split(maxsplit=1)[0]
    shorter = options(max_steps=2) if name == "sft" else options(num_iterations=1)
    for run in setting.launch.ranks(setting.processes, *setting.arguments, *shorter, "-o", tmp_path / "whole"):
        assert run.wait() == 0, run.output
    measured = tmp_path / "whole" / CHECKPOINTS
    whole = sum(path.stat().st_size for path in measured.rglob("*") if path.is_file())
    output = small_disk(whole // 2) / "run"
    refused(setting, output)
    small_disk(10 * whole)
    runs = start_and_fill(setting, output, lambda: small_disk(whole // 2))
    first, second = ("step 2", r"step \d") if name == "sft" else ("iteration 0", "iteration 1")
    assert_disk_is_full(runs, output / CHECKPOINTS, f"(the model|the checkpoint of {first})")
    assert checkpoints(output / CHECKPOINTS) == []
    small_disk(10 * whole)
    room = 1.5 if name == "sft" else 1.7  # a checkpoint and half of another
    runs = start_and_fill(setting, output, lambda: small_disk(int(room * whole)))
    assert_disk_is_full(runs, output / CHECKPOINTS, f"(the model|the checkpoint of {second})")
    (kept,) = checkpoints(output / CHECKPOINTS)
    assert re.fullmatch("checkpoint-2|ckpt_000000", kept.name)
    setting.check(output)
    small_disk(10 * whole)
    setting.finish(output)


def test_a_file_that_may_not_be_that_large(settings: Settings, tmp_path: Path) -> None:
    setting = settings("sft alone")
    output = tmp_path / "run"
    (run,) = setting.start(output, largest=1_000_000)  # bytes, which the optimizer's state has more of
    assert_disk_is_full([run], output / CHECKPOINTS, "(the model|the checkpoint of step 2)")
    setting.finish(output)


@full
def test_a_disk_that_is_full_at_any_size(settings: Settings, small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    """Whatever is the first that it doesn't take, such as a folder of episodes, is one message."""
    setting = settings("rl alone")
    output = small_disk(1 << 14) / "run"
    for size in range(1 << 14, 1 << 20, 3 << 14):
        small_disk(size)
        (run,) = setting.start(output)
        assert run.wait() == 8, (size, run.output)
        assert run.output.count("error:") == 1, run.output
        assert "Traceback" not in run.output
    small_disk(1 << 26)
    setting.finish(output)


# -- what is kept --------------------------------------------------------------------------------------------------


def test_what_is_left_of_an_old_checkpoint_is_a_model(settings: Settings, tmp_path: Path) -> None:
    setting = settings("rl alone")
    for run in setting.start(tmp_path / "run"):
        assert run.wait() == 0, run.output
    old, last = (tmp_path / "run" / CHECKPOINTS / name for name in RL.left)
    assert is_stripped(old)
    assert (last / RL.model / "model.safetensors").read_bytes() == (tmp_path / "run/model.safetensors").read_bytes()
    (longer,) = setting.launch.ranks(
        1, *setting.arguments, *options(num_iterations=ITERATIONS + 2), "-o", tmp_path / "run"
    )
    assert longer.wait() == 0, longer.output
    assert [path.name for path in sorted((tmp_path / "run" / CHECKPOINTS).glob("ckpt_*"))] == [
        "ckpt_000001",
        "ckpt_000003",
        "ckpt_000005",
    ]
    assert read_run(tmp_path / "run" / LOG, "run").steps == ITERATIONS + 2
