"""``earl judge``: what there is around the judge of rewards; the work is in the commands below it."""

from __future__ import annotations

import typer


def judge(ctx: typer.Context) -> None:
    """Serve, try and check the judge that rewards edits."""
    print(ctx.get_help())
