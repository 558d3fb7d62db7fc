"""``earl sft`` killed at any moment and started again: the model ends as if nothing had happened, to the bit.

`EARL_SOAK_KILLS=200 pytest -s tests/end_to_end/test_sft_killed.py -k over_and_over` is the long version, in every way
of sharding; it prints a seed, which EARL_SOAK_SEED repeats.
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
    kill,
    kill_at_operations,
    kill_over_and_over,
    kill_under_torchrun,
    make,
    refused,
    start_and_fill,
    start_twice,
    stop,
    stop_under_torchrun,
)
from trainings import Trainings, options, torchrun, worker, write_pairs
from victims import own_program

from earl_cli.files import LOCK_FILE
from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints

pytestmark = pytest.mark.slow

STEPS, EVERY = 6, 2
SFT = Command(left=(f"checkpoint-{STEPS}",), keep=1, model=".", unit="step", first=0)
WAYS = {
    "alone": (1, {"accumulation": 2, "dropout": 0.1}),
    "adapters": (1, {"accumulation": 2, "lora_rank": 4, "lora_dropout": 0.1}),
    "together": (2, {}),
    "zero2": (2, {"sharding": "zero2"}),
    "zero3": (2, {"sharding": "zero3"}),
}
"""How many processes, and which values; every step has the same four rows in all of them."""


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Setting]]:
    """The setting of that name, made when it is first asked for."""
    store = write_pairs(tmp_path_factory.mktemp("data") / "store", 16)
    launch = Trainings(tmp_path_factory.mktemp("logs"))
    made: dict[str, Setting] = {}
    values: dict[str, object] = {"max_steps": STEPS, "checkpoint_every": EVERY, "keep": SFT.keep, "log_every": 1}
    values |= {"batch_size": 2, "accumulation": 1, "warmup_steps": 1, "learning_rate": 3e-3, "precision": "float32"}
    common = ("sft", "--model", tiny_model_dir, "--data", store, "--device", "cpu")

    def undisturbed(name: str) -> Setting:
        if name not in made:
            processes, more = WAYS[name]
            arguments = (*common, *options(**{**values, **more}))
            if name == "alone":
                arguments = (*arguments, "--validation", store, *options(validate_every=3, gallery_rows=1))
            output = tmp_path_factory.mktemp(name) / "run"
            made[name] = make(SFT, launch, processes, arguments, options(keep=50, checkpoint_every=1), output)
            assert list(made[name].undisturbed.saved) == [f"checkpoint-{step}" for step in range(1, STEPS + 1)]
        return made[name]

    yield undisturbed
    launch.close()


# -- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1] if SOAK else [5])
def test_killed_before_operations_on_files(every: int, settings: Callable[[str], Setting], tmp_path: Path) -> None:
    setting = settings("alone")
    seen = kill_at_operations(setting, tmp_path / "run", range(1, 200, every))
    setting.finish(tmp_path / "run")
    assert len(seen) >= 4, seen


@pytest.mark.parametrize("moment", ["in a checkpoint", "between mark and clean-up", "in the final model"])
def test_killed_in_a_phase(moment: str, settings: Callable[[str], Setting], tmp_path: Path) -> None:
    setting = settings("alone")
    wanted = (moment, "in the clean-up") if moment == "between mark and clean-up" else (moment,)  # it lasts a moment
    for attempt in range(20):  # it may be over when the signal arrives
        output = tmp_path / str(attempt) / "run"
        runs = setting.start(output)
        setting.reaches(output, wanted, 4 * setting.seconds)
        kill(runs)
        setting.check(output)
        left = setting.phase(output)
        if left in wanted:
            break
    assert left in wanted
    setting.finish(output)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_both_processes_killed(name: str, settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """In a checkpoint, and between two: what DeepSpeed keeps in parts goes on as well."""
    setting = settings(name)
    for moment in ("in a checkpoint", "between checkpoints"):
        runs = setting.start(tmp_path / "run")
        assert setting.reaches(tmp_path / "run", [moment], 10 * setting.seconds)
        assert kill(runs) == 2
        setting.check(tmp_path / "run")
    setting.finish(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "killed"), [(n, k) for n in ("zero2", "zero3") for k in (0, 1)] if SOAK else [("zero2", 1)]
)
def test_one_process_killed_under_torchrun(
    name: str, killed: int, settings: Callable[[str], Setting], tmp_path: Path
) -> None:
    """torchrun ends the other, and the next start goes on."""
    kill_under_torchrun(settings("together"), tmp_path / "run", killed)


def test_processes_whose_torchrun_was_killed_end_too(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """Nothing else would end them: they have groups of their own."""
    setting, output = settings("together"), tmp_path / "run"
    process = torchrun(2, *setting.arguments, *options(max_steps=100_000), "-o", output)
    try:
        while not (output / CHECKPOINTS / LOCK_FILE).exists():
            assert process.poll() is None, process.communicate()
        workers = [worker(process.pid, rank) for rank in range(2)]
        assert setting.reaches(output, ["between checkpoints"], 120)
    finally:
        process.kill()
        process.communicate()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_killed_over_and_over(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    names = list(WAYS) if SOAK else ["alone", "adapters", "together"]
    kill_over_and_over(settings, names, KILLS or 5, tmp_path)


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "moment", "number", "code"),
    [
        ("alone", "while starting", signal.SIGINT, 130),
        ("alone", "in a checkpoint", signal.SIGINT, 130),
        ("alone", "between checkpoints", signal.SIGTERM, 143),
        ("together", "between checkpoints", signal.SIGTERM, 143),
        *([(name, "between checkpoints", signal.SIGINT, 130) for name in WAYS] if SOAK else []),
    ],
)
def test_stopped(
    name: str, moment: str, number: signal.Signals, code: int, settings: Callable[[str], Setting], tmp_path: Path
) -> None:
    stop(settings(name), tmp_path / "run", moment, number, code)


def test_stopped_under_torchrun(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    stop_under_torchrun(settings("together"), tmp_path / "run")


# -- two at once ---------------------------------------------------------------------------------------------------


def test_a_second_training_in_the_same_folder_is_refused(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """As after a kill of torchrun alone, whose processes go on for a while."""
    start_twice(settings("alone"), tmp_path / "run")


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alone", "zero2", "zero3"] if SOAK else ["alone"])
def test_a_full_disk(
    name: str, settings: Callable[[str], Setting], small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    setting = settings(name)
    whole = sum(path.stat().st_size for path in measured(setting, tmp_path / "whole").rglob("*") if path.is_file())
    output = small_disk(whole // 2) / "run"
    refused(setting, output)
    small_disk(10 * whole)
    runs = start_and_fill(setting, output, lambda: small_disk(whole // 2))
    assert_disk_is_full(runs, output / CHECKPOINTS, f"(the model|the checkpoint of step {EVERY})")
    assert checkpoints(output / CHECKPOINTS) == []
    small_disk(10 * whole)
    runs = start_and_fill(setting, output, lambda: small_disk(int(1.5 * whole)))  # a checkpoint and half of another
    assert_disk_is_full(runs, output / CHECKPOINTS, r"(the model|the checkpoint of step \d)")
    (kept,) = checkpoints(output / CHECKPOINTS)
    assert kept.name == f"checkpoint-{EVERY}"
    setting.check(output)
    small_disk(10 * whole)
    setting.finish(output)


def measured(setting: Setting, output: Path) -> Path:
    """A checkpoint as this setting writes it."""
    for run in setting.launch.ranks(setting.processes, *setting.arguments, *options(max_steps=EVERY), "-o", output):
        assert run.wait() == 0, run.output
    return output / CHECKPOINTS


def test_a_file_that_may_not_be_that_large(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    setting = settings("alone")
    output = tmp_path / "run"
    (run,) = setting.start(output, largest=1_000_000)  # bytes, which the optimizer's state has more of
    assert_disk_is_full([run], output / CHECKPOINTS, f"(the model|the checkpoint of step {EVERY})")
    setting.finish(output)


# -- the command itself --------------------------------------------------------------------------------------------


def test_the_command_itself_killed_and_started_again(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """Not forked: with all its imports, in which it is killed too."""
    setting, output = settings("alone"), tmp_path / "run"
    imports = own_program(tmp_path, *setting.arguments, "-o", output)
    time.sleep(1)
    assert kill([imports]) == 1
    training = own_program(tmp_path, *setting.arguments, "-o", output)
    assert setting.reaches(output, ["between checkpoints"], 120)
    assert kill([training]) == 1
    last = own_program(tmp_path, *setting.arguments, "-o", output)
    assert last.wait() == 0, last.output
    assert files(output) == setting.undisturbed.files
