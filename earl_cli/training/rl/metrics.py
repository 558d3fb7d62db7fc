"""What is to be seen of an iteration: rewards, lengths, signal, seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from earl_cli.training.common.distributed import gathered
from earl_cli.training.rl.run import Judged


def figures_of(groups: Sequence[Judged]) -> dict[str, float]:
    """Rewards, lengths and signal of an iteration, over all processes."""
    own = [
        (
            [(score.value, dict(score.parts)) for score in group.scores],
            group.rollout.finished,
            [len(completion.ids) for completion in group.rollout.completions],
            group.signal,
        )
        for group in groups
    ]
    every = [group for part in gathered(own) for group in part]
    scores = [score for group in every for score in group[0]]
    values = np.array([value for value, _ in scores if value is not None])
    spreads = [np.std(there) for group in every if (there := [value for value, _ in group[0] if value is not None])]
    figures = {
        "finished": float(np.mean([done for group in every for done in group[1]])),
        "completion_tokens": float(np.mean([length for group in every for length in group[2]])),
        "no_signal": float(np.mean([not group[3] for group in every])),
        "missing_rewards": 1 - len(values) / len(scores),
    }
    if len(values):
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
        figures |= {"reward": float(values.mean()), "reward_std": float(values.std())}
        figures |= {"reward_p10": float(low), "reward_p50": float(middle), "reward_p90": float(high)}
        figures |= {"group_std": float(np.mean(spreads))}
    for name in sorted({name for _, parts in scores for name in parts}):
        figures[f"part_{name}"] = float(np.mean([parts[name] for _, parts in scores if name in parts]))
    return figures


class Clock:
    """The seconds that each phase of an iteration takes."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.spent: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done within for this phase."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begun

    def figures(self) -> dict[str, float]:
        """``seconds`` in all, and ``seconds_…`` of each phase."""
        parts = {f"seconds_{name}": spent for name, spent in self.spent.items()}
        return {"seconds": time.monotonic() - self.begun, **parts}
