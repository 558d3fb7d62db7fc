"""``earl rl`` killed at any moment and started again: it ends as if nothing had happened, to the bit.

Model, episodes, galleries and what was logged are the undisturbed run's. `EARL_SOAK_KILLS=100 pytest -s
tests/end_to_end/test_rl_killed.py` is the long version, in every way of sharding; it prints a seed, which
EARL_SOAK_SEED repeats.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killing import (
    KILLS,
    SOAK,
    Command,
    Setting,
    assert_disk_is_full,
    files,
    is_stripped,
    kill,
    kill_at_operations,
    kill_over_and_over,
    kill_under_torchrun,
    make,
    refused,
    start_and_fill,
    start_twice,
    stop,
)
from trainings import Trainings, options, write_pairs
from victims import own_program

from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints
from earl_cli.training.common.curves import LOG, read_run

pytestmark = pytest.mark.slow

ITERATIONS = 4
NAMES = tuple(f"ckpt_{iteration:06d}" for iteration in range(ITERATIONS))
RL = Command(left=(NAMES[1], NAMES[3]), keep=1, model="hf_model", unit="iteration", first=1)
"""A checkpoint after every iteration, of which one is whole, and before it every second one a model alone."""

WAYS: dict[str, tuple[int, dict[str, object]]] = {
    "alone": (1, {"log_episodes_every_n_iterations": 1, "gallery_rows": 1, "updates_per_iteration": 2}),
    "adapters": (1, {"lora_rank": 4}),
    "together": (2, {}),
    "zero2": (2, {"sharding": "zero2"}),
    "zero3": (2, {"sharding": "zero3", "assistant_prefill": "reasoning"}),
    "adapters in zero2": (2, {"sharding": "zero2", "lora_rank": 4}),
}
"""How many processes, and which values."""


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Setting]]:
    """The setting of that name, made when it is first asked for."""
    store = write_pairs(tmp_path_factory.mktemp("data") / "store", 8)
    launch = Trainings(tmp_path_factory.mktemp("logs"))
    made: dict[str, Setting] = {}
    values: dict[str, object] = {"num_iterations": ITERATIONS, "episodes_per_iteration": 8, "precision": "float32"}
    values |= {"generations_per_sample": 2, "per_device_batch_size": 4, "learning_rate": 3e-3, "kl_coeff": 0.01}
    values |= {"max_response_tokens": 64, "model_context_size": 128, "gradient_checkpointing": "false"}
    values |= {"save_checkpoints_every_n_iterations": 1, "keep_checkpoints_every_n_iterations": 2, "keep": RL.keep}
    common = ("rl", "--model", tiny_model_dir, "--data", store, "--reward", "reference", "--device", "cpu")

    def undisturbed(name: str) -> Setting:
        if name not in made:
            processes, more = WAYS[name]
            arguments = (*common, *options(**{**values, **more}))
            if name == "alone":
                arguments = (*arguments, "--validation", store, *options(validate_every=3, validation_rows=2))
            made[name] = make(RL, launch, processes, arguments, options(keep=50), tmp_path_factory.mktemp("rl") / "run")
            assert list(made[name].undisturbed.saved) == list(NAMES)
            assert len(set(made[name].undisturbed.saved.values())) == ITERATIONS
            assert len(made[name].undisturbed.figures["grad_norm"]) == ITERATIONS
        return made[name]

    yield undisturbed
    launch.close()


# -- killed --------------------------------------------------------------------------------------------------------


def test_killed_before_operations_on_files(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """Of an undisturbed run's 170 or so."""
    setting = settings("alone")
    seen = kill_at_operations(setting, tmp_path / "run", range(1, 400) if SOAK else (12, 47, 68, 74))
    setting.finish(tmp_path / "run")
    assert len(seen) >= 2, seen


@pytest.mark.parametrize("moment", ["in a checkpoint", "in the clean-up", "in the final model"])
def test_killed_in_a_phase(moment: str, settings: Callable[[str], Setting], tmp_path: Path) -> None:
    setting = settings("alone")
    for attempt in range(20):  # it may be over when the signal arrives
        output = tmp_path / str(attempt) / "run"
        runs = setting.start(output)
        setting.reaches(output, [moment], 4 * setting.seconds)
        kill(runs)
        setting.check(output)
        left = setting.phase(output)
        if left == moment:
            break
    assert left == moment
    setting.finish(output)


