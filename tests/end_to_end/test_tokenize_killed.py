"""``earl tokenize`` killed at any moment and started again: the store ends as if nothing had happened.

`EARL_SOAK_KILLS=200 pytest -s tests/end_to_end/test_tokenize_killed.py -k over_and_over` (`make soak`) is the long
version; it prints a seed, which EARL_SOAK_SEED repeats.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from victims import Forks, Launcher, Run, own_program

from earl_cli.data.inspecting import verify
from earl_cli.data.store import MANIFEST, open_store
from earl_cli.files import LOCK_FILE, is_partial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for processes that are left over"),
]

ROWS, PICTURES = 520, 12
FEWER = 120  # rows of the passes with small shards
BROKEN = "broken.png"
BAD = {*range(30, ROWS, 41), *range(95, 121)}
UNREADABLE = {65, 310}
KILLS = int(os.environ.get("EARL_SOAK_KILLS", "12"))
SEED = int(os.environ.get("EARL_SOAK_SEED", random.randrange(1 << 32) if KILLS > 12 else "0"))
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
    """One way to run the command, and what it makes when nobody disturbs it in ``seconds``."""

    launch: Launcher
    arguments: tuple[object, ...]
    reference: dict[str, bytes]
    seconds: float

    def start(self, store: Path, ranks: int = 1, **special: int) -> list[Run]:
        given = RANKS if ranks == 2 else [{}]
        return [self.launch(*self.arguments, "-o", store, environment=rank, **special) for rank in given]

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


def hidden(name: str) -> bool:
    """Whether it is no part of a store: what is being written, and who does so."""
    return is_partial(Path(name)) or name.startswith(LOCK_FILE)


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
def forks(arguments: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """Small shards, and starts that cost little."""
    program = Forks(tmp_path_factory.mktemp("logs"))
    yield undisturbed(program, (*arguments, "--limit", FEWER), tmp_path_factory.mktemp("undisturbed") / "store")
    program.close()


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
        assert {reject.kind for reject in store.rejects()} == {"instruction", "picture", "row"}
        for path in tmp_path.iterdir():
            path.unlink()


# -- killed --------------------------------------------------------------------------------------------------------


def phase(store: Path) -> str:
    """How far the pass was, by what it left."""
    names = sorted(path.name for path in store.iterdir()) if store.is_dir() else []
    asides = [name for name in names if hidden(name)]
    done = [name for name in names if name.endswith(".parquet")]
    reasons = [name.removesuffix(".rejects.jsonl") for name in names if name.endswith(".jsonl")]
    if MANIFEST not in names:
        return "in the manifest" if asides else "while starting"
    if any(".rejects." in name for name in asides):
        return "in the rejects"
    if any(".parquet." in name for name in asides):
        return "in a shard"
    if any(f"{name}.parquet" not in done for name in reasons):
        return "between the rejects and their shard"
    if not done:
        return "before the first shard"
    manifest = json.loads((store / MANIFEST).read_text(encoding="utf-8"))
    return "at the very end" if len(done) == manifest["shards"] else "between shards"


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
        return phase(store)
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
    killed[phase(store) + (", two ranks" if ranks == 2 else "")] += reached
    return reached > 0


def test_killed_before_every_operation_on_a_file(forks: Setting, tmp_path: Path) -> None:
    """One store, started again each time: at its first operation, at its third, …; each goes further than the last."""
    seen = []
    for touches in range(1, 100, 2):
        (run,) = forks.start(tmp_path / "store", touches=touches)
        code = run.wait()
        forks.check(tmp_path / "store")
        if code == 0:
            break
        assert code == -signal.SIGKILL, run.output
        seen.append(phase(tmp_path / "store"))
        ends_alone(run)
    forks.finish(tmp_path / "store")
    assert set(seen) >= {"while starting", "in the manifest", "in a shard"}


def test_killed_while_everything_is_imported(programs: Setting, tmp_path: Path) -> None:
    for share in (0.1, 0.4):
        runs = programs.start(tmp_path / "store")
        time.sleep(share * programs.seconds)
        assert kill(runs) == 1
        programs.check(tmp_path / "store")
    programs.finish(tmp_path / "store")


def test_one_rank_killed_and_the_other_goes_on(forks: Setting, tmp_path: Path) -> None:
    runs = forks.start(tmp_path / "store", ranks=2)
    wait_for(lambda: shards(tmp_path / "store") > 0)
    assert kill(runs[:1]) == 1
    assert runs[1].wait() == 0, runs[1].output
    assert not open_store(tmp_path / "store").complete
    forks.finish(tmp_path / "store", ranks=2)


def test_a_worker_process_killed(forks: Setting, tmp_path: Path) -> None:
    """As the system does it when memory runs out."""
    store = tmp_path / "store"
    (run,) = forks.start(store)
    wait_for(lambda: shards(store) > 0)
    for pid in run.children():
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert run.wait() == 1, run.output
    assert "error: a process that reads pictures was killed" in run.output
    assert "Traceback" not in run.output
    ends_alone(run)
    forks.check(store)
    forks.finish(store)


# -- interrupted ---------------------------------------------------------------------------------------------------


def test_ctrl_c(forks: Setting, tmp_path: Path) -> None:
    """The worker processes hear of it too, also while they are starting."""
    store = tmp_path / "store"
    for later in (0.0, 0.05, 0.2, "in a shard", "after a shard"):
        before = shards(store)
        (run,) = forks.start(store)
        if isinstance(later, float):
            wait_for(lambda run=run: len(run.children()) == 2)  # a worker, and the one that looks after semaphores
            time.sleep(later)
        else:
            wait_for(lambda before=before, later=later: shards(store) > before or phase_now(store) == later)
        run.interrupt()
        assert run.wait(30) == 130, run.output
        assert "Traceback" not in run.output
        assert run.output.rstrip().endswith("stopped")
        ends_alone(run)
        assert not any(map(hidden, files(store)))
        forks.check(store)
    forks.finish(store)


def test_ctrl_c_does_not_wait_for_a_whole_portion(forks: Setting, tmp_path: Path) -> None:
    """The first one takes a quarter of a minute."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    Image.new("RGB", (4000, 4000)).save(folder / "large.png")
    row = {"source": "large.png", "edited": "large.png", "instruction": "make it snowy"}
    (folder / "pairs.jsonl").write_text(f"{json.dumps(row)}\n" * 64, encoding="utf-8")
    run = forks.launch("tokenize", folder, *forks.arguments[2:], "-o", tmp_path / "store")
    reaches(tmp_path / "store", "before the first shard", 60)
    time.sleep(2)
    run.interrupt()
    assert run.wait(15) == 130, run.output
    ends_alone(run)


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of its own with the size that it is asked for, and asked for again."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    def sized(size: str) -> Path:
        if not mount(*(["remount"] if place.is_mount() else []), f"size={size}"):
            pytest.skip("mounting a disk of its own is not allowed here")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(forks: Setting, small_disk: Callable[[str], Path]) -> None:
    store = small_disk("4k") / "store"
    for size, least in (("4k", 0), ("32k", 1)):
        small_disk(size)
        (run,) = forks.start(store)
        assert_disk_is_full(run, store)
        forks.check(store)
        assert shards(store) >= least
    small_disk("16m")
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
