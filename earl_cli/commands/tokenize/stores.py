"""``earl tokenize inspect``, ``verify``, ``merge`` and ``export``: commands for token stores that exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from earl_cli.commands._options import without_collector
from earl_cli.console import console
from earl_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from earl_cli.data.inspecting import Distribution, Summary
    from earl_cli.data.store import Manifest, TokenizedExample
    from earl_cli.images.html_gallery import Entry
    from earl_cli.models.bundle import VisionModel


from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from earl_cli.errors import OutputError

if TYPE_CHECKING:
    from earl_cli.data.store import Store


from typing import Any

SAMPLED = 8


def tokenize_inspect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A token store.")],
    *,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Decode a sample of examples, and write it as one page."),
    ] = None,
    sample_examples: Annotated[
        int | None, typer.Option("--sample", min=1, help=f"Number of examples on the page; {SAMPLED} by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample.")] = 0,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model whose vision tokenizer decodes; the embedded one by default."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Show what a token store contains: earl tokenize inspect store/ --html examples.html"""
    if html is None and (sample_examples is not None or model is not None):
        option = "--sample" if sample_examples is not None else "--model"
        raise UsageError(
            f"{option} is for the page of examples", hint="name the page to write with --html examples.html"
        )
    from earl_cli.data.inspecting import summary
    from earl_cli.data.store import open_store

    opened = open_store(store)
    if html is not None:
        from earl_cli.images.html_gallery import check_page_name

        check_page_name(html)
    found = summary(opened)
    _show(found)
    shown = 0
    if html is not None:
        from earl_cli.data.inspecting import sample_examples as sample_of
        from earl_cli.images.html_gallery import page, write_page

        examples = sample_of(opened, sample_examples or SAMPLED, seed)
        if not examples:
            raise InputError("this store has no examples", where=str(store))
        with without_collector():
            from earl_cli.models.bundle import load_vision_of

            vision = load_vision_of(model, device=device)
        _check_fits(vision, opened.manifest, model)
        shown = len(examples)
        notes = [opened.manifest.dataset, f"{shown} of {found.pairs:,} examples", f"sampled with seed {seed}"]
        with console.progress("decoding", shown, unit="examples") as progress:
            entries = []
            for example in examples:
                entries.append(_entry(example, vision))
                progress.advance()
        write_page(html, page(f"Examples in {store.resolve().name}", notes, entries))
        console.say(f"{shown} examples in {html}")
    console.document({**found.to_dict(), "html": str(html) if html else None, "drawn": shown})


def _check_fits(vision: VisionModel, manifest: Manifest, model: str | None) -> None:
    """Raise UsageError unless the vision tokenizer is the one that made the store's codes."""
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


def _entry(example: TokenizedExample, vision: VisionModel) -> Entry:
    """The images of an example, decoded, with all its texts."""
    import numpy as np
    import torch

    from earl_cli.images.html_gallery import Entry, ImageFigure
    from earl_cli.models.vision import decode, images_of

    images = []
    for name, codes in (("source", example.source), ("target", example.target)):
        pixels = decode(vision.model, torch.from_numpy(codes.astype(np.int64))[None])
        images.append(ImageFigure(images_of(pixels)[0], f"{name}, {codes.shape[0]} × {codes.shape[1]}"))
    texts = [
        *example.thoughts.items(),
        ("id", example.id),
        ("row", str(example.row)),
        ("source file", example.source_hash[:16]),
    ]
    return Entry(example.instruction, images, [(name, text) for name, text in texts if text])


def _show(found: Summary) -> None:
    manifest = found.manifest
    area = f"{manifest.image_area:,} pixels" if manifest.image_area else "not resized"
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
    columns = ["of an example", "examples", "least", "median", "mean", "most"]
    console.table(columns, [_spread_row(name, spread) for name, spread in spreads.items()])


def _facts(found: Summary, area: str) -> Iterator[tuple[str, str]]:
    from earl_cli.data.inspecting import describe_numbers

    manifest = found.manifest
    rejected = sum(found.rejected.values())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.rejected.items())
    yield "dataset", manifest.dataset
    yield "examples", f"{found.pairs:,} of {found.rows:,} rows"
    yield "rejected", f"{rejected:,}" + (f" ({kinds})" if kinds else "")
    missing = f", missing: {describe_numbers(found.missing)}" if found.missing else ""
    yield "shards", f"{found.shards:,} of {manifest.shards:,}{missing}"
    yield "source files", f"{found.sources:,}"
    yield "codebook", f"{manifest.codes:,} codes, vision tokenizer {manifest.vision_fingerprint}"
    yield "image area", area
    yield "order", "as in the source" if manifest.seed is None else f"shuffled with seed {manifest.seed}"
    yield "on disk", _size(found.bytes)
    if found.leftovers:
        yield "unfinished files", f"{len(found.leftovers):,} (of a process that is running, or that was killed)"


def _grids(sources: Mapping[str, int], targets: Mapping[str, int], shown: int = 10) -> Iterator[Sequence[str]]:
    """The commonest grids, and the rest in one line."""
    total = {name: sources.get(name, 0) + targets.get(name, 0) for name in {**sources, **targets}}
    names = sorted(total, key=lambda name: -total[name])
    for name in names[:shown]:
        yield name, f"{sources.get(name, 0):,}", f"{targets.get(name, 0):,}"
    if rest := names[shown:]:
        counts = (f"{sum(side.get(name, 0) for name in rest):,}" for side in (sources, targets))
        yield f"{len(rest)} others", *counts


