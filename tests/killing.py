"""Trainings that are killed and started again: what they leave at any moment is whole, and they end as undisturbed.

`EARL_SOAK_KILLS` is how many kills a test over and over makes, at random moments; `EARL_SOAK_SEED` repeats those of the
seed that one printed.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phases import MODEL, MOMENTS, Command, folders, number, of_training
from trainings import Trainings, torchrun, worker
from victims import Run, wait_until_frozen

from earl_cli.files import LOCK_FILE
from earl_cli.training.common.checkpoints import BEST, CHECKPOINTS, MODEL_ONLY, checkpoints
from earl_cli.training.common.curves import LOG, read_run

KILLS = int(os.environ.get("EARL_SOAK_KILLS", "8"))
SEED = int(os.environ.get("EARL_SOAK_SEED", random.randrange(1 << 32)))
MEASURED = re.compile(r"time/.*|memory|.*runtime|.*per_second|total_flos|train_loss")
"""Metrics of a log that are other ones each time, or of what was done since the last start."""


@dataclass(frozen=True)
class Made:
    """What a training made: its files but for checkpoints and log, the weights of checkpoints, the log's metrics."""

    files: Mapping[str, bytes]
    saved: Mapping[str, bytes]
    metrics: Mapping[str, list[float]]


@dataclass(frozen=True)
class Setting:
    """One way to run a command, and what it makes undisturbed, in ``seconds``; ``best`` is a checkpoint."""

    command: Command
    launch: Trainings
    arguments: tuple[object, ...]
    processes: int
    undisturbed: Made
    seconds: float
    best: str | None

    def start(self, output: Path, **how: Any) -> list[Run]:
        return self.launch.ranks(self.processes, *self.arguments, "-o", output, **how)

    def start_until(self, moment: str, output: Path) -> list[Run]:
        """Started, and the first process frozen in that phase."""
        runs = self.start(output, freeze=moment)
        runs[0].frozen()
        return runs

    def finish(self, output: Path) -> None:
        """Start it again: it goes on from the newest whole checkpoint, and ends with the undisturbed run's files."""
        newest = checkpoints(output / CHECKPOINTS)[-1:]
        runs = self.start(output)
        end_well(runs)
        assert files(output) == self.undisturbed.files
        assert {path.name for path in folders(output)} == {*self.command.left, *filter(None, [self.best])}
        assert _best(output) == self.best
        assert [path.name for path in checkpoints(output / CHECKPOINTS)] == list(
            self.command.left[-self.command.keep :]
        )
        assert read_metrics(output) == self.undisturbed.metrics
        self.check(output)
        for path in newest:
            assert f"{self.command.done(path)};" in runs[0].output.replace(",", ";").replace("\n", ";")

    def check(self, output: Path) -> None:
        """Whatever counts as a checkpoint, is a model alone, or has the model's name, is whole at any time."""
        whole = checkpoints(output / CHECKPOINTS)
        alone = [path for path in folders(output) if (path / MODEL_ONLY).is_file() and path not in whole]
        assert len(folders(output)) - len(alone) <= self.command.keep + 2
        for path in (*whole, *alone):
            weights = next((path / self.command.model).glob(f"*{MODEL}"))
            assert weights.read_bytes() == self.undisturbed.saved[path.name]
        if (output / MODEL).exists():
            assert (output / MODEL).read_bytes() == self.undisturbed.files[MODEL]

    def phase(self, output: Path) -> str:
        """How far the training was, by what it left."""
        return of_training(self.command, output)

    def reaches(self, output: Path, moments: Collection[str], seconds: float) -> bool:
        """Wait for one of these phases, by looking at the folder all the time, but no longer than that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(FileNotFoundError):  # removed while it was looked at
                if self.phase(output) in moments:
                    return True
        return False


def make(
    command: Command, launch: Trainings, processes: int, arguments: Sequence[object], all_kept: Sequence[str], out: Path
) -> Setting:
    """Run it undisturbed; ``all_kept`` are the options with which it keeps every checkpoint whole."""
    begun = time.monotonic()
    end_well(launch.ranks(processes, *arguments, "-o", out, *all_kept))
    seconds = time.monotonic() - begun
    saved = {
        path.name: next((path / command.model).glob(f"*{MODEL}")).read_bytes()
        for path in checkpoints(out / CHECKPOINTS)
    }
    assert set(command.left) <= set(saved)
    made = Made(files(out), saved, read_metrics(out))
    return Setting(command, launch, tuple(arguments), processes, made, seconds, _best(out))


def _best(output: Path) -> str | None:
    """The checkpoint that the run's link leads to; the model in it is whole."""
    link = output / BEST
    if not link.is_symlink():
        return None
    assert (link / MODEL).is_file()
    return link.readlink().parts[1]


