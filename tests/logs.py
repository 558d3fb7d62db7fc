"""Logs of runs for tests, as training writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earl_cli.training.common.curves import LOG


def write_log(folder: Path, rows: Sequence[Mapping[str, Any]], end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows) + end, encoding="utf-8")
    return folder


def a_run(folder: Path, steps: int = 400, floor: float = 2.0) -> Path:
    noise = np.random.default_rng(steps).normal(0, 0.1, steps + 1)
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        loss = floor + 8 * np.exp(-step / 60)
        metrics = {"loss": loss + noise[step], "grad_norm": 1 + abs(noise[step]), "learning_rate": 1e-4 / step}
        rows.append({"step": step, **metrics, "epoch": step / 100})
        if step % 50 == 0:
            rows.append({"step": step, "eval_loss": loss + 0.1, "eval_runtime": 3.0})
    return write_log(folder, rows)


def a_rl_run(folder: Path, iterations: int = 300, seed: int = 0, best: float = 7.0) -> Path:
    """Every metric that an iteration logs, with a course as one hopes for."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, float]] = []
    for step in range(1, iterations + 1):
        done = 1 - np.exp(-step / 120)
        reward = 3.5 + (best - 3.5) * done + rng.normal(0, 0.35)
        seconds = {
            "sampling": 31 + rng.normal(0, 2),
            "reward": 12 + rng.exponential(4),
            "reference": 4 + rng.normal(0, 0.2),
            "update": 22 + rng.normal(0, 0.7),
        }
        metrics = {
            "reward/mean": reward,
            "reward/std": 2.4 - 0.6 * done + rng.normal(0, 0.1),
            "reward/p10": max(0.0, reward - 3.4 + rng.normal(0, 0.4)),
            "reward/p50": reward + 0.3 + rng.normal(0, 0.2),
            "reward/p90": min(10.0, reward + 2.6 + rng.normal(0, 0.2)),
            "reward/group_std": 1.5 - 0.7 * done + rng.normal(0, 0.08),
            "kl": 0.03 * done + abs(rng.normal(0, 0.002)),
            "entropy": 4.6 - 1.1 * done + rng.normal(0, 0.05),
            "loss": rng.normal(0, 0.01),
            "grad_norm": 0.4 + rng.gamma(2, 0.1),
            "learning_rate": 3e-6,
            "reward/frac_zero_std": rng.binomial(16, 0.05 + 0.2 * done) / 16,
            "completions/frac_valid": 1 - rng.binomial(128, 0.03 * (1 - done)) / 128,
            "completions/mean_length": 1091 + rng.normal(0, 6),
            "reward/frac_missing": rng.binomial(128, 0.004) / 128,
            "sampler_mismatch": 0.002 + abs(rng.normal(0, 0.0004)),
            "rewards/perceptual_quality/mean": 0.7 * reward,
            "time/iteration": sum(seconds.values()),
            **{f"time/{name}": spent for name, spent in seconds.items()},
            "memory": 6.1e10,
        }
        rows.append({"step": step, **{key: float(value) for key, value in metrics.items()}})
        if step % 50 == 0:
            rows.append({"step": step, "validation/reward/mean": reward + 0.1, "validation/reward/frac_missing": 0.0})
    return write_log(folder, rows)
