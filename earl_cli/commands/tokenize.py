"""``earl tokenize``: pairs of pictures in, a token store out; an interrupted pass goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from earl_cli.console import console
from earl_cli.errors import InputError


def tokenize(
    data: Annotated[
        Path,
        typer.Argument(metavar="PAIRS", help="A folder with pictures and a .jsonl list of pairs, or the list itself."),
    ],
    *,
    output: Annotated[Path, typer.Option("--output-path", "--output", "-o", help="The store to write or go on with.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Whose vision tokenizer to use; the embedded model's by default.")
    ] = None,
    source_column: Annotated[
        str | None, typer.Option("--original-image-key", help="Column of the source picture.")
    ] = None,
    target_column: Annotated[str | None, typer.Option("--edited-image", help="Column of the edited picture.")] = None,
    instruction_column: Annotated[
        str | None, typer.Option("--edit-instruction", help="Column of the instruction.")
    ] = None,
    thought_columns: Annotated[
        list[str] | None, typer.Option("--CoT-keys", help="Columns of the chain of thought; may be repeated.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id-key", help="Column of the id; the line number by default.")
    ] = None,
    dataset_name: Annotated[str | None, typer.Option("--dataset-name", help="A name to remember the data by.")] = None,
    image_area: Annotated[
        int | None, typer.Option("--image-area", min=64, help="Pixels of a picture; the model's own by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--random-seed", help="Shuffle the pairs before the pass.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take so many pairs at most.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Turn pairs of pictures and instructions into a token store: earl tokenize pairs/ -o store/"""
    from earl_cli.data.pairs import Columns, read_pairs

    columns = Columns(source_column, target_column, instruction_column, id_column, tuple(thought_columns or ()))
    pairs = read_pairs(data, columns)
    console.say(f"{len(pairs)} pairs in {data}")

    from earl_cli.data.tokenizing import TokenizeSettings, tokenize_pairs
    from earl_cli.models.bundle import load_vision_of

    vision = load_vision_of(model, device=device)
    console.note(str(vision.plan))
    settings = TokenizeSettings(image_area or vision.image_area, seed, limit)
    total = min(len(pairs), limit or len(pairs))
    with console.progress("tokenizing", total, unit="pairs") as progress:
        store = tokenize_pairs(
            pairs, vision.model, vision.fingerprint, output, settings, dataset_name or data.name, progress.advance
        )
    rejects = store.rejects()
    for reject in rejects[:5]:
        console.warn(f"left out {reject['id']}: {reject['reason']}")
    done = store.manifest.rows - len(rejects)
    console.say(f"{done} pairs in {output}" + (f", {len(rejects)} left out (*.rejects.jsonl)" if rejects else ""))
    console.document({"store": str(output), "pairs": done, "rejected": len(rejects), "image_area": settings.image_area})
    if not done:
        raise InputError("not a single pair could be read", where=str(data), hint="the rejects file names the reasons")
