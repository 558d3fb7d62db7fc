"""``earl tokenize import``: published tokenized data into a token store; pickled code is never run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from earl_cli.commands._options import without_collector
from earl_cli.console import console
from earl_cli.errors import InputError, UsageError

SHOWN_REJECTS = 5


def tokenize_import(
    data: Annotated[
        str,
        typer.Argument(
            metavar="PLACE",
            help="A folder with list/tokenized_datalist.json, that list, a .tar or .tar.gz with one, or ORG/NAME.",
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The token store to write or resume.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The model whose vision tokenizer made the codes, for the manifest.")
    ] = None,
    codes: Annotated[
        int | None,
        typer.Option("--codes", min=1, max=65536, help="Size of the codebook; the model's, or 32768, by default."),
    ] = None,
    image_area: Annotated[
        int | None, typer.Option("--image-area", min=64, help="Pixels of an image; the model's, or 65536, by default.")
    ] = None,
    dataset_name: Annotated[
        str | None, typer.Option("--dataset-name", help="Name of the data set in the store's manifest.")
    ] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="Folder of a data set on the Hub.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split of a data set on the Hub.")] = None,
) -> None:
    """Import published .pth data into a token store: earl tokenize import omniedit/train -o store/"""
    if model is not None and (codes, image_area) != (None, None):
        raise UsageError("--codes and --image-area follow from --model", hint="leave them out")
    from earl_cli.data.published.pth import UNSAFE
    from earl_cli.data.published.store import AREA, CODES, FINGERPRINT, import_published, open_published

    place = Path(data).expanduser()
    if place.exists():
        if subset or split:
            raise UsageError("--subset and --split are for data on the Hub", where=data)
        name = (place.parent.resolve().parent if place.suffix == ".json" else place.resolve()).name
    else:
        from earl_cli.data.sources.hub import fetch_published

        name = "/".join(filter(None, (data, subset, split)))
        place = fetch_published(data, subset, split)
    published = open_published(place)
    console.note(f"{len(published)} files in {published.files.where}")
    made_by = (codes or CODES, image_area or AREA, FINGERPRINT)
    if model is not None:
        with without_collector():
            from earl_cli.models.bundle import load_vision_of

            vision = load_vision_of(model, device="cpu")
        made_by = (int(vision.model.config.codebook_size), vision.image_area, vision.fingerprint)
    with console.progress("importing", len(published), unit="examples") as progress:
        finished = 0

        def on_rows(rows: int) -> None:
            nonlocal finished
            finished += rows
            progress.update(finished, len(published))

        store = import_published(
            published,
            output,
            codes=made_by[0],
            image_area=made_by[1],
            vision_fingerprint=made_by[2],
            dataset=dataset_name or name,
            on_rows=on_rows,
        )
    kinds: Counter[str] = Counter()
    for number, reject in enumerate(store.rejects()):
        kinds[reject.kind] += 1
        if number < SHOWN_REJECTS:
            console.warn(f"left out {reject.id}: {reject.reason}")
    if kinds[UNSAFE]:
        console.warn(f"{kinds[UNSAFE]} left out as they could run code: don't use data from this source")
    rejected = kinds.total()
    done = store.manifest.rows - rejected
    if not done:
        hint = f"the reasons are in {output}/*.rejects.jsonl"
        raise InputError(f"not one of {rejected} files could be used", where=data, hint=hint)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    left = f", {rejected} left out ({counted}; see *.rejects.jsonl)" if rejected else ""
    console.say(f"{done} examples in {output}{left}")
    console.document(
        {
            "store": str(output),
            "pairs": done,
            "rejected": rejected,
            "rejects": dict(kinds),
            "codes": made_by[0],
            "image_area": made_by[1],
        }
    )