def _spread_row(name: str, spread: Distribution) -> Sequence[str]:
    parts = (f"{value:,.0f}" for value in (spread.minimum, spread.median))
    return name, f"{spread.count:,}", *parts, f"{spread.mean:,.1f}", f"{spread.maximum:,}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class ExportFormat(StrEnum):
    """What can be written."""

    PTH = "pth"
    PARQUET = "parquet"
    JSONL = "jsonl"


def tokenize_export(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A token store.")],
    *,
    format: Annotated[
        ExportFormat, typer.Option("--format", help="pth: a folder like the published data; parquet, jsonl: one file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, or the folder.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite what exists.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Also export an unfinished store.")] = False,
) -> None:
    """Write a token store for other programs: earl tokenize export store/ --format parquet -o examples.parquet"""
    from earl_cli.data.inspecting import describe_missing_shards, example_count
    from earl_cli.data.store import open_store

    opened = open_store(store)
    if opened.missing and not partial:
        raise InputError(
            f"not finished: {describe_missing_shards(opened)}",
            where=str(store),
            hint="run the earl tokenize that made it again, or export what is there with --partial",
        )
    pairs = example_count(opened)
    if not pairs:
        raise InputError("this store has no examples", where=str(store))
    _check_free(output, format, force)
    if output.resolve().is_relative_to(store.resolve()):
        raise UsageError("this path is inside the store", where=str(output), hint="choose another --output")
    with console.progress("exporting", pairs, unit="examples") as progress:
        _writer(format)(opened, output, progress.advance)
    console.say(f"{pairs:,} examples in {output}")
    console.document({"store": str(store), "format": format.value, "output": str(output), "pairs": pairs})


def _writer(format: ExportFormat) -> Callable[[Store, Path, Callable[[int], None]], object]:
    if format is ExportFormat.PTH:
        from earl_cli.data.published.store import export_published

        return export_published
    from earl_cli.data.merging import export_jsonl, export_parquet

    return export_parquet if format is ExportFormat.PARQUET else export_jsonl


def _check_free(output: Path, format: ExportFormat, force: bool) -> None:
    """Raise UsageError for a path of the wrong kind, OutputError for one that exists.

    An unfinished folder of .pth files is allowed: the export resumes there.
    """
    if format is not ExportFormat.PTH:
        if output.is_dir():
            what = f"this is a folder, and --format {format.value} writes a file"
            raise UsageError(what, where=str(output), hint="choose another --output")
        taken = output.exists()
    else:
        from earl_cli.data.published.files import FEATURES, LIST_FOLDER, LIST_NAME

        if output.exists() and not output.is_dir():
            what = "this is a file, and --format pth writes a folder"
            raise UsageError(what, where=str(output), hint="choose another --output")
        inside = {path.name for path in output.iterdir()} if output.is_dir() else set()
        taken = (output / LIST_FOLDER / LIST_NAME).exists() or not inside <= {FEATURES, LIST_FOLDER}
    if taken and not force:
        raise OutputError("this exists already", where=str(output), hint="--force overwrites it")


def tokenize_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", help="The token stores, in order.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The token store to write or resume.")],
) -> None:
    """Merge several token stores into one: earl tokenize merge part-1/ part-2/ -o store/

    Parts of one pass are joined as if one machine had made them. Other stores are appended; they must be finished, and
    have the same vision tokenizer and image area.
    """
    from earl_cli.data.inspecting import describe_missing_shards, example_count
    from earl_cli.data.merging import merge, planned_rows
    from earl_cli.data.store import open_store

    opened = [open_store(folder) for folder in stores]
    with console.progress("merging", planned_rows(opened), unit="rows") as progress:
        merged = merge(opened, output, progress.advance)
    pairs = example_count(merged)
    console.say(f"{pairs:,} examples in {len(merged.shards):,} shards: {output}")
    if missing := describe_missing_shards(merged):
        console.warn(f"not finished: {missing}")
    console.document(
        {
            "store": str(output),
            "pairs": pairs,
            "rows": merged.manifest.rows,
            "shards": len(merged.shards),
            "missing": merged.missing,
        }
    )


def tokenize_verify(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", help="One or more token stores.")],
) -> None:
    """Check every shard and every row of token stores: earl tokenize verify store/"""
    from earl_cli.data.inspecting import Problem, example_count, verify
    from earl_cli.data.store import open_store

    documents: list[dict[str, Any]] = []
    opened = 0
    problems: list[Problem] = []
    for folder in stores:
        found = []
        pairs = None
        try:
            store = open_store(folder)
            opened += 1
            with console.progress(f"verifying {folder}", store.manifest.rows, unit="rows") as progress:
                found = verify(store, progress.advance)
            if not found:
                pairs = example_count(store)
                shards = f"{len(store.shards):,} shard{'' if len(store.shards) == 1 else 's'}"
                console.say(f"{folder}: {pairs:,} examples in {shards}: no problem found")
        except InputError as error:
            found = [Problem(error.where or str(folder), error.what)]
        problems += found
        listed = [{"where": problem.where, "what": problem.what} for problem in found]
        documents.append({"store": str(folder), "pairs": pairs, "problems": listed})
    if not problems:
        console.document({"stores": documents})
        return
    console.table(["where", "problem"], [(problem.where, problem.what) for problem in problems])
    bad = [document["store"] for document in documents if document["problems"]]
    failure = InputError(
        f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found",
        where=", ".join(bad),
        hint="delete the damaged files, and run the command again that made the store" if opened else None,
    )
    console.fail(failure, beside={"stores": documents})
    raise typer.Exit(failure.exit_code)
