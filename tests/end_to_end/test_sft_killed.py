"""``earl sft`` killed at any moment and started again: the model ends as if nothing had happened, to the bit.

`EARL_SOAK_KILLS=200 pytest -s tests/end_to_end/test_sft_killed.py -k over_and_over` is the long version, in every way
of sharding; it prints a seed, which EARL_SOAK_SEED repeats.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trainings import Trainings, options, torchrun, worker, write_pairs
from victims import Run, own_program

from earl_cli.files import is_aside
from earl_cli.training.checkpoints import CHECKPOINTS, LOCK, MARK, checkpoints
from earl_cli.training.curves import read_run
from earl_cli.training.log import LOG

pytestmark = pytest.mark.slow

STEPS, EVERY, KEEP = 6, 2, 1
MODEL = "model.safetensors"
KILLS = int(os.environ.get("EARL_SOAK_KILLS", "5"))
SOAK = KILLS > 5
SEED = int(os.environ.get("EARL_SOAK_SEED", random.randrange(1 << 32) if SOAK else "0"))
WAYS = {
    "alone": (1, {"accumulation": 2}),
    "adapters": (1, {"accumulation": 2, "lora_rank": 4, "lora_dropout": 0.1}),
    "together": (2, {}),
    "zero2": (2, {"sharding": "zero2"}),
    "zero3": (2, {"sharding": "zero3"}),
}
"""How many processes, and which values; every step has the same four rows in all of them."""


@dataclass(frozen=True)
class Setting:
    """One way to run the command, and what it makes when nobody disturbs it in ``seconds``."""

    launch: Trainings
    arguments: tuple[object, ...]
    processes: int
    reference: dict[str, bytes]
    saved: dict[str, bytes]
    losses: list[float]
    seconds: float

    def start(self, output: Path, **how: Any) -> list[Run]:
        return self.launch.ranks(self.processes, *self.arguments, "-o", output, **how)

    def finish(self, output: Path) -> None:
        """Start it again: it goes on from the newest whole checkpoint, and ends with the undisturbed run's files."""
        newest = checkpoints(output / CHECKPOINTS)[-1:]
        runs = self.start(output)
        for run in runs:
            assert run.wait() == 0, run.output
            assert "Traceback" not in run.output
        assert files(output) == self.reference
        assert sorted(path.name for path in (output / CHECKPOINTS).glob("checkpoint-*")) == [f"checkpoint-{STEPS}"]
        assert read_run(output / LOG, "run").figures["loss"].values.tolist() == self.losses
        for path in newest:
            assert f"resumed from step {path.name.split('-')[1]};" in runs[0].output.replace(",", ";")

    def check(self, output: Path) -> None:
        """Whatever counts as a checkpoint, or has the model's name, is whole at any time."""
        assert sum(path.is_dir() for path in (output / CHECKPOINTS).glob("checkpoint-*")) <= KEEP + 2
        for path in checkpoints(output / CHECKPOINTS):
            weights = next(path.glob("*model.safetensors"))
            assert weights.read_bytes() == self.saved[path.name]
        if (output / MODEL).exists():
            assert (output / MODEL).read_bytes() == self.reference[MODEL]