def end_well(runs: Sequence[Run]) -> None:
    for run in runs:
        assert run.wait() == 0, run.output
        assert "Traceback" not in run.output


def files(output: Path) -> dict[str, bytes]:
    """Everything but the checkpoints and the log."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != LOG and CHECKPOINTS not in path.parts
    }


def read_metrics(output: Path) -> dict[str, list[float]]:
    """All that was logged, and isn't measured."""
    found = read_run(output / LOG, "run").metrics
    return {name: series.values.tolist() for name, series in found.items() if not MEASURED.fullmatch(name)}


def kill(runs: Sequence[Run]) -> int:
    """SIGKILL to each that isn't over; how many it ended."""
    for run in runs:
        if run.wait_for_end(0) is None:
            run.send(signal.SIGKILL)
    return [run.wait() for run in runs].count(-signal.SIGKILL)


def kill_at_operations(setting: Setting, output: Path, touches: Sequence[int]) -> Counter[str]:
    """One output, started again each time: at one operation, at a later one, …; each goes further than the last.

    Ends when a run did; says in which phases the others were.
    """
    seen = Counter[str]()
    for each in touches:
        (run,) = setting.start(output, touches={0: each})
        code = run.wait()
        setting.check(output)
        if code == 0:
            break
        assert code == -signal.SIGKILL, run.output
        seen[setting.phase(output)] += 1
    print(dict(seen))
    return seen


def kill_over_and_over(settings: Callable[[str], Setting], names: Sequence[str], kills: int, folder: Path) -> None:
    """At random moments, in phases and at operations on files: all processes, or one and the others end themselves."""
    started = time.monotonic()
    print(f"\nseed {SEED}: EARL_SOAK_KILLS={kills} EARL_SOAK_SEED={SEED}")
    rng = random.Random(SEED)
    killed = Counter[str]()
    outputs = 0
    while killed.total() < kills:
        name = rng.choice(names)
        outputs += 1
        output = folder / str(outputs) / "run"
        for _ in range(rng.randint(1, 4)):
            if killed.total() >= kills or not _one_kill(rng, settings(name), name, output, killed):
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
            setting.reaches(output, (rng.choice(MOMENTS),), 2 * setting.seconds)
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
    killed[f"{name}, {len(victims)} of {len(runs)}: {setting.phase(output)}"] += reached
    return reached


def kill_in(setting: Setting, moment: str, output: Path) -> None:
    """All processes, while the first is in that phase."""
    runs = setting.start_until(moment, output)
    assert kill(runs) == len(runs)
    assert setting.phase(output) == moment
    setting.check(output)


# -- a full disk ---------------------------------------------------------------------------------------------------


def refused(setting: Setting, output: Path) -> None:
    """A run that would fill the disk says so before it starts."""
    for run in setting.start(output):
        assert run.wait() == 8, run.output
        assert re.search(r"error: \S+: the run needs up to .* checkpoints? of .*; .* are free\nhint: ", run.output), (
            run.output
        )
    assert not output.exists()


def start_and_fill(setting: Setting, output: Path, fill: Callable[[], object]) -> list[Run]:
    """Started on a disk that has room, which another process takes while it trains."""
    runs = setting.start_until("in the first steps", output)
    fill()
    runs[0].thaw()
    return runs


