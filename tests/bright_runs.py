"""Runs of ``earl rl`` on the embedded model, as a user starts them, with a reward that learns fast: bright images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from trainings import CPU, options, write_pairs

REWARD = """
from earl_cli.rewards.reward import Score

def brightness(edits):
    return [Score(-1.0 if edit.edited is None else float(edit.edited.mean()) / 255) for edit in edits]
"""
SETTINGS = {
    "model": "null",
    "reward": "bright:brightness",
    "num_iterations": 2,
    "episodes_per_iteration": 16,
    "generations_per_sample": 4,
    "batch_size": 4,
    "max_response_tokens": 64,
    "max_length": 640,
    "learning_rate": 1e-3,
    "precision": "float32",
    "device": "cpu",
    "gradient_checkpointing": False,
}


def prepare(folder: Path) -> Path:
    """A store and the reward, for the runs in this folder."""
    write_pairs(folder / "store", 12, codes=4096)
    (folder / "bright.py").write_text(REWARD)
    return folder


def run(place: Path, name: str, processes: int = 1, **more: object) -> subprocess.CompletedProcess[str]:
    """A run in a prepared folder, under torchrun if in several processes; it goes on where that of the name stopped."""
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(starter if processes > 1 else []), "-m", "earl_cli", "rl"]
    command += ["--data", str(place / "store"), "-o", str(place / name), *options(**{**SETTINGS, **more})]
    variables = {**os.environ, **CPU, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)


def train(place: Path, name: str, processes: int = 1, **more: object) -> list[dict[str, float]]:
    """What such a run has logged."""
    done = run(place, name, processes, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (place / name / "log.jsonl").read_text().splitlines()]