@pytest.mark.parametrize("name", ["zero2", "zero3", "adapters in zero2"] if SOAK else ["zero2"])
def test_both_processes_killed(name: str, settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """In a checkpoint, and between two: what DeepSpeed keeps in parts goes on as well."""
    setting = settings(name)
    for moment in ("in a checkpoint", "between checkpoints"):
        runs = setting.start(tmp_path / "run")
        assert setting.reaches(tmp_path / "run", [moment], 10 * setting.seconds)
        assert kill(runs) == 2
        setting.check(tmp_path / "run")
    setting.finish(tmp_path / "run")


@pytest.mark.skipif(not SOAK, reason="for a long run")
@pytest.mark.parametrize("killed", [0, 1])
def test_one_process_killed_under_torchrun(killed: int, settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """torchrun ends the other, and the next start goes on."""
    kill_under_torchrun(settings("together"), tmp_path / "run", killed)


def test_killed_over_and_over(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    kill_over_and_over(settings, list(WAYS) if SOAK else ["adapters", "together"], KILLS or 3, tmp_path)


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "moment", "number", "code"),
    [
        ("alone", "in a checkpoint", signal.SIGINT, 130),
        ("together", "between checkpoints", signal.SIGTERM, 143),
        *([("alone", "while starting", signal.SIGINT, 130)] if SOAK else []),
        *([(name, "between checkpoints", signal.SIGINT, 130) for name in WAYS] if SOAK else []),
    ],
)
def test_stopped(
    name: str, moment: str, number: signal.Signals, code: int, settings: Callable[[str], Setting], tmp_path: Path
) -> None:
    stop(settings(name), tmp_path / "run", moment, number, code)


# -- two at once ---------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """As after a kill of torchrun alone, whose processes go on for a while."""
    start_twice(settings("adapters"), tmp_path / "run")


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alone", "zero2", "zero3", "adapters in zero2"] if SOAK else ["alone"])
def test_a_full_disk(
    name: str, settings: Callable[[str], Setting], small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    setting = settings(name)
    whole = sum(path.stat().st_size for path in measured(setting, tmp_path / "whole").rglob("*") if path.is_file())
    output = small_disk(whole // 2) / "run"
    refused(setting, output)
    small_disk(10 * whole)
    runs = start_and_fill(setting, output, lambda: small_disk(whole // 2))
    assert_disk_is_full(runs, output / CHECKPOINTS, "(the model|the checkpoint of iteration 0)")
    assert checkpoints(output / CHECKPOINTS) == []
    small_disk(10 * whole)
    runs = start_and_fill(setting, output, lambda: small_disk(int(1.7 * whole)))  # a checkpoint and half of another
    assert_disk_is_full(runs, output / CHECKPOINTS, "(the model|the checkpoint of iteration 1)")
    assert [path.name for path in checkpoints(output / CHECKPOINTS)] == list(NAMES[:1])
    setting.check(output)
    small_disk(10 * whole)
    setting.finish(output)


def measured(setting: Setting, output: Path) -> Path:
    """A checkpoint as this setting writes it."""
    for run in setting.launch.ranks(setting.processes, *setting.arguments, *options(num_iterations=1), "-o", output):
        assert run.wait() == 0, run.output
    return output / CHECKPOINTS


@pytest.mark.skipif(not SOAK, reason="for a long run")
def test_a_disk_that_is_full_at_any_size(
    settings: Callable[[str], Setting], small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """Whatever is the first that it doesn't take, such as a folder of episodes, is one message."""
    setting = settings("alone")
    output = small_disk(1 << 14) / "run"
    for size in range(1 << 14, 1 << 20, 3 << 14):
        small_disk(size)
        (run,) = setting.start(output)
        assert run.wait() == 8, (size, run.output)
        assert run.output.count("error:") == 1, run.output
        assert "Traceback" not in run.output
    small_disk(1 << 26)
    setting.finish(output)


# -- the command itself --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SOAK, reason="for a long run")
def test_the_command_itself_killed_and_started_again(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """Not forked: with all its imports, in which it is killed too."""
    setting, output = settings("adapters"), tmp_path / "run"
    imports = own_program(tmp_path, *setting.arguments, "-o", output)
    time.sleep(1)
    assert kill([imports]) == 1
    training = own_program(tmp_path, *setting.arguments, "-o", output)
    assert setting.reaches(output, ["between checkpoints"], 120)
    assert kill([training]) == 1
    last = own_program(tmp_path, *setting.arguments, "-o", output)
    assert last.wait() == 0, last.output
    assert files(output) == setting.undisturbed.files


# -- what is kept --------------------------------------------------------------------------------------------------


def test_what_is_left_of_an_old_checkpoint_is_a_model(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    setting = settings("adapters")
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
