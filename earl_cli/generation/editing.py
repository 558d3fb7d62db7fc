"""An edit from image to image: encode, prompt, sample, parse, decode, and apply the change at the photo's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from earl_cli import version
from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import InputError, ModelError
from earl_cli.generation.engine import Completion, Engine, SamplingRequest
from earl_cli.images.arrays import CELL
from earl_cli.images.color import on_white
from earl_cli.images.compose import compose
from earl_cli.images.resize import model_size, resize_to_area
from earl_cli.models.abilities import Understood, understand
from earl_cli.tokens.layout import Grid, Mode, ParsedCompletion

if TYPE_CHECKING:
    from earl_cli.models.bundle import EarlModel

OutputSize = Literal["source", "model"]
SHEET_SIDE = 8192
SHEET_GAP = 8


@dataclass(frozen=True, eq=False)
class EditJob:
    """An upright RGB image, an instruction, and a seed for each variant to be sampled."""

    image: Image.Image
    instruction: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class EditSettings:
    """Settings that all jobs of a batch share."""

    sampling: SamplingParams
    mode: Mode = "edit"
    image_area: int | None = None


@dataclass(frozen=True, eq=False)
class SampledEdit:
    """One sampled variant: ``source`` int64[h, w] are the codes of the given image, ``completion`` is what was sampled.

    ``effects`` are those that the instruction's kind of edit can have on a photo (`earl_cli.images.compose.compose`).
    """

    source: NDArray[np.int64]
    seed: int
    completion: ParsedCompletion
    effects: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class RenderedEdit:
    """An edited image and its ``problem`` in words, None if none is known."""

    image: Image.Image
    problem: str | None


def sample_edits(
    model: EarlModel,
    engine: Engine,
    jobs: Sequence[EditJob],
    settings: EditSettings,
    on_progress: Callable[[int, int], None] | None = None,
    on_sampled: Callable[[int, list[SampledEdit]], None] | None = None,
) -> list[list[SampledEdit]]:
    """Sample every variant of every job in one batch: for each job an edit for each seed.

    The prompt has the instruction as `earl_cli.models.abilities.understand` gives it. ``on_sampled`` gets a job's index
    and edits as soon as all of them are there, while other jobs are still being sampled.
    """
    sources = [encode_image(model, job.image, settings.image_area) for job in jobs]
    grids = [Grid(*codes.shape) if settings.mode == "edit" else None for codes in sources]
    requests = []
    understood = [understand(job.instruction, model.abilities) for job in jobs]
    for job, codes, grid, found in zip(jobs, sources, grids, understood, strict=True):
        prompt = model.layout.prompt(codes, found.text, settings.mode, grid)
        requests.append(SamplingRequest(tuple(prompt.tolist()), settings.mode, grid, job.seeds))
    sampled: list[dict[int, SampledEdit]] = [{} for _ in jobs]

    def in_order(number: int) -> list[SampledEdit]:
        return [sampled[number][index] for index in range(len(jobs[number].seeds))]

    def take(number: int, index: int, completion: Completion) -> None:
        parsed = model.layout.parse_completion(completion.ids, settings.mode, grids[number])
        sampled[number][index] = SampledEdit(
            sources[number], jobs[number].seeds[index], parsed, understood[number].effects
        )
        if on_sampled is not None and len(sampled[number]) == len(jobs[number].seeds):
            on_sampled(number, in_order(number))

    engine.generate(requests, settings.sampling, on_progress, take)
    return [in_order(number) for number in range(len(jobs))]


def encode_image(model: EarlModel, image: Image.Image, image_area: int | None = None) -> NDArray[np.int64]:
    """Codes int64[h, w] of an RGB image, at ``image_area`` pixels or at the model's own area and grids.

    Images are encoded one at a time, so that codes don't depend on the batch. Raises InputError, before anything is
    computed, if the image and its edit have more tokens than the model has positions.
    """
    from earl_cli.models.vision import encode, pixels_of, spatial_factor

    area, grids = (model.image_area, model.grids) if image_area is None else (image_area, ())
    cell, positions = spatial_factor(model.vision), int(model.language.config.max_position_embeddings)
    width, height = model_size(*image.size, area, cell, grids)
    grid = Grid(height // cell, width // cell)
    if 2 * grid.tokens > positions:
        what = f"an image of {grid} codes and its edit are more than the model's {positions} positions"
        raise InputError(what, hint="a smaller image area takes fewer tokens")
    small = resize_to_area(image, area, cell, grids)
    codes = encode(model.vision, pixels_of([small], model.vision.device, model.vision.dtype))
    return codes[0].cpu().numpy().astype(np.int64)


def decode_image(model: EarlModel, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """The image of codes [h, w]: float32[H, W, 3] in 0…1, a side of `spatial_factor` pixels for each code."""
    import torch

    from earl_cli.models.vision import decode

    pixels = decode(model.vision, torch.from_numpy(codes[None]))[0].float().clamp(-1, 1)
    return ((pixels.permute(1, 2, 0) + 1) / 2).cpu().numpy().astype(np.float32)


def render_edit(
    model: EarlModel, image: Image.Image, before: NDArray[np.float32], variant: SampledEdit, size: OutputSize
) -> RenderedEdit:
    """The edited image: the model's own (``size`` "model"), or its change applied to ``image`` at its size ("source").

    ``image`` is RGB or, where something is transparent, RGBA, and so is its edit at its size. ``before`` is
    `decode_image` of the variant's source codes. Raises ModelError if the completion holds no image.
    """
    completion = variant.completion
    if completion.codes is None:
        raise ModelError(
            f"the model generated no image: {completion.problem}", hint=f"try another seed than {variant.seed}"
        )
    after = decode_image(model, completion.codes)
    if size == "model":
        return RenderedEdit(Image.fromarray(np.round(after * 255).astype(np.uint8)), completion.problem)
    height, width = (CELL * side for side in variant.source.shape)
    before, after = (
        _resize(each, width, height) for each in (before, after)
    )  # with reasoning the model may choose another grid
    composed, missing = compose(np.asarray(image), before, after, variant.effects)
    problem = f"the model's image shows no {' and no '.join(missing)}" if missing else None
    return RenderedEdit(Image.fromarray(composed), "; ".join(filter(None, (completion.problem, problem))) or None)


def provenance(model: str, understood: Understood, seed: str, settings: EditSettings) -> dict[str, str]:
    """Texts for an image file's metadata, from which the edit can be repeated; ``model`` is the model's name."""
    return {
        "instruction": understood.instruction,
        **({"understood as": understood.text} if understood.remark else {}),
        "seed": seed,
        "model": model,
        "version": f"earl {version()}",
        "sampling": f"{settings.sampling}, mode {settings.mode}",
    }


def contact_sheet(tiles: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Images side by side on white, by default in a square, each as large as the first; at most 8192 pixels wide."""
    columns = columns or ceil(len(tiles) ** 0.5)
    rows = ceil(len(tiles) / columns)
    width, height = tiles[0].size
    scale = min(1.0, (SHEET_SIDE / columns - SHEET_GAP) / width, (SHEET_SIDE / rows - SHEET_GAP) / height)
    cell = max(1, int(width * scale)), max(1, int(height * scale))
    steps = cell[0] + SHEET_GAP, cell[1] + SHEET_GAP
    whole = Image.new("RGB", (steps[0] * columns - SHEET_GAP, steps[1] * rows - SHEET_GAP), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        place = on_white(tile)
        place = place if place.size == cell else place.resize(cell, Image.Resampling.LANCZOS)
        whole.paste(place, (column * steps[0], row * steps[1]))
    return whole


def _resize(image: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    if image.shape[:2] == (height, width):
        return image
    channels = [Image.fromarray(image[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(3)]
    stacked = np.stack([np.asarray(channel, dtype=np.float32) for channel in channels], axis=-1)
    return stacked.clip(0, 1)
