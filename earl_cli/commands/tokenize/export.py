"""``earl tokenize export``: a token store for other programs, as published .pth files, Parquet or JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from earl_cli.console import console
from earl_cli.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    from earl_cli.data.store import Store


class Format(StrEnum):
    """What can be written."""

    PTH = "pth"
    PARQUET = "parquet"
    JSONL = "jsonl"


def tokenize_export(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A token store.")],
    *,
    format: Annotated[
        Format, typer.Option("--format", help="pth: a folder as the published data; parquet, jsonl: one file.")
    ],
    output: Annotated[Path, typer.Option("--output-path", "--output", "-o", help="The file to write, or the folder.")],
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Also a store whose pass is not finished.")] = False,
) -> None:
    """Write a token store for other programs: earl tokenize export store/ --format parquet -o pairs.parquet"""
    from earl_cli.data.inspecting import missing_shards, pair_count
    from earl_cli.data.store import open_store

    opened = open_store(store)
    if opened.missing and not partial:
        raise InputError(
            f"not finished: {missing_shards(opened)}",
            where=str(store),
            hint="run the earl tokenize that made it again, or export what is there with --partial",
        )
    pairs = pair_count(opened)
    if not pairs:
        raise InputError("there is not a single pair in this store", where=str(store))
    _check_free(output, format, force)
    if output.resolve().is_relative_to(store.resolve()):
        raise UsageError("this place is inside the store", where=str(output), hint="choose another --output-path")
    with console.progress("exporting", pairs, unit="pairs") as progress:
        _writer(format)(opened, output, progress.advance)
    console.say(f"{pairs:,} pairs in {output}")
    console.document({"store": str(store), "format": format.value, "output": str(output), "pairs": pairs})


def _writer(format: Format) -> Callable[[Store, Path, Callable[[int], None]], object]:
    if format is Format.PTH:
        from earl_cli.data.published.store import export_published

        return export_published
    from earl_cli.data.exporting import export_jsonl, export_parquet

    return export_parquet if format is Format.PARQUET else export_jsonl


def _check_free(output: Path, format: Format, force: bool) -> None:
    """Raise UsageError for a name of the wrong kind, OutputError for one that is taken.

    A folder of .pth files that is not finished is free: the export goes on there.
    """
    if format is not Format.PTH:
        if output.is_dir():
            what = f"this is a folder, and --format {format.value} writes a file"
            raise UsageError(what, where=str(output), hint="choose another --output-path")
        taken = output.exists()
    else:
        from earl_cli.data.published.files import FEATURES, LIST_FOLDER, LIST_NAME

        if output.exists() and not output.is_dir():
            what = "this is a file, and --format pth writes a folder"
            raise UsageError(what, where=str(output), hint="choose another --output-path")
        inside = {path.name for path in output.iterdir()} if output.is_dir() else set()
        taken = (output / LIST_FOLDER / LIST_NAME).exists() or not inside <= {FEATURES, LIST_FOLDER}
    if taken and not force:
        raise OutputError("there is something of this name already", where=str(output), hint="--force writes over it")
