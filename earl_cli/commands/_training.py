"""What ``earl sft`` and ``earl rl`` share: options, the plan, checks before the start, and the plots of their logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from earl_cli.console import console
from earl_cli.errors import EarlError, OutputError, UsageError

if TYPE_CHECKING:
    from earl_cli.config.loader import Resolved
    from earl_cli.config.rl import RlConfig
    from earl_cli.config.sft import SftConfig
    from earl_cli.models.bundle import Base
    from earl_cli.training.common.curves import RunCurves
    from earl_cli.training.common.memory import Disk, Memory, SamplerMemory
    from earl_cli.training.common.plots import PlotSheet

ModelOption = Annotated[
    str | None, typer.Option("--model", help="The model to start from: a folder, ORG/NAME[@REV] or embedded.")
]
DataOption = Annotated[list[Path] | None, typer.Option("--data", help="A token store or published folder; repeatable.")]
CoefficientsOption = Annotated[
    str | None, typer.Option("--coefficients", help="Copies of each data set in the mixture: 1,0.5")
]
ValidationOption = Annotated[
    list[Path] | None, typer.Option("--validation", help="A token store to validate on; repeatable.")
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run and of its model.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the config (earl config keys); repeatable."),
]


def listed(text: str | None) -> list[str] | None:
    """The parts of a comma-separated option, None if it wasn't given."""
    return [part.strip() for part in text.split(",")] if text else None


def shown(value: Any) -> str:
    """A value of a config for a table."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def multiple(number: float) -> str:
    """How many times something is seen, in three digits and never as a power of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.001 else "less than 0.001"


def show_config(resolved: Resolved[Any]) -> dict[str, Any]:
    """Print every value and its origin; returns the values, ready for JSON."""
    values: dict[str, Any] = resolved.config.model_dump(mode="json")
    rows = [[key, shown(value), resolved.origins.get(key, "default")] for key, value in values.items()]
    console.table(["value", "is", "from"], rows, title="Config")
    return values


def show_sets(sets: list[dict[str, Any]]) -> None:
    """Print a table of the data sets."""
    console.table(list(sets[0]), [[shown(value) for value in each.values()] for each in sets], title="Data")


def show_memory(memory: Memory, base: Base, processes: int, sampler: SamplerMemory | None = None) -> dict[str, int]:
    """Print the memory that each device needs, by purpose, and vLLM's share while it samples; returns the bytes."""
    parts = asdict(memory)
    host = parts.pop("host")
    found = {**parts, "device": memory.device, "host": host}
    rows = [[name if name != "device" else "in all", f"{size / 1e9:.2f}"] for name, size in found.items() if size]
    if sampler is not None:
        least = "" if sampler.gpu else "at least its weights, "
        rows.append([f"vLLM while it samples: {least}{sampler.share:.0%} of a GPU", f"{sampler.bytes / 1e9:.2f}"])
        found["vllm"] = sampler.bytes
    devices = "1 device" if processes == 1 else f"{processes} devices"
    console.table(
        ["memory of one device", "GB"],
        rows,
        title=f"Memory, {base.parameters / 1e6:.1f} M weights on {devices}, by calculation",
    )
    return found


def show_disk(disk: Disk) -> dict[str, int]:
    """Print the disk space that a run needs; returns bytes by purpose."""
    console.say(f"disk: {disk}")
    return {"checkpoint": disk.checkpoint, "model": disk.model, "in_all": disk.total}


# -- checks of the plan and of the run ---------------------------------------------------------------------------------


def check_before(command: str, config: SftConfig | RlConfig, output: Path) -> None:
    """Check the number of processes, the trackers and the folder, before model and data are opened."""
    from earl_cli.training.common.distributed import check_world_size
    from earl_cli.training.common.trackers import check_trackers

    check_world_size(command, config)
    check_trackers(config.trackers)
    if output.exists() and not output.is_dir():
        raise OutputError("this is a file, not a folder for the model", where=str(output))


def problem_of(check: Callable[[], None]) -> EarlError | None:
    """The error that a check raises, if any."""
    try:
        check()
    except EarlError as problem:
        return problem
    return None