def assert_disk_is_full(runs: Sequence[Run], where: Path, what: str) -> None:
    """One of the processes says so, and the others no more than that they lost one; ``what`` is a regular expression.

    It names ``where``, or a place in it.
    """
    codes = [run.wait() for run in runs]
    assert 8 in codes, [run.output for run in runs]
    assert set(codes) <= {1, 8}
    for run, code in zip(runs, codes, strict=True):
        assert "Traceback" not in run.output
        assert run.output.count("error:") == 1
        if code == 8:
            assert re.search(rf"error: {re.escape(str(where))}(/\S+)?: {what} can't be written: ", run.output), (
                run.output
            )
            assert "hint: free some space and start again" in run.output or what == "the model"


def kill_under_torchrun(setting: Setting, output: Path, killed: int) -> None:
    """One of two processes: torchrun ends the other, and the next start goes on."""
    with under_torchrun(setting, output) as (process, workers):
        os.kill(workers[killed], signal.SIGKILL)
        os.kill(workers[0], signal.SIGCONT)
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not Path(f"/proc/{workers[1 - killed]}").exists()
    assert err.count("error:") <= 1, err
    setting.check(output)
    setting.finish(output)


@contextmanager
def under_torchrun(
    setting: Setting, output: Path, *more: object
) -> Iterator[tuple[subprocess.Popen[str], tuple[int, int]]]:
    """torchrun, and its two processes; the first is frozen between checkpoints."""
    process = torchrun(2, *setting.arguments, *more, "-o", output, freeze="between checkpoints")
    workers: tuple[int, ...] = ()
    try:
        while not (output / CHECKPOINTS / LOCK_FILE).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        workers = (worker(process.pid, 0), worker(process.pid, 1))
        wait_until_frozen(workers[0], lambda: "")
        yield process, workers
    finally:
        for pid in (process.pid, *workers) if process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def stop(setting: Setting, output: Path, moment: str, number: signal.Signals) -> None:
    """By a signal that can be caught: the program writes a checkpoint, says no more than that, and goes on later.

    Of several processes it comes to the last alone. While they start there is nothing to be kept.
    """
    runs = setting.start_until(moment, output)
    os.killpg(runs[-1].pid, number)
    runs[0].thaw()
    for run in runs:
        assert run.wait(60) == 128 + number, run.output
        assert "Traceback" not in run.output
        assert "error:" not in run.output
    if moment == "while starting":
        assert checkpoints(output / CHECKPOINTS) == []
        assert runs[0].output.rstrip().endswith("stopped") == (number == signal.SIGINT)
    else:
        assert_stopped(setting, output, runs[0].output)
    setting.check(output)
    setting.finish(output)


def assert_stopped(setting: Setting, output: Path, printed: str) -> None:
    """It says after which step it stopped, and that one's checkpoint is there and whole."""
    unit = setting.command.unit
    found = re.search(rf"^stopped after {unit} (\d+); the same command resumes from there$", printed, re.MULTILINE)
    assert found, printed
    newest = checkpoints(output / CHECKPOINTS)[-1]
    assert number(newest) + setting.command.first == int(found[1])


def stop_under_torchrun(setting: Setting, output: Path) -> None:
    """Ctrl-C reaches torchrun, which passes it on: the checkpoint is written before it ends."""
    with under_torchrun(setting, output) as (process, workers):
        process.send_signal(signal.SIGINT)
        while not is_signalled(workers[0]):
            time.sleep(0.01)
        os.kill(workers[0], signal.SIGCONT)
        printed, err = process.communicate(timeout=60)
    assert "error:" not in err
    assert_stopped(setting, output, printed)
    setting.check(output)
    setting.finish(output)


def is_signalled(pid: int) -> bool:
    """Whether a signal waits for this process to go on."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)[1], 16) != 0  # type: ignore[index]


def start_twice(setting: Setting, output: Path) -> None:
    """The second is refused while the first is there, and does no harm."""
    (first,) = setting.start_until("in a checkpoint", output)
    (second,) = setting.start(output)
    assert second.wait() == 8, second.output
    assert f"error: {output / CHECKPOINTS}: another training is at work here\n" in second.output
    assert f"hint: wait for it, or end process {first.pid}\n" in second.output
    kill([first])
    setting.finish(output)
