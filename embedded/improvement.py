"""What reinforcement learning changed: the reference reward of two models on held-out pairs, sampled with equal seeds.

``python embedded/improvement.py STORE BEFORE AFTER [--samples 1] [--temperature 1.0 --top-k 0]`` prints the mean reward
of each model and their difference, with 95 % intervals from 10,000 bootstrap samples of source images (pairs of one
image stay together), in all and for each kind of edit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from base import abilities
from numpy.typing import NDArray

from earl_cli.config.sampling import SamplingParams
from earl_cli.data.batches import DatasetRows, load_rows
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.models.abilities import understand
from earl_cli.models.bundle import load_model
from earl_cli.rewards.reference import reference_reward
from earl_cli.training.rl.rollouts import RolloutPrompt, decode_edits, generate_rollouts, seeds

TOGETHER = 16
DRAWS = 10_000


def rewards(
    folder: str, store: Path, samples: int, sampling: SamplingParams
) -> tuple[DatasetRows, NDArray[np.float64]]:
    """The mean reward of each row over its samples, float64[n]."""
    model = load_model(folder, device="cpu")
    rows = load_rows([store], model.layout)
    engine = TransformersEngine(model.language, model.layout)
    found = np.empty(len(rows))
    for start in range(0, len(rows), TOGETHER):
        prompts = [RolloutPrompt(row, seeds(samples, 1, row)) for row in range(start, min(start + TOGETHER, len(rows)))]
        rollouts = generate_rollouts(engine, model.layout, rows, prompts, "edit", sampling)
        values = [score.value for score in reference_reward(decode_edits(model.vision, rows, rollouts))]
        found[start : start + len(prompts)] = np.asarray(values, dtype=float).reshape(len(prompts), -1).mean(axis=1)
        print(f"\r{folder}: {start + len(prompts)} of {len(rows)}", end="", flush=True)
    print()
    return rows, found


def interval(values: NDArray[np.float64], sources: NDArray[np.int64]) -> tuple[float, float]:
    """95 % percentile interval of the mean, from draws of whole sources."""
    rng = np.random.default_rng(0)
    count = int(sources.max()) + 1
    totals, sizes = np.bincount(sources, values, count), np.bincount(sources, minlength=count)
    resampled = rng.integers(0, count, (DRAWS, count))
    means = totals[resampled].sum(axis=1) / sizes[resampled].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def line(name: str, before: NDArray[np.float64], after: NDArray[np.float64], sources: NDArray[np.int64]) -> str:
    sources = np.unique(sources, return_inverse=True)[1]
    cells = []
    for values, sign in ((before, ""), (after, ""), (after - before, "+")):
        low, high = interval(values, sources)
        cells.append(f"{values.mean():{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})")
    return f"| {name} | {len(before)} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    arguments = parser.parse_args()
    sampling = SamplingParams(arguments.temperature, arguments.top_k)
    rows, before = rewards(arguments.before, arguments.store, arguments.samples, sampling)
    _, after = rewards(arguments.after, arguments.store, arguments.samples, sampling)
    hashes = rows.table.column("source_hash").to_pylist()
    sources = np.unique(hashes, return_inverse=True)[1].astype(np.int64)
    known = abilities()
    kinds = [understand(rows.instruction(row), known).kind or "other" for row in range(len(rows))]
    print("| edits | pairs | before | after | difference |\n| --- | --- | --- | --- | --- |")
    print(line("all", before, after, sources))
    for kind in sorted(set(kinds)):
        chosen = np.array([each == kind for each in kinds])
        print(line(kind, before[chosen], after[chosen], sources[chosen]))


if __name__ == "__main__":
    main()
