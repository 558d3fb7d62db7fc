"""``earl tokenize merge``: parts of one pass, or several finished stores, made one store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from earl_cli.console import console


def tokenize_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", help="The token stores, in their order.")],
    *,
    output: Annotated[Path, typer.Option("--output-path", "--output", "-o", help="The store to write or go on with.")],
) -> None:
    """Make one token store of several: earl tokenize merge part-1/ part-2/ -o store/

    Parts of one pass come together as if one machine had made them. Other stores follow one another; they must be
    finished, and of the same vision tokenizer and image area.
    """
    from earl_cli.data.inspecting import missing_shards, pair_count
    from earl_cli.data.merging import merge, rows_planned
    from earl_cli.data.store import open_store

    opened = [open_store(folder) for folder in stores]
    with console.progress("merging", rows_planned(opened), unit="rows") as progress:
        merged = merge(opened, output, progress.advance)
    pairs = pair_count(merged)
    console.say(f"{pairs:,} pairs in {len(merged.shards):,} shards: {output}")
    if missing := missing_shards(merged):
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
