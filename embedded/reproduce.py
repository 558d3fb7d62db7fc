"""The paper's claim in miniature: from public photos to the table, with the product's own commands.

``python embedded/reproduce.py WORK [--jobs N]`` does what isn't done yet. Each step is one command; steps that don't
need each other run side by side, each on its share of the processor's cores. What is stopped goes on where it was:
finished steps are marked, and the commands themselves resume. Results and logs are in
WORK/reproduce-DIGITS, where the digits stand for the settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from earl_cli.config.loader import read_config

HERE = Path(__file__).parent
START = HERE.parent / "earl_cli/models/embedded/checksums.json"  # says which weights everything starts from
EARL = (sys.executable, "-m", "earl_cli")
SEEDS = (1, 2, 3)
PAIRS = (("simple", 1500, 4), ("complex", 1500, 4), ("validation", 40, 6), ("test", 40, 6))  # images, edits of each
STORES = ("simple", "complex", "validation")
LOOK = 0.5  # seconds between two looks at what runs
EVERY = 30.0  # seconds between two reports off a terminal


@dataclass(frozen=True)
class Step:
    """One command, and the steps that must be done before it."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Changes with the command: another one isn't done because this one was."""
        return hashlib.sha256("\0".join(self.command).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Trained:
    """A row of the table: supervised training on ``sft`` (s, sc or think), then reinforcement learning on ``rl``.

    Of the latter "" is none, s and sc are edits, and noisy is s with a bad verifier.
    """

    sft: str
    rl: str
    seed: int

    @property
    def name(self) -> str:
        return f"sft-{self.sft}{f'.rl-{self.rl}' if self.rl else ''}.{self.seed}"


def root_of(work: Path) -> Path:
    """The folder of all results; other settings, edits, pairs or start have another one, so that none are mixed."""
    settings = [
        json.dumps(read_config(f"miniature/{name}", {}), sort_keys=True) for name in ("sft", "sft-thinking", "rl")
    ]
    sources = [HERE / name for name in ("photos.py", "edits.py", "complex_edits.py", "pairs.py", "noisy_reward.py")]
    content = "\0".join([*settings, *(path.read_text() for path in [*sources, START]), repr(PAIRS)])
    return work / f"reproduce-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def models() -> Iterator[Trained]:
    """All that is trained: the headline rows once for each seed, the others once."""
    for seed in SEEDS:
        for rl in ("", "s", "sc"):
            yield Trained("s", rl, seed)
    for sft in ("sc", "think"):
        for rl in ("", "s", "sc"):
            yield Trained(sft, rl, SEEDS[0])
    yield Trained("s", "noisy", SEEDS[0])


def steps(work: Path) -> list[Step]:
    """Everything, in an order in which each step comes after those that it needs."""
    root = root_of(work)

    def script(name: str, *words: str) -> tuple[str, ...]:
        return (sys.executable, str(HERE / name), str(work), *words)

    found = [Step("photos", script("photos.py"))]
    for name, images, edits in PAIRS:
        found.append(Step(f"pairs {name}", script("pairs.py", name, str(images), str(edits)), ("photos",)))
    for name in STORES:
        pairs, store = str(work / "pairs" / name), str(root / "tokens" / name)
        command = (*EARL, "tokenize", pairs, "-o", store, "--cot-keys", "plan")
        found.append(Step(f"tokenize {name}", command, (f"pairs {name}",)))

    def data(chosen: str) -> tuple[str, ...]:
        names = ("simple", "complex") if chosen == "sc" else ("simple",)
        stores = [word for name in names for word in ("--data", str(root / "tokens" / name))]
        return (*stores, "--validation", str(root / "tokens/validation"), "--device", "cpu")

    def tokens(chosen: str) -> tuple[str, ...]:
        return ("tokenize validation", "tokenize simple", *(["tokenize complex"] if chosen == "sc" else []))

    trained = list(models())
    for model in trained:
        folder = str(root / "models" / model.name)
        if not model.rl:
            recipe = "miniature/sft-thinking" if model.sft == "think" else "miniature/sft"
            words = ("--config", recipe, *data(model.sft), "-o", folder, "--set", f"seed={model.seed}")
            found.append(Step(model.name, (*EARL, "sft", *words), tokens(model.sft)))
            continue
        start = Trained(model.sft, "", model.seed).name
        words = ("--config", "miniature/rl", "--model", str(root / "models" / start), *data(model.rl), "-o", folder)
        words += ("--set", f"seed={model.seed}")
        if model.sft == "think":
            words += ("--set", "assistant_prefill=reasoning")
        if model.rl == "noisy":
            words += ("--reward", "noisy_reward:noisy_reward")
        found.append(Step(model.name, (*EARL, "rl", *words), (start, *tokens(model.rl))))
    for model in trained:
        found.append(evaluation(work, model))
    needs = tuple(step.name for step in found if step.name.startswith("eval "))
    return [*found, Step("table", script("table.py"), needs)]


def evaluation(work: Path, model: Trained) -> Step:
    """The edits of held-out photos, with wordings that nothing was trained on, as the model samples them."""
    root = root_of(work)
    words = ["-b", str(work / "pairs/test"), "-m", f"{model.name}={root / 'models' / model.name}", "--size", "model"]
    words += ["--temperature", "1", "--top-k", "0", "--no-report", "--no-floor"]
    words += ["-o", str(root / "results"), *(["--think"] if model.sft == "think" else []), "--device", "cpu"]
    return Step(f"eval {model.name}", (*EARL, "eval", *words), (model.name, "pairs test"))


class Board:
    """What runs and what is done: a live table on a terminal, a line now and then elsewhere."""

    def __init__(self, todo: int, done: int) -> None:
        self.console, self.todo, self.done = Console(), todo, done
        self.started, self.said = time.monotonic(), 0.0

    def table(self, running: Mapping[str, tuple[float, str]]) -> Table:
        found = Table.grid(padding=(0, 2))
        hours, minutes = divmod(int(time.monotonic() - self.started) // 60, 60)
        found.add_row(f"{self.done} of {self.todo} steps", f"{hours}:{minutes:02d} h", "")
        for name, (since, last) in running.items():
            found.add_row(f"  {name}", f"{(time.monotonic() - since) / 60:.0f} min", last)
        return found

    def report(self, running: Mapping[str, tuple[float, str]]) -> None:
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said >= EVERY:
            self.said = now
            each = "; ".join(f"{name}: {last}" for name, (_, last) in running.items())
            self.console.print(f"{self.done} of {self.todo} steps, now {each}", soft_wrap=True, highlight=False)


def run(work: Path, jobs: int) -> int:
    """Do what isn't done, ``jobs`` steps at a time; returns an exit code."""
    root = root_of(work)
    (root / "logs").mkdir(parents=True, exist_ok=True)
    (root / "done").mkdir(exist_ok=True)
    todo = steps(work)
    done = {step.name for step in todo if mark(root, step).exists() and step.name != "table"}
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    board = Board(len(todo), len(done))
    running: dict[str, tuple[Step, subprocess.Popen[bytes], float]] = {}

    def states() -> dict[str, tuple[float, str]]:
        return {name: (since, last_line(log_of(root, step))) for name, (step, _, since) in running.items()}

    try:
        with Live(console=board.console, transient=True, auto_refresh=False) as live:
            while len(done) < len(todo):
                for step in todo:
                    ready = step.name not in done and step.name not in running and done.issuperset(step.needs)
                    if ready and len(running) < jobs:
                        running[step.name] = (step, start(root, step, jobs), time.monotonic())
                time.sleep(LOOK)
                for step, process, since in [*running.values()]:
                    code = process.poll()
                    if code is None:
                        continue
                    del running[step.name]
                    if code:
                        failed = f"error: {step.name} ended with {code}; its log is {log_of(root, step)}"
                        board.console.print(failed, last_line(log_of(root, step)), sep="\n", soft_wrap=True)
                        return 1
                    mark(root, step).touch()
                    done.add(step.name)
                    board.done = len(done)
                    minutes = (time.monotonic() - since) / 60
                    board.console.print(f"{len(done):3d}/{len(todo)} {step.name}, {minutes:.1f} min", highlight=False)
                if board.console.is_terminal:
                    live.update(board.table(states()), refresh=True)
                board.report(states())
    except KeyboardInterrupt:
        board.console.print("stopped; the same command goes on")
        return 130
    finally:
        stop([process for _, process, _ in running.values()])
    return 0


def start(root: Path, step: Step, jobs: int) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(HERE)}
    with log_of(root, step).open("ab") as log:
        return subprocess.Popen(
            step.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """What they did up to their last checkpoints stays."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def mark(root: Path, step: Step) -> Path:
    return root / "done" / f"{step.name.replace(' ', '-')}-{step.digest}"


def log_of(root: Path, step: Step) -> Path:
    return root / "logs" / f"{step.name.replace(' ', '-')}.log"


def last_line(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = stream.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:150]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="steps at a time")
    given = parser.parse_args()
    sys.exit(run(given.work, max(1, given.jobs)))
