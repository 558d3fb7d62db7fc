"""What a run of reinforcement learning works with, and what it hands on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from earl_cli.config.rl import RlConfig
from earl_cli.data.batches import DatasetRows
from earl_cli.errors import EarlError
from earl_cli.generation.engine import Engine
from earl_cli.rewards.reward import Reward, Score
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.training.common.stopping import Stopping
from earl_cli.training.optimizer_backends import Learner
from earl_cli.training.rl.policy import Batch
from earl_cli.training.rl.rollouts import Rollout


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """A group with its scores, and what each of them is above the group's mean; NaN where it could not be had.

    ``credits`` says for each completion what of that each of its tokens is credited with.
    """

    rollout: Rollout
    scores: tuple[Score, ...]
    advantages: NDArray[np.float64]
    credits: tuple[NDArray[np.float64], ...]
    signal: bool


class Reference(Protocol):
    """The model that the policy shouldn't move far from."""

    def logprobs(self, batch: Batch) -> Tensor:
        """As the policy's, Float32[N], without gradients."""

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Where it can be asked; it may be kept elsewhere."""


class Watcher(Protocol):
    """Who is told how a run goes."""

    def phase(self, iteration: int, what: str) -> None:
        """The iteration, from 0, is at this point."""

    def sampling(self, iteration: int, done: int, expected: int) -> None:
        """So many tokens of an iteration are drawn."""

    def iteration(self, step: int, figures: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        """``step`` iterations are done; the groups are those of all processes, on those that are logged, else none."""

    def validation(self, step: int, figures: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        """After ``step`` iterations the policy does so well on prompts that it isn't trained on."""

    def is_best(self, validation: float) -> bool:
        """Whether no model so far had so good a validation: called in every process, and the same in all."""

    def checkpoint(self, iteration: int, validation: float | None) -> None:
        """The iteration is to be kept, with what validation found if it did: called in every process."""

    def waiting(self, iteration: int, problem: EarlError) -> None:
        """The judge is down; the run goes on when it is back. Called in every process, before the first wait."""


@dataclass(frozen=True, eq=False)
class RlRun:
    """What a run works with: ``prompts`` and ``validation`` are rows of ``rows`` and of ``held``.

    ``engine`` lends what samples from a language model as it is; between two loans its memory is free.
    """

    config: RlConfig
    layout: SequenceLayout
    rows: DatasetRows
    prompts: NDArray[np.int64]
    held: DatasetRows | None
    validation: NDArray[np.int64]
    vision: Any
    learner: Learner
    reference: Reference | None
    reward: Reward
    engine: Callable[[Any], AbstractContextManager[Engine]]
    watcher: Watcher
    stopping: Stopping = field(default_factory=Stopping)
    sleep: Callable[[float], None] = field(default=time.sleep)
