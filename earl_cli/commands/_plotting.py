"""What ``earl sft plot`` and ``earl rl plot`` share: their options, the picture, and the table beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from earl_cli.console import console
from earl_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from earl_cli.training.common.curves import Run
    from earl_cli.training.common.plots import Sheet

Runs: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Output folders of runs, or their log.jsonl files.")
]
Output: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The picture to write: .png or .svg.")
]
Smooth: TypeAlias = Annotated[
    int | None,
    typer.Option("--smooth", min=1, help="Over how many logged values to smooth; 1: not at all. By default a 20th."),
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Write over a picture that is there.")]


def check_output(output: Path, force: bool) -> None:
    """Raise UsageError for a name that is no picture's, OutputError for one that is taken."""
    if output.suffix.lower() not in (".png", ".svg"):
        raise UsageError("curves are drawn as .png or .svg", where=str(output), hint="-o curves.png")
    if output.is_dir():
        raise UsageError("this is a folder", where=str(output), hint=f"-o {output / 'curves.png'}")
    if output.exists() and not force:
        raise OutputError("the file exists already", where=str(output), hint="--force overwrites it, -o names another")


def plot(sheet: Sheet, runs: Sequence[Path], output: Path, smooth: int | None, figures: Sequence[str]) -> None:
    """Draw the runs on this sheet, and say where each of them stands."""
    from earl_cli.training.common.curves import read_runs
    from earl_cli.training.common.plots import choose_panels, write_curves

    found = read_runs(runs)
    chosen = choose_panels(sheet, found, figures)
    for run in found:
        if run.command not in (None, sheet.command):
            console.warn(f"{run.name} is a run of earl {run.command}, whose curves earl {run.command} plot draws")
    write_curves(output, found, chosen, smooth)
    titles = ["run", "steps", f"last {sheet.measure}", f"best validation {sheet.measure}"]
    console.table(titles, [_row(sheet, run) for run in found])
    console.say(f"curves in {output}")
    console.document(
        {
            "output": str(output),
            "figures": [panel.key for panel in chosen.panels],
            "runs": [_document(sheet, run) for run in found],
        }
    )


def _row(sheet: Sheet, run: Run) -> list[str]:
    last, best = run.last(sheet.measure), run.best(sheet.validation, sheet.goal)
    return [
        run.name,
        f"{run.steps:,}",
        "-" if last is None else f"{last:.4f}",
        f"{best[1]:.4f} at step {best[0]:,}" if best else "-",
    ]


def _document(sheet: Sheet, run: Run) -> dict[str, Any]:
    last, best = run.last(sheet.measure), run.best(sheet.validation, sheet.goal)
    return {
        "run": run.name,
        "log": str(run.log),
        "steps": run.steps,
        sheet.measure: last if last is not None and math.isfinite(last) else None,
        f"best_validation_{sheet.measure}": best[1] if best else None,
        "best_validation_step": best[0] if best else None,
    }
