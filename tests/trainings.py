"""Small trainings as processes: forked from one that has imported it all, alone or as ranks, or started by torchrun.

Run as a script this file is the program that forks.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from local_server import free_port
from victims import ENVIRONMENT, Forks, Run, program, serve

from earl_cli.data.store import Manifest, TokenizedExample, create_or_resume, write_shard

CPU = {**ENVIRONMENT, "DS_ACCELERATOR": "cpu"}


def write_pairs(folder: Path, count: int, seed: int = 0, codes: int = 512) -> Path:
    """A store of pairs in which every edited code is the source's plus one."""
    create_or_resume(folder, Manifest(codes, "vq", 1024, f"set {seed}", count, 1, None, {}, f"data {seed}"))
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        source = rng.integers(0, 8, (3, 2 + index % 3)).astype(np.uint16)
        thoughts = {"plan": "whiten"}
        rows.append(
            TokenizedExample(index, f"{seed}-{index}", "make it snowy", source, source + np.uint16(1), thoughts, "")
        )
    write_shard(folder, 0, rows, [])
    return folder


def options(**values: object) -> list[str]:
    """``--set`` for each value."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


class Trainings(Forks):
    """`victims.Forks` with what a training imports too."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **CPU, "NO_PROXY": "127.0.0.1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self._answer() == "ready"

    def __call__(self, *args: object, **how: Any) -> Run:
        """As `Forks` does it; its end may be awaited more than once."""
        run = super().__call__(*args, **how)
        codes: list[int] = []

        def wait_for_end(seconds: float) -> int | None:
            if not codes and (code := run.wait_for_end(seconds)) is not None:
                codes.append(code)
            return codes[0] if codes else None

        return replace(run, wait_for_end=wait_for_end)

    def ranks(self, count: int, *args: object, touches: Mapping[int, int] | None = None, **how: Any) -> list[Run]:
        """The processes of one training; ``touches`` ends some ranks at that operation on a file of the output."""
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
        launched = [
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)
        ]
        return [
            self(*args, environment=environment, touches=(touches or {}).get(rank, 0), **how)
            for rank, environment in enumerate(launched)
        ]


def torchrun(count: int, *args: object, freeze: str | None = None) -> subprocess.Popen[str]:
    """``torchrun -m earl_cli …`` as a user starts it, in a group of processes of its own.

    The first process freezes in the phase ``freeze`` of `phases`.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master_port"]
    return subprocess.Popen(
        [*command, str(free_port()), *program(freeze), *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **ENVIRONMENT},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def worker(launcher: int, rank: int) -> int:
    """The process of that rank which ``torchrun``, itself the process ``launcher``, has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"\0RANK={rank}\0".encode() in b"\0" + (folder / "environ").read_bytes():
                return int(folder.name)
    raise ProcessLookupError(f"process {launcher} has no worker {rank}")


if __name__ == "__main__":
    import deepspeed.runtime.engine
    import deepspeed.runtime.zero.muon.muon_optimizer
    import deepspeed.runtime.zero.stage3
    import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401
    import openai  # noqa: F401
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    import earl_cli.commands.rl.run
    import earl_cli.commands.sft.run  # noqa: F401
    from earl_cli.rewards import reference  # noqa: F401

    gc.freeze()  # else the first collection of every fork copies all of it
    serve()
