"""``earl tokenize`` killed at any moment and started again: the store ends as if nothing had happened.

`make soak` kills it at random moments.
"""

from __future__ import annotations

import functools
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from killing import KILLS, SEED
from phases import hidden, of_store
from PIL import Image
from victims import Forks, Launcher, Run, own_program

from earl_cli.data.inspecting import verify
from earl_cli.data.store import open_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for processes that are left over"),
]

ROWS, PICTURES = 520, 12
FEWER = 120  # rows of the passes with small shards
BROKEN = "broken.png"
BAD = {*range(30, ROWS, 41), *range(95, 121)}
UNREADABLE = {65, 310}
RANKS = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"} for rank in range(2)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of pairs in which every kind of row is somewhere, and one small shard has nothing but bad ones."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(PICTURES):
        size = ((40, 40), (30, 60), (64, 24))[index % 3]
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / BROKEN).write_bytes((folder / "0.png").read_bytes()[:100])
    rows = []
    for index in range(ROWS):
        row = {"id": f"p{index}", "source": f"{index % PICTURES}.png", "edited": f"{index * 7 % PICTURES}.png"}
        row["instruction"] = f"make it snowy {index}"
        if index in BAD:
            row |= ({"instruction": " "}, {"edited": BROKEN}, {"source": "missing.png"})[index % 3]
        rows.append(json.dumps(row) if index not in UNREADABLE else "{not JSON")
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Setting:
    """One way to run the command, and what it makes undisturbed, in ``seconds``."""

    launch: Launcher
    arguments: tuple[object, ...]
    reference: dict[str, bytes]
    seconds: float

    def start(self, store: Path, ranks: int = 1, **special: Any) -> list[Run]:
        given = RANKS if ranks == 2 else [{}]
        return [self.launch(*self.arguments, "-o", store, environment=rank, **special) for rank in given]

    def start_until(self, moment: str, store: Path, ranks: int = 1) -> list[Run]:
        """Started, and the first rank frozen in that phase."""
        runs = self.start(store, ranks, freeze=moment)
        runs[0].frozen()
        return runs

    def finish(self, store: Path, ranks: int = 1) -> None:
        """Start it again until it ends by itself, and compare the store with the undisturbed one."""
        for run in self.start(store, ranks):
            assert run.wait() == 0, run.output
            assert "Traceback" not in run.output
        found = files(store)
        assert found.keys() == self.reference.keys()
        assert [name for name in found if found[name] != self.reference[name]] == []

    def check(self, store: Path) -> None:
        """Whatever has its name is whole, at any time."""
        found = files(store)
        assert [name for name in found if not hidden(name) and found[name] != self.reference[name]] == []


def files(store: Path) -> dict[str, bytes]:
    found = {}
    for path in store.iterdir() if store.is_dir() else ():
        try:
            found[path.name] = path.read_bytes()
        except FileNotFoundError:
            assert hidden(path.name)  # another process goes on
    return found


def undisturbed(launch: Launcher, arguments: tuple[object, ...], store: Path) -> Setting:
    started = time.monotonic()
    run = launch(*arguments, "-o", store)
    assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    ends_alone(run)
    return Setting(launch, arguments, files(store), time.monotonic() - started)


@pytest.fixture(scope="module")
def arguments(data: Path, tiny_model_dir: Path) -> tuple[object, ...]:
    return ("tokenize", data, "--model", tiny_model_dir, "--device", "cpu", "--workers", "1")


