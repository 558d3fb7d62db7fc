"""From prompts to groups of edits: which prompts an iteration has, what is sampled for them, and its pictures.

Everything random follows from the seed and the iteration's number, so a run that goes on needs no random state.
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
from earl_cli.tokens.layout import Grid, Mode, Parsed, SequenceLayout

if TYPE_CHECKING:
    from transformers import Emu3VQVAE

PIXELS_PER_BATCH = {"cpu": 1 << 16, "cuda": 1 << 20}
"""Pixels that are decoded together: on processors larger batches leave the caches and take twice the time."""


@dataclass(frozen=True)
class RolloutPrompt:
    """A row to be edited, with a seed for each of its generations."""

    row: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rollout:
    """A prompt with its group of completions, and what these say."""

    row: int
    request: SamplingRequest
    completions: tuple[Completion, ...]
    parsed: tuple[Parsed, ...]

    @property
    def finished(self) -> tuple[bool, ...]:
        """Which completions are pictures, closed as they should be."""
        return tuple(answer.finished and answer.codes is not None for answer in self.parsed)


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """A group with its scores, and what each of them is above the group's mean; NaN where it could not be had.

    ``token_advantages`` says for each completion what of that each of its tokens is credited with.
    """

    rollout: Rollout
    scores: tuple[Score, ...]
    advantages: NDArray[np.float64]
    token_advantages: tuple[NDArray[np.float64], ...]
    signal: bool


def sample_prompts(
    rows: NDArray[np.int64], prompts: int, generations: int, seed: int, iteration: int
) -> list[RolloutPrompt]:
    """The prompts of an iteration, drawn from ``rows``, which aren't fewer, without replacement."""
    places = np.random.default_rng((seed, iteration)).choice(len(rows), prompts, replace=False)
    return [
        RolloutPrompt(int(rows[place]), seeds(generations, seed, iteration, number))
        for number, place in enumerate(places)
    ]


def seeds(count: int, *origin: int) -> tuple[int, ...]:
    """Seeds for sampling that follow from numbers and are nobody else's."""
    drawn = np.random.SeedSequence(origin).generate_state(count, np.uint64)
    return tuple(int(seed >> np.uint64(1)) for seed in drawn)


def sequence_lengths(rows: DatasetRows, mode: Mode) -> NDArray[np.int64]:
    """The tokens of each row's prompt with a picture of the source's size after it, int64[n]; thinking comes on top."""
    layout = rows.layout
    texts: dict[str, int] = {}
    pictures: dict[tuple[int, int], int] = {}
    columns = [rows.table.column(name).to_pylist() for name in ("instruction", "source_height", "source_width")]
    found = np.empty(len(rows), dtype=np.int64)
    for row, (instruction, height, width) in enumerate(zip(*columns, strict=True)):
        if instruction not in texts:
            texts[instruction] = len(layout.text.encode(instruction))
        if (height, width) not in pictures:
            grid = Grid(height, width)
            pictures[height, width] = len(layout.opening(grid)) + grid.tokens
        found[row] = 2 + texts[instruction] + 2 * pictures[height, width]
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
    """A group of completions for each prompt, in order; a picture has the source's grid unless the model thinks.

    With ``overlong`` zero it has that grid also then.
    """
    requests = []
    for prompt in prompts:
        source = rows.source(prompt.row)
        grid = Grid(*source.shape)
        ids = layout.prompt(source, rows.instruction(prompt.row), mode, grid)
        requests.append(SamplingRequest(tuple(ids.tolist()), mode, grid, prompt.seeds, grammar, overlong))
    drawn = engine.generate(requests, sampling, on_progress)
    return [
        Rollout(
            prompt.row,
            request,
            tuple(completions),
            tuple(layout.parse_completion(each.ids, mode, request.grid) for each in completions),
        )
        for prompt, request, completions in zip(prompts, requests, drawn, strict=True)
    ]


def decode_edits(vision: Emu3VQVAE, rows: DatasetRows, rollouts: Sequence[Rollout]) -> list[Edit]:
    """Every completion of every group as an edit to be judged, all pictures as the vision tokenizer draws them."""
    known = [codes for rollout in rollouts for codes in (rows.source(rollout.row), rows.target(rollout.row))]
    drawn = [
        answer.codes if finished else None
        for rollout in rollouts
        for answer, finished in zip(rollout.parsed, rollout.finished, strict=True)
    ]
    pictures = iter(decode_images(vision, [*known, *drawn]))
    pairs = [(_there(next(pictures)), _there(next(pictures))) for _ in rollouts]
    return [
        Edit(rows.id(rollout.row), rows.instruction(rollout.row), source, next(pictures), target)
        for rollout, (source, target) in zip(rollouts, pairs, strict=True)
        for _ in rollout.completions
    ]


def decode_images(vision: Emu3VQVAE, codes: Sequence[NDArray[np.integer] | None]) -> list[Pixels | None]:
    """Pictures uint8[8h, 8w, 3] of codes [h, w], in order, decoded in batches of one size; None stays None."""
    found: list[Pixels | None] = [None] * len(codes)
    for batch in _batches(codes, spatial_factor(vision), PIXELS_PER_BATCH.get(vision.device.type, 1 << 18)):
        stacked = np.stack([np.asarray(codes[place], dtype=np.int64) for place in batch])
        for place, image in zip(batch, images_of(decode(vision, torch.from_numpy(stacked))), strict=True):
            found[place] = image
    return found


def _there(picture: Pixels | None) -> Pixels:
    assert picture is not None
    return picture


def _batches(codes: Sequence[NDArray[np.integer] | None], factor: int, pixels: int) -> Iterator[list[int]]:
    """Places of codes of one shape, few enough to be decoded at once."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, each in enumerate(codes):
        if each is not None:
            shapes.setdefault(each.shape, []).append(place)
    for (height, width), places in shapes.items():
        together = max(1, pixels // (height * width * factor**2))
        yield from (places[start : start + together] for start in range(0, len(places), together))
