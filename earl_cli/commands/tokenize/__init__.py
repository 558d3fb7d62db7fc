"""``earl tokenize``: image pairs in, a token store out; an interrupted pass resumes where it stopped."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from earl_cli.commands._options import without_collector
from earl_cli.console import console
from earl_cli.errors import InputError, OutputError, UsageError

NOTES_SHOWN = 5

DATA, COLUMNS, WORK = "Data", "Columns", "Work"


def tokenize(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="PAIRS",
            help="A folder or list of image pairs, a folder of Parquet or tars, or ORG/NAME on the Hub.",
        ),
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The token store to write or resume.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model whose vision tokenizer is used; the embedded one by default."),
    ] = None,
    source: Annotated[
        str, typer.Option("--source", help="auto, local, or HF for the Hub.", rich_help_panel=DATA)
    ] = "auto",
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Column names and split of a published data set.", rich_help_panel=DATA),
    ] = None,
    subset: Annotated[
        str | None, typer.Option("--subset", help="The configuration on the Hub, or a folder.", rich_help_panel=DATA)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="The split, by the name of a folder or file; all: every one.", rich_help_panel=DATA
        ),
    ] = None,
    data_files: Annotated[
        list[str] | None,
        typer.Option("--data-files", help="Read only files of this pattern; repeatable.", rich_help_panel=DATA),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.", rich_help_panel=DATA)
    ] = None,
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming", help="Read Parquet on the Hub without downloading whole files.", rich_help_panel=DATA
        ),
    ] = False,
    urls: Annotated[
        bool, typer.Option("--allow-urls", help="Download images that the data gives as URLs.", rich_help_panel=DATA)
    ] = False,
    dataset_name: Annotated[
        str | None,
        typer.Option("--dataset-name", help="Name of the data set in the store's manifest.", rich_help_panel=DATA),
    ] = None,
    source_column: Annotated[
        str | None, typer.Option("--original-image-key", help="Column of the source image.", rich_help_panel=COLUMNS)
    ] = None,
    target_column: Annotated[
        str | None, typer.Option("--edited-image", help="Column of the target image.", rich_help_panel=COLUMNS)
    ] = None,
    instruction_column: Annotated[
        str | None, typer.Option("--edit-instruction", help="Column of the instruction.", rich_help_panel=COLUMNS)
    ] = None,
    thought_columns: Annotated[
        list[str] | None,
        typer.Option("--cot-keys", help="Columns of the chain of thought: a,b; repeatable.", rich_help_panel=COLUMNS),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option("--id-key", help="Column of the id; the row number by default.", rich_help_panel=COLUMNS),
    ] = None,
    image_area: Annotated[
        int | None,
        typer.Option("--image-area", min=64, help="Pixels of a tokenized image; the model's own by default."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Shuffle the rows with this seed; in order by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most rows to read.")] = None,
    max_reject_rate: Annotated[
        float, typer.Option("--max-reject-rate", min=0, max=1, help="Stop if more than this share of rows is rejected.")
    ] = 1.0,
    share: Annotated[
        str | None,
        typer.Option(
            "--shard", help="Do part I of N; the rank by default under torchrun and srun.", rich_help_panel=WORK
        ),
    ] = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", help="Images encoded in one batch.", rich_help_panel=WORK)
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes that read and resize images.", rich_help_panel=WORK),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=WORK)
    ] = "auto",
) -> None:
    """Turn image pairs with instructions into a token store: earl tokenize pairs/ -o store/"""
    from earl_cli.data.columns import ExampleColumns, find_columns, find_preset
    from earl_cli.data.shard_plan import parse_share
    from earl_cli.data.sources.base import row_count
    from earl_cli.data.sources.registry import DataLocation, open_source

    chosen = find_preset(preset) if preset else None
    where = data or (chosen.location if chosen else None)
    if where is None:
        what = f"the set {preset} isn't on the Hub as examples" if chosen else "no data"
        raise UsageError(what, hint="name a folder, a file or a Hub id: earl tokenize pairs/ -o store/")
    base = chosen.columns if chosen else ExampleColumns()
    thoughts = tuple(key.strip() for keys in thought_columns or () for key in keys.split(",") if key.strip())
    columns = ExampleColumns(
        source_column or base.source,
        target_column or base.target,
        instruction_column or base.instruction,
        id_column or base.id,
        thoughts or base.thoughts,
    )
    place = DataLocation(
        where,
        _kind(source),
        subset,
        split or (chosen.split if chosen and data is None else None),
        tuple(data_files or ()),
        revision,
        streaming,
    )
    part, at_once = parse_share(share), _batch_size(batch_size)
    if output.exists() and not output.is_dir():
        raise OutputError("this is a file, and a token store is a folder", where=str(output))
    console.quiet |= share is None and part.index > 0  # of the ranks of one run, only the first prints
    found = open_source(place)
    expected = f"--preset {preset} expects {', '.join(base.names)}" if chosen else ""
    find_columns(columns, found, reason=expected)
    console.say(f"{row_count(found)} rows in {place.path}")

    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch takes large pages: a CPU encodes up to a third faster
    with without_collector():
        from earl_cli import version
        from earl_cli.data.tokenizing import PassProgress, TokenizeSettings, tokenize
        from earl_cli.models.bundle import load_vision_of

        vision = load_vision_of(model, device=device)
    console.note(str(vision.plan))
    settings = TokenizeSettings(
        image_area or vision.image_area,
        () if image_area else vision.grids,
        columns,
        seed,
        limit,
        at_once,
        _workers(workers),
        urls,
        max_reject_rate,
        share=part,
    )
    label = "tokenizing" if part.count == 1 else f"tokenizing, part {part}"
    notes = Counter[str]()
    with console.progress(label, unit="examples") as progress:
        total = min(row_count(found), limit or row_count(found)) / part.count

        def on_rows(tally: PassProgress) -> None:
            nonlocal notes
            notes = tally.notes
            kinds = ", ".join(f"{count} {kind}" for kind, count in tally.rejected.most_common())
            progress.update(tally.rows, max(total, tally.rows), f"left out: {kinds}" if kinds else "")

        store = tokenize(
            found,
            vision.model,
            vision.fingerprint,
            output,
            settings,
            dataset_name or preset or found.name,
            on_rows,
            {"place": place.path, "split": place.split, "revision": revision, "limit": limit, "earl": version()},
        )
    for note, count in notes.most_common(NOTES_SHOWN):
        console.note(f"{count} images: {note}")
    rejects = list(store.rejects())
    for reject in rejects[:5]:
        console.warn(f"left out {reject.id}: {reject.reason}")
    done = sum(table.num_rows for table in store.tables(["row"]))
    if not done and store.complete:
        raise InputError("no example could be read", where=place.path, hint="the rejects file has the reasons")
    left = f"; {len(store.missing)} of {store.manifest.shards} shards are still missing" if store.missing else ""
    console.say(
        f"{done} examples in {output}" + (f", {len(rejects)} left out (*.rejects.jsonl)" if rejects else "") + left
    )
    console.document(
        {
            "store": str(output),
            "pairs": done,
            "rejected": len(rejects),
            "image_area": settings.image_area,
            "complete": store.complete,
        }
    )


def _kind(text: str) -> Literal["auto", "local", "hf"]:
    match text.lower():
        case "auto" | "local" | "hf" as kind:
            return kind
    raise UsageError(f"{text!r} is not a kind of source", where="--source", hint="auto, local or HF")


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{text!r} is not a number of images", where="--batch-size", hint="auto, or 1 and more")
    return int(text)


def _workers(wanted: int | None) -> int:
    """By default one less than the processors of this rank, at most eight."""
    if wanted is not None:
        return wanted
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, (os.cpu_count() or 1) // ranks - 1))
