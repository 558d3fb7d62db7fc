"""``earl tokenize inspect``: what a token store holds, in figures and, with ``--html``, in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from earl_cli.commands._startup import without_collector
from earl_cli.console import console
from earl_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from earl_cli.data.inspecting import Spread, Summary
    from earl_cli.data.store import Manifest, TokenizedPair
    from earl_cli.images.html_gallery import Entry
    from earl_cli.models.bundle import VisionModel

DRAWN = 8


def tokenize_inspect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A token store.")],
    *,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Draw some pairs, and write them as one page.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help=f"How many pairs to draw; {DRAWN} by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which pairs are drawn.")] = 0,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose vision tokenizer draws; the embedded model's by default.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Say what a token store holds: earl tokenize inspect store/ --html pairs.html"""
    if html is None and (sample is not None or model is not None):
        option = "--sample" if sample is not None else "--model"
        raise UsageError(f"{option} is about drawn pairs", hint="name the page to write with --html pairs.html")
    from earl_cli.data.inspecting import summary
    from earl_cli.data.store import open_store

    opened = open_store(store)
    if html is not None:
        from earl_cli.images.html_gallery import check_page_name

        check_page_name(html)
    found = summary(opened)
    _show(found)
    drawn = 0
    if html is not None:
        from earl_cli.data.inspecting import sample as draw
        from earl_cli.images.html_gallery import page, write_page

        pairs = draw(opened, sample or DRAWN, seed)
        if not pairs:
            raise InputError("there is not a single pair to draw", where=str(store))
        with without_collector():
            from earl_cli.models.bundle import load_vision_of

            vision = load_vision_of(model, device=device)
        _check_fits(vision, opened.manifest, model)
        drawn = len(pairs)
        notes = [opened.manifest.dataset, f"{drawn} of {found.pairs:,} pairs", f"drawn with seed {seed}"]
        with console.progress("drawing", drawn, unit="pairs") as progress:
            entries = []
            for pair in pairs:
                entries.append(_entry(pair, vision))
                progress.advance()
        write_page(html, page(f"Pairs in {store.resolve().name}", notes, entries))
        console.say(f"{drawn} pairs drawn in {html}")
    console.document({**found.to_dict(), "html": str(html) if html else None, "drawn": drawn})


def _check_fits(vision: VisionModel, manifest: Manifest, model: str | None) -> None:
    """Raise UsageError unless the tokenizer is the one that the store's codes are of."""
    named = manifest.origin.get("model")
    hint = f"--model {named}" if named and named != model else "name the model that the store was made with: --model"
    from earl_cli.data.published.store import FINGERPRINT

    codes = int(vision.model.config.codebook_size)
    whose = f"that of {model}" if model else "the embedded model's"
    if codes != manifest.codes:
        what = f"this store has a codebook of {manifest.codes} codes, and {whose} has {codes}"
        raise UsageError(what, where="--model", hint=hint)
    if manifest.vision_fingerprint not in (FINGERPRINT, vision.fingerprint):
        what = (
            f"this store is of the vision tokenizer {manifest.vision_fingerprint}, and {whose} is {vision.fingerprint}"
        )
        raise UsageError(what, where="--model", hint=hint)


def _entry(pair: TokenizedPair, vision: VisionModel) -> Entry:
    """The pair as the tokenizer draws it, with all its texts."""
    import numpy as np
    import torch

    from earl_cli.images.html_gallery import Entry, Figure
    from earl_cli.models.vision import decode, images_of

    figures = []
    for name, codes in (("source", pair.source), ("target", pair.target)):
        pixels = decode(vision.model, torch.from_numpy(codes.astype(np.int64))[None])
        figures.append(Figure(images_of(pixels)[0], f"{name}, {codes.shape[0]} × {codes.shape[1]}"))
    texts = [
        *pair.thoughts.items(),
        ("id", pair.id),
        ("row", str(pair.row)),
        ("source file", pair.source_hash[:16]),
    ]
    return Entry(pair.instruction, figures, [(name, text) for name, text in texts if text])


def _show(found: Summary) -> None:
    manifest = found.manifest
    area = f"{manifest.image_area:,} pixels" if manifest.image_area else "as it came"
    console.table(["store", str(found.folder)], list(_facts(found, area)))
    console.say()
    console.table(["grid", "sources", "targets"], list(_grids(found.source_grids, found.target_grids)))
    console.say()
    spreads = {
        "instruction, characters": found.characters,
        "instruction, words": found.words,
        **{f"{key}, characters": spread for key, spread in found.thoughts.items()},
        "image tokens": found.image_tokens,
    }
    columns = ["of a pair", "pairs", "least", "median", "mean", "most"]
    console.table(columns, [_spread_row(name, spread) for name, spread in spreads.items()])


def _facts(found: Summary, area: str) -> Iterator[tuple[str, str]]:
    from earl_cli.data.inspecting import spans

    manifest = found.manifest
    rejected = sum(found.rejected.values())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.rejected.items())
    yield "dataset", manifest.dataset
    yield "pairs", f"{found.pairs:,} of {found.rows:,} rows"
    yield "left out", f"{rejected:,}" + (f" ({kinds})" if kinds else "")
    missing = f", missing: {spans(found.missing)}" if found.missing else ""
    yield "shards", f"{found.shards:,} of {manifest.shards:,}{missing}"
    yield "source files", f"{found.sources:,}"
    yield "codebook", f"{manifest.codes:,} codes, vision tokenizer {manifest.vision_fingerprint}"
    yield "image area", area
    yield "order", "as it came" if manifest.seed is None else f"shuffled with seed {manifest.seed}"
    yield "on disk", _size(found.bytes)
    if found.leftovers:
        yield "unfinished files", f"{len(found.leftovers):,} (of a process at work, or of one that was killed)"


def _grids(sources: Mapping[str, int], targets: Mapping[str, int], shown: int = 10) -> Iterator[Sequence[str]]:
    """The commonest grids, and the rest in one line."""
    total = {name: sources.get(name, 0) + targets.get(name, 0) for name in {**sources, **targets}}
    names = sorted(total, key=lambda name: -total[name])
    for name in names[:shown]:
        yield name, f"{sources.get(name, 0):,}", f"{targets.get(name, 0):,}"
    if rest := names[shown:]:
        counts = (f"{sum(side.get(name, 0) for name in rest):,}" for side in (sources, targets))
        yield f"{len(rest)} others", *counts


def _spread_row(name: str, spread: Spread) -> Sequence[str]:
    figures = (f"{value:,.0f}" for value in (spread.minimum, spread.median))
    return name, f"{spread.count:,}", *figures, f"{spread.mean:,.1f}", f"{spread.maximum:,}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