def refuse_after(plan: Mapping[str, Any], problem: EarlError | None) -> None:
    """Print the plan's document, then the error that the run would end with, if any."""
    if problem is None:
        console.document(plan)
        return
    console.fail(problem, beside=plan)
    raise typer.Exit(problem.exit_code)


# -- the end of a run --------------------------------------------------------------------------------------------------


@contextmanager
def stopped(unit: str, output: Path) -> Iterator[None]:
    """Report where a training stopped after a signal, once everything is saved."""
    from earl_cli.training.common.stopping import TrainingStopped

    try:
        yield
    except TrainingStopped as stop:
        console.say(f"stopped after {unit} {stop.done}; the same command resumes from there")
        console.document({"model": None, "stopped_after": stop.done, "output": str(output)})
        raise


def ending(output: Path, unit: str, best: tuple[int, float] | None) -> str:
    """The line that names the run's files."""
    from earl_cli.training.common.checkpoints import BEST, CHECKPOINTS

    found = f", the best by validation ({unit} {best[0]}: {best[1]:.4f}) in {BEST}/" if best else ""
    return f"the model is in {output}, its checkpoints in {CHECKPOINTS}/{found}"


def positions(base: Base) -> int:
    """How many positions the model has."""
    return int(base.config["max_position_embeddings"])


# -- plots -------------------------------------------------------------------------------------------------------------

Runs: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Output folders of runs, or their log.jsonl files.")
]
Output: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The image to write: .png or .svg.")
]
Smooth: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--smooth", min=1, help="Window of the moving average, in logged steps; 1: none. A 20th of the log by default."
    ),
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite an image that exists.")]


def check_output(output: Path, force: bool) -> None:
    """Raise UsageError for a name that isn't .png or .svg, OutputError for a file that exists."""
    if output.suffix.lower() not in (".png", ".svg"):
        raise UsageError("metrics are plotted as .png or .svg", where=str(output), hint="-o curves.png")
    if output.is_dir():
        raise UsageError("this is a folder", where=str(output), hint=f"-o {output / 'curves.png'}")
    if output.exists() and not force:
        raise OutputError("the file exists already", where=str(output), hint="--force overwrites it, -o names another")


def plot(sheet: PlotSheet, runs: Sequence[Path], output: Path, smooth: int | None, metrics: Sequence[str]) -> None:
    """Plot the metrics of the runs, and show a summary of each."""
    from earl_cli.training.common.curves import read_runs
    from earl_cli.training.common.plots import choose_panels, write_curves

    found = read_runs(runs)
    chosen = choose_panels(sheet, found, metrics)
    for run in found:
        if run.command not in (None, sheet.command):
            console.warn(f"{run.name} is a run of earl {run.command}, which earl {run.command} plot is for")
    write_curves(output, found, chosen, smooth)
    titles = ["run", "steps", f"last {sheet.measure}", f"best validation {sheet.measure}"]
    console.table(titles, [_row(sheet, run) for run in found])
    console.say(f"plot in {output}")
    console.document(
        {
            "output": str(output),
            "metrics": [panel.key for panel in chosen.panels],
            "runs": [_document(sheet, run) for run in found],
        }
    )


def _row(sheet: PlotSheet, run: RunCurves) -> list[str]:
    last, best = run.last(sheet.metric), run.best(sheet.validation, sheet.goal)
    return [
        run.name,
        f"{run.steps:,}",
        "-" if last is None else f"{last:.4f}",
        f"{best[1]:.4f} at step {best[0]:,}" if best else "-",
    ]


def _document(sheet: PlotSheet, run: RunCurves) -> dict[str, Any]:
    last, best = run.last(sheet.metric), run.best(sheet.validation, sheet.goal)
    return {
        "run": run.name,
        "log": str(run.log),
        "steps": run.steps,
        sheet.measure: last if last is not None and math.isfinite(last) else None,
        f"best_validation_{sheet.measure}": best[1] if best else None,
        "best_validation_step": best[0] if best else None,
    }
