"""``earl sft plot``: the curves of training runs as one picture, and where each of them stands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from earl_cli.console import console
from earl_cli.errors import OutputError, UsageError


def sft_plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Output folders of runs, or their log.jsonl files.")
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The picture to write: .png or .svg.")
    ] = Path("curves.png"),
    smooth: Annotated[
        int | None,
        typer.Option(
            "--smooth", min=1, help="Over how many logged values to smooth; 1: not at all. By default a 20th."
        ),
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option("--figure", help="Only this figure of the logs, such as loss or eval_loss; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a picture that is there.")] = False,
) -> None:
    """Draw the curves of training runs: earl sft plot run-a/ run-b/ -o curves.svg"""
    _check_output(output, force)
    from earl_cli.training.curves import choose_panels, read_runs, write_curves

    found = read_runs(runs)
    panels = choose_panels(found, figure or [])
    write_curves(output, found, panels, smooth)
    rows = []
    for run in found:
        best = f"{run.best[1]:.4f} at step {run.best[0]:,}" if run.best else "-"
        loss = "-" if run.loss is None else f"{run.loss:.4f}"
        rows.append([run.name, f"{run.steps:,}", loss, best])
    console.table(["run", "steps", "last loss", "best validation loss"], rows)
    console.say(f"curves in {output}")
    console.document(
        {
            "output": str(output),
            "figures": [panel.key for panel in panels],
            "runs": [
                {
                    "run": run.name,
                    "log": str(run.log),
                    "steps": run.steps,
                    "loss": run.loss if run.loss is not None and math.isfinite(run.loss) else None,
                    "best_validation_loss": run.best[1] if run.best else None,
                    "best_validation_step": run.best[0] if run.best else None,
                }
                for run in found
            ],
        }
    )


def _check_output(output: Path, force: bool) -> None:
    """Raise UsageError for a name that is no picture's, OutputError for one that is taken."""
    if output.suffix.lower() not in (".png", ".svg"):
        raise UsageError("curves are drawn as .png or .svg", where=str(output), hint="-o curves.png")
    if output.is_dir():
        raise UsageError("this is a folder", where=str(output), hint=f"-o {output / 'curves.png'}")
    if output.exists() and not force:
        raise OutputError("the file exists already", where=str(output), hint="--force overwrites it, -o names another")