def files(output: Path) -> dict[str, bytes]:
    """Everything but the checkpoints and the log."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != LOG and CHECKPOINTS not in path.parts
    }


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Setting]]:
    """The setting of that name, made when it is first asked for."""
    store = write_pairs(tmp_path_factory.mktemp("data") / "store", 16)
    launch = Trainings(tmp_path_factory.mktemp("logs"))
    made: dict[str, Setting] = {}
    values: dict[str, object] = {"max_steps": STEPS, "checkpoint_every": EVERY, "keep": KEEP, "log_every": 1}
    values |= {"batch_size": 2, "accumulation": 1, "warmup_steps": 1, "learning_rate": 3e-3, "precision": "float32"}
    common = ("sft", "--model", tiny_model_dir, "--data", store, "--device", "cpu")

    def undisturbed(name: str) -> Setting:
        if name not in made:
            processes, more = WAYS[name]
            more = {**values, **more}
            arguments = (*common, *options(**more))
            if name == "alone":
                arguments = (*arguments, "--validation", store, *options(validate_every=3, gallery_rows=1))
            output = tmp_path_factory.mktemp(name) / "run"
            begun = time.monotonic()
            for run in launch.ranks(processes, *arguments, "-o", output, *options(keep=50)):
                assert run.wait() == 0, run.output
                assert "Traceback" not in run.output
            seconds = time.monotonic() - begun
            saved = {path.name: next(path.glob("*model.safetensors")) for path in checkpoints(output / CHECKPOINTS)}
            assert list(saved) == [f"checkpoint-{step}" for step in range(EVERY, STEPS + 1, EVERY)]
            contents = {name: path.read_bytes() for name, path in saved.items()}
            losses = read_run(output / LOG, "run").figures["loss"].values.tolist()
            assert len(losses) == STEPS
            made[name] = Setting(launch, arguments, processes, files(output), contents, losses, seconds)
        return made[name]

    yield undisturbed
    launch.close()


# -- killed --------------------------------------------------------------------------------------------------------


def phase(output: Path) -> str:
    """How far the training was, by what it left."""
    if any(map(is_aside, output.glob(".*"))):
        return "in the final model"
    folder = output / CHECKPOINTS
    torn = [path for path in folder.glob("checkpoint-*") if not (path / MARK).exists()]
    whole = checkpoints(folder)
    if torn and any(int(path.name.split("-")[1]) < int(whole[-1].name.split("-")[1]) for path in torn if whole):
        return "in the clean-up"
    if torn:
        return "in a checkpoint"
    if len(whole) > KEEP:
        return "between mark and clean-up"
    if not whole:
        return "in the first steps" if (output / LOG).exists() else "while starting"
    if whole[-1].name != f"checkpoint-{STEPS}":
        return "between checkpoints"
    return "at the very end" if (output / MODEL).exists() else "before the final model"


def phase_now(output: Path) -> str:
    try:
        return phase(output)
    except FileNotFoundError:  # removed while it was looked at
        return ""


MOMENTS = ("in the first steps", "in a checkpoint", "between checkpoints", "between mark and clean-up")
MOMENTS = (*MOMENTS, "in the clean-up", "before the final model", "in the final model", "at the very end")


def reaches(output: Path, moment: str, seconds: float) -> bool:
    """Wait for this phase, by looking at the folder all the time, but no longer than that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if phase_now(output) == moment:
            return True
    return False


def kill(runs: Sequence[Run]) -> int:
    """SIGKILL to each that isn't over; how many it ended."""
    for run in runs:
        if run.wait_for_end(0) is None:
            run.send(signal.SIGKILL)
    return [run.wait() for run in runs].count(-signal.SIGKILL)


