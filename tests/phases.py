"""How far a command has come, by what it left in its output; and an ``earl`` that freezes when it has come that far.

A test that freezes a run, and then kills, interrupts or disturbs it, meets it in that phase on any machine, however
busy. Run as a script this is that ``earl``: ``python phases.py PHASE ARGUMENT…``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earl_cli.data.store import MANIFEST
from earl_cli.evaluation.results import LINES
from earl_cli.files import LOCK_FILE, is_partial
from earl_cli.training.common.checkpoints import CHECKPOINTS, MODEL_ONLY, STATE, checkpoints
from earl_cli.training.common.curves import LOG

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree")
"""Of these a program can hear before they happen."""
MODEL = "model.safetensors"


# -- of a training -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """What is known of a training command: which of its checkpoints are left in the end, the last one last.

    ``keep`` of them are whole, those before are models alone; ``model`` is a checkpoint's folder with the weights.
    """

    name: str
    left: tuple[str, ...]
    keep: int
    model: str
    unit: str
    first: int

    def done(self, checkpoint: Path) -> str:
        """What a run that goes on from there says."""
        return f"resumed from {self.unit} {number(checkpoint) + self.first}"


STEPS, ITERATIONS = 6, 4
SFT = Command("sft", (f"checkpoint-{STEPS}",), keep=1, model=".", unit="step", first=0)
RL = Command("rl", ("ckpt_000001", "ckpt_000003"), keep=1, model="hf_model", unit="iteration", first=1)
"""A checkpoint after every iteration, of which one is whole, and before it every second one a model alone."""
MOMENTS = ("in the first steps", "in a checkpoint", "between checkpoints", "between mark and clean-up")
MOMENTS = (*MOMENTS, "in the clean-up", "before the final model", "in the final model", "at the very end")


def folders(output: Path) -> list[Path]:
    """What is there of checkpoints, whole or not."""
    folder = output / CHECKPOINTS
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def number(checkpoint: Path) -> int:
    return int(re.split(r"\D", checkpoint.name)[-1])


def is_stripped(checkpoint: Path) -> bool:
    """Whether its model alone is left, as it should be."""
    return (checkpoint / MODEL_ONLY).is_file() and not any(list(checkpoint.glob(pattern)) for pattern in STATE)


def of_training(command: Command, output: Path) -> str:
    """One of `MOMENTS`, or "while starting"."""
    if any(map(is_partial, output.glob(".*"))):
        return "in the final model"
    whole = checkpoints(output / CHECKPOINTS)
    newest = number(whole[-1]) if whole else -1
    torn = [path for path in folders(output) if path not in whole and not is_stripped(path)]
    if any(number(path) < newest for path in torn):
        return "in the clean-up"
    if torn:
        return "in a checkpoint"
    if len(whole) > command.keep:
        return "between mark and clean-up"
    if not whole:
        return "in the first steps" if (output / LOG).exists() else "while starting"
    if whole[-1].name != command.left[-1]:
        return "between checkpoints"
    return "at the very end" if (output / MODEL).exists() else "before the final model"


# -- of other commands ---------------------------------------------------------------------------------------------


def hidden(name: str) -> bool:
    """Whether it is no part of a store: what is being written, and who does so."""
    return is_partial(Path(name)) or name.startswith(LOCK_FILE)


def of_store(store: Path) -> str:
    """How far the pass of a tokenizer was."""
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


def of_results(results: Path) -> str:
    """Of an evaluation."""
    written = any(path.stat().st_size for path in results.rglob(f"{LINES}/*.jsonl"))
    return "after the first edit" if written else "while starting"


def phase(command: str, output: Path) -> str:
    """How far the command of that name has come, by what it left there."""
    if command == "tokenize":
        return of_store(output)
    return of_results(output) if command == "eval" else of_training(SFT if command == "sft" else RL, output)


# -- frozen --------------------------------------------------------------------------------------------------------


def freeze_in(wanted: str, args: list[str]) -> None:
    """Make this process stop, once, right before an operation on its output's files, where that is in this phase.

    Of several processes of a training it is the first. A training is starting until it has logged a step: then all its
    processes are at work, and what is there isn't of an earlier run alone.
    """
    if os.environ.get("RANK", "0") == "0":
        sys.addaudithook(_watching(wanted, args[0], args[args.index("-o") + 1]))


def _watching(wanted: str, command: str, output: str) -> Callable[[str, tuple[Any, ...]], None]:
    over, logged = False, command in ("tokenize", "eval")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal over, logged
        if over or event not in OPERATIONS or not str(args[0]).startswith(output):
            return
        over = True  # to look at the output is an operation on it as well
        with suppress(FileNotFoundError):  # another process goes on
            if (phase(command, Path(output)) if logged else "while starting") == wanted:
                os.kill(os.getpid(), signal.SIGSTOP)
                return
        logged = logged or (event == "open" and args[:2] == (f"{output}/{LOG}", "a"))
        over = False

    return hook


if __name__ == "__main__":
    from earl_cli.app import main

    wanted, *sys.argv[1:] = sys.argv[1:]
    freeze_in(wanted, sys.argv[1:])
    main()
