"""``earl tokenize verify``: every shard and every row of token stores checked, every fault named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from earl_cli.console import console
from earl_cli.errors import InputError


def tokenize_verify(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", help="One or several token stores.")],
) -> None:
    """Check every shard and every row of token stores: earl tokenize verify store/"""
    from earl_cli.data.inspecting import pair_count
    from earl_cli.data.store import open_store
    from earl_cli.data.verifying import Problem, verify

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
                pairs = pair_count(store)
                shards = f"{len(store.shards):,} shard{'' if len(store.shards) == 1 else 's'}"
                console.say(f"{folder}: {pairs:,} pairs in {shards}: no problem found")
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
        hint="delete the files that are damaged, and run the command again that made the store" if opened else None,
    )
    console.fail(failure, beside={"stores": documents})
    raise typer.Exit(failure.exit_code)
