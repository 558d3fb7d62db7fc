"""Rollouts: the prompts of an iteration, the completions that are sampled for them, their images and their scores.

All random numbers follow from the seed and the number of the iteration, so a resumed run needs no random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from earl_cli.config.sampling import SamplingParams
from earl_cli.data.batches import DatasetRows
from earl_cli.generation.engine import Completion, Engine, OnProgress, SamplingRequest
from earl_cli.models.vision import decode, images_of, spatial_factor
from earl_cli.rewards.reward import Edit, Pixels, Score
from earl_cli.tokens.grammar import Overlong
from earl_cli.tokens.layout import Grid, Mode, ParsedCompletion, SequenceLayout

if TYPE_CHECKING:
    from transformers import Emu3VQVAE

PIXELS_PER_BATCH = {"cpu": 1 << 16, "cuda": 1 << 20}
"""Pixels that are decoded at a time: on CPUs larger batches exceed the caches and take twice the time."""


@dataclass(frozen=True)
class RolloutPrompt:
    """The number of a row, and a seed for each of its completions."""

    row: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rollout:
    """A prompt with its group of completions, and these parsed."""

    row: int
    request: SamplingRequest
    completions: tuple[Completion, ...]
    parsed: tuple[ParsedCompletion, ...]

    @property
    def finished(self) -> tuple[bool, ...]:
        """Which completions are valid images with all their tokens."""
        return tuple(each.finished and each.codes is not None for each in self.parsed)


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """A group with its scores and advantages, NaN where the reward is missing; ``signal`` as in `loss.has_signal`.

    ``token_advantages`` are for each completion the advantages of its tokens, float64[tokens].
    """

    rollout: Rollout
    scores: tuple[Score, ...]
    advantages: NDArray[np.float64]
    token_advantages: tuple[NDArray[np.float64], ...]
    signal: bool


def sample_prompts(
    rows: NDArray[np.int64], prompts: int, generations: int, seed: int, iteration: int
) -> list[RolloutPrompt]:
    """The prompts of an iteration, sampled from ``rows`` without replacement; ``rows`` must not be fewer."""
    chosen = np.random.default_rng((seed, iteration)).choice(len(rows), prompts, replace=False)
    return [
        RolloutPrompt(int(rows[index]), seeds(generations, seed, iteration, number))
        for number, index in enumerate(chosen)
    ]


def seeds(count: int, *origin: int) -> tuple[int, ...]:
    """Seeds for sampling that follow from the numbers ``origin``, and are different for others."""
    states = np.random.SeedSequence(origin).generate_state(count, np.uint64)
    return tuple(int(state >> np.uint64(1)) for state in states)


def sequence_lengths(rows: DatasetRows, mode: Mode) -> NDArray[np.int64]:
    """The tokens of each row's prompt and an image of the source's size, int64[n], without the tokens of thinking."""
    layout = rows.layout
    texts: dict[str, int] = {}
    images: dict[tuple[int, int], int] = {}
    columns = [rows.table.column(name).to_pylist() for name in ("instruction", "source_height", "source_width")]
    found = np.empty(len(rows), dtype=np.int64)
    for row, (instruction, height, width) in enumerate(zip(*columns, strict=True)):
        if instruction not in texts:
            texts[instruction] = len(layout.text.encode(instruction))
        if (height, width) not in images:
            grid = Grid(height, width)
            images[height, width] = len(layout.opening(grid)) + grid.tokens
        found[row] = 2 + texts[instruction] + 2 * images[height, width]
    return found + (len(layout.thinking_prefix) if mode == "reasoning" else 0)


def generate_rollouts(
    engine: Engine,
    layout: SequenceLayout,
    rows: DatasetRows,
    prompts: Sequence[RolloutPrompt],
    mode: Mode,
    sampling: SamplingParams,
    *,
    grammar: bool = True,
    overlong: Overlong = "force",
    on_progress: OnProgress | None = None,
) -> list[Rollout]:
    """A group of completions for each prompt, in order.

    The image has the source's grid; after thinking the model chooses the grid, unless ``overlong`` is "zero".
    """
    requests = []
    for prompt in prompts:
        source = rows.source(prompt.row)
        grid = Grid(*source.shape)
        ids = layout.prompt(source, rows.instruction(prompt.row), mode, grid)
        requests.append(SamplingRequest(tuple(ids.tolist()), mode, grid, prompt.seeds, grammar, overlong))
    groups = engine.generate(requests, sampling, on_progress)
    return [
        Rollout(
            prompt.row,
            request,
            tuple(completions),
            tuple(layout.parse_completion(each.ids, mode, request.grid) for each in completions),
        )
        for prompt, request, completions in zip(prompts, requests, groups, strict=True)
    ]


def decode_edits(vision: Emu3VQVAE, rows: DatasetRows, rollouts: Sequence[Rollout]) -> list[Edit]:
    """Every completion of every group as an edit to be scored, with all images decoded by the vision tokenizer."""
    given = [codes for rollout in rollouts for codes in (rows.source(rollout.row), rows.target(rollout.row))]
    sampled = [
        parsed.codes if finished else None
        for rollout in rollouts
        for parsed, finished in zip(rollout.parsed, rollout.finished, strict=True)
    ]
    images = iter(decode_images(vision, [*given, *sampled]))
    examples = [(_not_none(next(images)), _not_none(next(images))) for _ in rollouts]
    return [
        Edit(rows.id(rollout.row), rows.instruction(rollout.row), source, next(images), target)
        for rollout, (source, target) in zip(rollouts, examples, strict=True)
        for _ in rollout.completions
    ]


def decode_images(vision: Emu3VQVAE, codes: Sequence[NDArray[np.integer] | None]) -> list[Pixels | None]:
    """Images uint8[8h, 8w, 3] of codes [h, w], in order, decoded in batches of one shape; None stays None."""
    found: list[Pixels | None] = [None] * len(codes)
    for batch in _batches(codes, spatial_factor(vision), PIXELS_PER_BATCH.get(vision.device.type, 1 << 18)):
        stacked = np.stack([np.asarray(codes[index], dtype=np.int64) for index in batch])
        for index, image in zip(batch, images_of(decode(vision, torch.from_numpy(stacked))), strict=True):
            found[index] = image
    return found


def _not_none(image: Pixels | None) -> Pixels:
    assert image is not None
    return image


def _batches(codes: Sequence[NDArray[np.integer] | None], factor: int, pixels: int) -> Iterator[list[int]]:
    """Indices of codes of one shape, at most ``pixels`` pixels a batch."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(codes):
        if each is not None:
            shapes.setdefault(each.shape, []).append(index)
    for (height, width), indices in shapes.items():
        count = max(1, pixels // (height * width * factor**2))
        yield from (indices[start : start + count] for start in range(0, len(indices), count))