@pytest.fixture(scope="module")
def forks(launch: Forks, arguments: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Small shards, and starts that cost little."""
    return undisturbed(launch, (*arguments, "--limit", FEWER), tmp_path_factory.mktemp("undisturbed") / "store")


@pytest.fixture(scope="module")
def programs(arguments: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The command itself, with its own shards and its whole start."""
    launch = functools.partial(own_program, tmp_path_factory.mktemp("logs"))
    return undisturbed(launch, arguments, tmp_path_factory.mktemp("undisturbed") / "store")


def test_the_undisturbed_pass_has_every_good_row_once(forks: Setting, programs: Setting, tmp_path: Path) -> None:
    bad = BAD | UNREADABLE
    for setting, rows, count in ((forks, FEWER, 8), (programs, ROWS, 2)):
        good = [row for row in range(rows) if row not in bad]
        for name, content in setting.reference.items():
            (tmp_path / name).write_bytes(content)
        store = open_store(tmp_path)
        assert store.manifest.shards == count == len(store.shards)
        assert verify(store) == []
        assert store.table()["row"].to_pylist() == good
        assert store.table()["id"].to_pylist() == [f"p{row}" for row in good]
        assert [reject.row for reject in store.rejects()] == [row for row in range(rows) if row in bad]
        assert {reject.kind for reject in store.rejects()} == {"instruction", "image", "row"}
        for path in tmp_path.iterdir():
            path.unlink()


# -- killed --------------------------------------------------------------------------------------------------------


MOMENTS = ("in the manifest", "before the first shard", "in a shard", "between shards", "at the very end")


def shards(store: Path) -> int:
    return len(list(store.glob("shard-*.parquet")))


def reaches(store: Path, moment: str, seconds: float) -> None:
    """Wait for this phase, by looking at the folder all the time, but no longer than that."""
    end = time.monotonic() + seconds
    while phase_now(store) != moment and time.monotonic() < end:
        time.sleep(0.0002)


def phase_now(store: Path) -> str:
    try:
        return of_store(store)
    except FileNotFoundError:  # read while it was written
        return ""


def kill(runs: list[Run]) -> int:
    """SIGKILL to each; how many it reached. Nothing that they started may go on."""
    for run in runs:
        run.send(signal.SIGKILL)
    codes = [run.wait() for run in runs]
    for code, run in zip(codes, runs, strict=True):
        assert code in (0, -signal.SIGKILL), run.output
        ends_alone(run)
    return codes.count(-signal.SIGKILL)


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def ends_alone(run: Run) -> None:
    """Nothing that it started lives much longer than it did."""
    wait_for(lambda: not run.children())


@pytest.mark.full
def test_killed_over_and_over(forks: Setting, programs: Setting, tmp_path: Path) -> None:
    """At random moments and by phase, alone and two ranks at once, forked and as a program of its own."""
    started = time.monotonic()
    print(f"\nseed {SEED}: EARL_SOAK_KILLS={KILLS} EARL_SOAK_SEED={SEED}")
    rng = random.Random(SEED)
    killed: Counter[str] = Counter()
    stores = 0
    while killed.total() < KILLS:
        stores += 1
        setting = programs if stores % 8 == 7 else forks
        ranks = 2 if stores % 3 == 2 else 1
        store = tmp_path / f"store{stores}"
        for _ in range(rng.randint(2, 6)):
            if not _one_kill(rng, setting, store, ranks, killed):
                break
        setting.finish(store, ranks)
        print(f"{stores:4} stores, {killed.total():4} kills, {time.monotonic() - started:5.0f} s", flush=True)
    print(f"{killed.total()} kills in {stores} stores, {time.monotonic() - started:.0f} s")
    print("\n".join(f"{count:5} {what}" for what, count in killed.most_common()))


def _one_kill(rng: random.Random, setting: Setting, store: Path, ranks: int, killed: Counter[str]) -> bool:
    """Start and kill; False if it was done before that."""
    way = rng.choice(("moment", "phase", "touch"))
    if way == "touch" and ranks == 1 and isinstance(setting.launch, Forks):
        runs = setting.start(store, touches=rng.randint(1, 40))
        code = runs[0].wait()
        assert code in (0, -signal.SIGKILL), runs[0].output
        ends_alone(runs[0])
        reached = int(code != 0)
    else:
        runs = setting.start(store, ranks)
        if way == "phase":
            reaches(store, rng.choice(MOMENTS), 2 * setting.seconds)
        else:
            time.sleep(rng.uniform(0, 1.1 * setting.seconds))
        if ranks == 2 and rng.random() < 0.5:
            spared = runs.pop(rng.randrange(2))
            reached = kill(runs)
            assert spared.wait() == 0, spared.output
        else:
            reached = kill(runs)
    setting.check(store)
    killed[of_store(store) + (", two ranks" if ranks == 2 else "")] += reached
    return reached > 0


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.full)])
def test_killed_before_operations_on_files(every: int, forks: Setting, tmp_path: Path) -> None:
    """One store, started again each time: at one operation, at a later one, …; each goes further than the last."""
    seen = []
    for touches in range(1, 200, every):
        (run,) = forks.start(tmp_path / "store", touches=touches)
        code = run.wait()
        forks.check(tmp_path / "store")
        if code == 0:
            break
        assert code == -signal.SIGKILL, run.output
        seen.append(of_store(tmp_path / "store"))
        ends_alone(run)
    forks.finish(tmp_path / "store")
    assert len(set(seen)) >= 3, seen


@pytest.mark.full
def test_killed_while_everything_is_imported(programs: Setting, tmp_path: Path) -> None:
    for library in ("", "libtorch"):  # as early as can be, and later
        runs = programs.start(tmp_path / "store")
        runs[0].wait_for_library(library)
        assert kill(runs) == 1
        programs.check(tmp_path / "store")
    programs.finish(tmp_path / "store")


def test_one_rank_killed_and_the_other_goes_on(forks: Setting, tmp_path: Path) -> None:
    runs = forks.start_until("between shards", tmp_path / "store", ranks=2)
    assert kill(runs[:1]) == 1
    assert runs[1].wait() == 0, runs[1].output
    assert not open_store(tmp_path / "store").complete
    forks.finish(tmp_path / "store", ranks=2)