@pytest.mark.parametrize("every", [1] if SOAK else [5])
def test_killed_before_operations_on_files(every: int, settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """One output, started again each time: at one operation, at a later one, …; each goes further than the last."""
    setting = settings("alone")
    seen = Counter[str]()
    for touches in range(1, 200, every):
        (run,) = setting.start(tmp_path / "run", touches={0: touches})
        code = run.wait()
        setting.check(tmp_path / "run")
        if code == 0:
            break
        assert code == -signal.SIGKILL, run.output
        seen[phase(tmp_path / "run")] += 1
    print(dict(seen))
    setting.finish(tmp_path / "run")
    assert len(seen) >= 4, seen


@pytest.mark.parametrize("moment", ["in a checkpoint", "between mark and clean-up", "in the final model"])
def test_killed_in_a_phase(moment: str, settings: Callable[[str], Setting], tmp_path: Path) -> None:
    setting = settings("alone")
    wanted = (moment, "in the clean-up") if moment == "between mark and clean-up" else (moment,)  # it lasts a moment
    for attempt in range(20):  # it may be over when the signal arrives
        output = tmp_path / str(attempt) / "run"
        runs = setting.start(output)
        reaches(output, moment, 4 * setting.seconds)
        kill(runs)
        setting.check(output)
        left = phase(output)
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
        assert reaches(tmp_path / "run", moment, 10 * setting.seconds)
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
    setting, output = settings(name), tmp_path / "run"
    process = torchrun(2, *setting.arguments, "-o", output)
    try:
        while not (output / CHECKPOINTS / LOCK).exists():
            assert process.poll() is None, process.communicate()
        victim, other = (worker(process.pid, rank) for rank in (killed, 1 - killed))
        assert reaches(output, "between checkpoints", 120)
        os.kill(victim, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert not Path(f"/proc/{other}").exists()
    assert err.count("error:") <= 1, err
    setting.check(output)
    setting.finish(output)


def test_processes_whose_torchrun_was_killed_end_too(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """Nothing else would end them: they have groups of their own."""
    setting, output = settings("together"), tmp_path / "run"
    process = torchrun(2, *setting.arguments, *options(max_steps=100_000), "-o", output)
    try:
        while not (output / CHECKPOINTS / LOCK).exists():
            assert process.poll() is None, process.communicate()
        workers = [worker(process.pid, rank) for rank in range(2)]
        assert reaches(output, "between checkpoints", 120)
    finally:
        process.kill()
        process.communicate()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_killed_over_and_over(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """At random moments, in phases and at operations on files: all processes, or one and the others end themselves."""
    started = time.monotonic()
    print(f"\nseed {SEED}: EARL_SOAK_KILLS={KILLS} EARL_SOAK_SEED={SEED}")
    rng = random.Random(SEED)
    killed = Counter[str]()
    outputs = 0
    while killed.total() < KILLS:
        name = rng.choice(list(WAYS)) if SOAK else ("alone", "adapters", "together")[outputs % 3]
        outputs += 1
        output = tmp_path / str(outputs) / "run"
        for _ in range(rng.randint(1, 4)):
            if not _one_kill(rng, settings(name), name, output, killed):
                break
        settings(name).finish(output)
    print(f"{killed.total()} kills in {outputs} trainings, {time.monotonic() - started:.0f} s")
    print("\n".join(f"{count:5} {what}" for what, count in killed.most_common()))


def _one_kill(rng: random.Random, setting: Setting, name: str, output: Path, killed: Counter[str]) -> bool:
    """Start and kill; False if it was done before that."""
    way = rng.choice(("moment", "phase", "touch"))
    if way == "touch":
        victim = rng.randrange(setting.processes)
        runs = setting.start(output, touches={victim: rng.randint(1, 40)})
        victims = [runs[victim]]
        if victims[0].wait() != -signal.SIGKILL:
            assert [run.wait() for run in runs] == [0] * len(runs), [run.output for run in runs]
            return False
    else:
        runs = setting.start(output)
        if way == "phase":
            reaches(output, rng.choice(MOMENTS), 2 * setting.seconds)
        else:
            time.sleep(rng.uniform(0, 1.1 * setting.seconds))
        victims = rng.sample(runs, rng.randint(1, len(runs)))
        kill(victims)
    for run in runs:
        if run in victims:
            continue
        if rng.random() < 0.2:
            with suppress(TimeoutError):  # one that still waited for the other to start would wait for long
                assert run.wait(40) in (0, 1), run.output
                assert "Traceback" not in run.output
        kill([run])
    reached = any(run.wait() == -signal.SIGKILL for run in victims)
    setting.check(output)
    killed[f"{name}, {len(victims)} of {len(runs)}: {phase(output)}"] += reached
    return reached


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        ("while starting", signal.SIGINT, 130),
        ("in a checkpoint", signal.SIGINT, 130),
        ("between checkpoints", signal.SIGINT, 130),
        ("between checkpoints", signal.SIGTERM, 143),
    ],
)
def test_stopped(
    moment: str, number: signal.Signals, code: int, settings: Callable[[str], Setting], tmp_path: Path
) -> None:
    setting = settings("alone")
    (run,) = setting.start(tmp_path / "run")
    assert reaches(tmp_path / "run", moment, 10 * setting.seconds)
    if moment == "while starting":
        time.sleep(0.1)
    os.killpg(run.pid, number)
    assert run.wait(30) == code, run.output
    assert "Traceback" not in run.output
    assert "error:" not in run.output
    assert run.output.rstrip().endswith("stopped") == (number == signal.SIGINT)
    setting.check(tmp_path / "run")
    setting.finish(tmp_path / "run")


# -- two at once ---------------------------------------------------------------------------------------------------


def test_a_second_training_in_the_same_folder_is_refused(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """As after a kill of torchrun alone, whose processes go on for a while."""
    setting = settings("alone")
    (first,) = setting.start(tmp_path / "run")
    assert reaches(tmp_path / "run", "in the first steps", 10 * setting.seconds)
    first.send(signal.SIGSTOP)
    (second,) = setting.start(tmp_path / "run")
    assert second.wait() == 8, second.output
    assert f"error: {tmp_path / 'run' / CHECKPOINTS}: another training is at work here\n" in second.output
    assert f"hint: wait for it, or end process {first.pid}\n" in second.output
    kill([first])
    setting.finish(tmp_path / "run")


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of its own with so many bytes, and more when it is asked for again."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: int) -> Path:
        how = ",".join([*(["remount"] if place.is_mount() else []), f"size={size}"])
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            done = False
        if not done:
            pytest.skip("mounting a disk of its own is not allowed here")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def assert_disk_is_full(runs: Sequence[Run], where: Path, what: str) -> None:
    """One of the processes says so, and the others no more than that they lost one."""
    codes = [run.wait() for run in runs]
    assert 8 in codes, [run.output for run in runs]
    assert set(codes) <= {1, 8}
    for run, code in zip(runs, codes, strict=True):
        assert "Traceback" not in run.output
        assert run.output.count("error:") == 1
        if code == 8:
            assert f"error: {where}: {what} can't be written: " in run.output
            assert "hint: make room and start again" in run.output or what == "the model"


@pytest.mark.parametrize("name", ["alone", "zero2", "zero3"] if SOAK else ["alone"])
def test_a_full_disk(
    name: str, settings: Callable[[str], Setting], small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    setting = settings(name)
    whole = sum(path.stat().st_size for path in measured(setting, tmp_path / "whole").rglob("*") if path.is_file())
    output = small_disk(whole // 2) / "run"
    assert_disk_is_full(setting.start(output), output / CHECKPOINTS, f"the checkpoint of step {EVERY}")
    assert checkpoints(output / CHECKPOINTS) == []
    for room, last in ((1.5, EVERY), (2.1, STEPS)):  # for a checkpoint and half of another; not for the model as well
        small_disk(int(room * whole))
        what = f"the checkpoint of step {last + EVERY}" if last < STEPS else "the model"
        assert_disk_is_full(setting.start(output), output / CHECKPOINTS if last < STEPS else output, what)
        assert [path.name for path in checkpoints(output / CHECKPOINTS)] == [f"checkpoint-{last}"]
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
    assert_disk_is_full([run], output / CHECKPOINTS, f"the checkpoint of step {EVERY}")
    setting.finish(output)


# -- the command itself --------------------------------------------------------------------------------------------


def test_the_command_itself_killed_and_started_again(settings: Callable[[str], Setting], tmp_path: Path) -> None:
    """Not forked: with all its imports, in which it is killed too."""
    setting, output = settings("alone"), tmp_path / "run"
    imports = own_program(tmp_path, *setting.arguments, "-o", output)
    time.sleep(1)
    assert kill([imports]) == 1
    training = own_program(tmp_path, *setting.arguments, "-o", output)
    assert reaches(output, "between checkpoints", 120)
    assert kill([training]) == 1
    last = own_program(tmp_path, *setting.arguments, "-o", output)
    assert last.wait() == 0, last.output
    assert files(output) == setting.reference
