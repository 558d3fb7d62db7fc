"""What a model draws while it is trained: some validation pairs, sampled and decoded, on a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from earl_cli.data.batches import ExampleData
from earl_cli.generation.engine import Request, Sampling
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.images.html_gallery import Entry, Figure, page, write_page
from earl_cli.models.vision import decode, images_of
from earl_cli.tokens.layout import Grid, Layout, Mode
from earl_cli.training.sft.model import plain


def draw_gallery(
    model: Any, vision: Any, layout: Layout, data: ExampleData, count: int, sampling: Sampling, path: Path, title: str
) -> None:
    """Write a page with the first ``count`` rows of ``data``: source, what the model draws with seed 0, and target.

    The training isn't touched: the engine has its own random numbers, and the model is given back as it was.
    """
    rows = [int(row) for row in data.order[:count]]
    mode: Mode = "reasoning" if data.rows.cot_keys else "edit"
    requests = []
    for row in rows:
        grid = Grid(*data.rows.target(row).shape)
        prompt = layout.prompt(data.rows.source(row), data.rows.instruction(row), mode, grid)
        requests.append(Request(tuple(prompt.tolist()), mode, grid, (0,)))
    with plain(model) as language:
        drawn = TransformersEngine(language, layout).generate(requests, sampling)
    entries = []
    for row, request, (completion,) in zip(rows, requests, drawn, strict=True):
        answer = layout.parse_completion(completion.ids, mode, request.grid)
        figures = [Figure(_picture(vision, data.rows.source(row)), "source")]
        if answer.codes is not None:
            figures.append(Figure(_picture(vision, answer.codes), "drawn"))
        figures.append(Figure(_picture(vision, data.rows.target(row)), "target"))
        texts = [("instruction", data.rows.instruction(row))]
        texts += [("thinking", answer.thoughts)] if answer.thoughts else []
        texts += [("problem", answer.problem)] if answer.problem else []
        entries.append(Entry(data.rows.id(row), figures, texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    how = f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, seed 0"
    note = f"{how}; validation pairs that were drawn at random, none picked"
    write_page(path, page(title, [note], entries))


def _picture(vision: Any, codes: Any) -> Any:
    return images_of(decode(vision, torch.from_numpy(codes.astype("int64"))[None]))[0]