def test_a_worker_process_killed(forks: Setting, tmp_path: Path) -> None:
    """As the system does it when memory runs out."""
    store = tmp_path / "store"
    (run,) = forks.start(store)
    wait_for(lambda: len(run.children()) == 2)
    worker_of(run).kill()
    assert_worker_is_missed(run)
    forks.check(store)
    forks.finish(store)


@pytest.mark.full
def test_a_worker_process_killed_while_it_reads(forks: Setting, tmp_path: Path) -> None:
    run = start_on_a_long_portion(forks, tmp_path)
    worker_of(run).kill()
    assert_worker_is_missed(run)


def assert_worker_is_missed(run: Run) -> None:
    assert run.wait() == 1, run.output
    assert "error: a process that reads images was killed" in run.output
    assert "Traceback" not in run.output
    ends_alone(run)


def worker_of(run: Run) -> psutil.Process:
    """The process that reads its images; beside it one looks after semaphores."""
    (worker,) = [child for child in map(psutil.Process, run.children()) if "spawn_main" in " ".join(child.cmdline())]
    return worker


def start_on_a_long_portion(forks: Setting, folder: Path) -> Run:
    """Its worker process is in the first portion, which takes it a quarter of a minute."""
    (folder / "pairs").mkdir()
    Image.new("RGB", (4000, 4000)).save(folder / "pairs" / "large.png")
    row = {"source": "large.png", "edited": "large.png", "instruction": "make it snowy"}
    (folder / "pairs" / "pairs.jsonl").write_text(f"{json.dumps(row)}\n" * 64, encoding="utf-8")
    run = forks.launch("tokenize", folder / "pairs", *forks.arguments[2:], "-o", folder / "store")
    wait_for(lambda: len(run.children()) == 2)
    worker = worker_of(run)
    wait_for(lambda: worker.cpu_times().user > 3, 300)  # of which the start takes one
    return run


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment", ["between shards", *(pytest.param(each, marks=pytest.mark.full) for each in ("while starting", *MOMENTS))]
)
def test_ctrl_c(moment: str, forks: Setting, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (run,) = forks.start_until(moment, store)
    run.interrupt()
    run.thaw()
    assert_interrupted(run, run.wait(60))
    assert not any(map(hidden, files(store)))
    forks.check(store)
    forks.finish(store)


@pytest.mark.parametrize("later", [0.05, *(pytest.param(each, marks=pytest.mark.full) for each in (0.0, 0.2, 0.5))])
def test_ctrl_c_while_a_worker_process_starts(later: float, forks: Setting, tmp_path: Path) -> None:
    """It hears of it too."""
    (run,) = forks.start(tmp_path / "store")
    wait_for(lambda: len(run.children()) == 2)  # a worker, and the one that looks after semaphores
    run.send(signal.SIGSTOP)  # else all could be over by then
    time.sleep(later)
    run.interrupt()
    run.thaw()
    assert_interrupted(run, run.wait(60))
    forks.finish(tmp_path / "store")


@pytest.mark.full
def test_ctrl_c_does_not_wait_for_a_whole_portion(forks: Setting, tmp_path: Path) -> None:
    run = start_on_a_long_portion(forks, tmp_path)
    worker = worker_of(run)
    before = used = worker.cpu_times().user
    run.interrupt()
    while (code := run.wait_for_end(0.05)) is None:
        with suppress(psutil.NoSuchProcess):
            used = worker.cpu_times().user
    assert used - before < 4
    assert_interrupted(run, code)


def assert_interrupted(run: Run, code: int) -> None:
    assert code == 130, run.output
    assert "Traceback" not in run.output
    assert run.output.rstrip().endswith("stopped")
    ends_alone(run)


# -- a full disk ---------------------------------------------------------------------------------------------------


def test_a_full_disk(forks: Setting, small_disk: Callable[[int], Path]) -> None:
    store = small_disk(4 << 10) / "store"
    for size, least in ((4 << 10, 0), (32 << 10, 1)):
        small_disk(size)
        (run,) = forks.start(store)
        assert_disk_is_full(run, store)
        forks.check(store)
        assert shards(store) >= least
    small_disk(16 << 20)
    forks.finish(store)


def test_a_file_that_may_not_be_that_large(forks: Setting, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (run,) = forks.start(store, largest=4096)
    assert_disk_is_full(run, store)
    forks.check(store)
    assert shards(store) == 0
    forks.finish(store)


def assert_disk_is_full(run: Run, store: Path) -> None:
    assert run.wait() == 8, run.output
    assert "Traceback" not in run.output
    assert f"error: {store}" in run.output
    assert run.output.count("error:") == 1
    assert re.search("hint: (make room|choose another place)", run.output)
    assert not any(map(hidden, files(store)))
    ends_alone(run)
