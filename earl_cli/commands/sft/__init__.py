"""``earl sft``: fine-tune on token stores, resumed from the newest checkpoint. And ``earl sft plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from earl_cli.commands._options import without_collector
from earl_cli.commands._training import (
    CoefficientsOption,
    DataOption,
    DeviceOption,
    Force,
    ModelOption,
    Output,
    OutputOption,
    Runs,
    SetOption,
    Smooth,
    ValidationOption,
    check_output,
    listed,
    plot,
)


def sft(
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="A .jsonnet, .json, .yaml or .toml file, or a recipe such as sft/simple."),
    ] = None,
    *,
    model: ModelOption = None,
    data: DataOption = None,
    coefficients: CoefficientsOption = None,
    validation: ValidationOption = None,
    cot_keys: Annotated[
        str | None, typer.Option("--cot-keys", help="Train with a chain of thought made of these keys: plan,objects")
    ] = None,
    output: OutputOption = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help="Most tokens of a sequence.")] = None,
    save_format: Annotated[
        str | None, typer.Option("--save-format", help="native (transformers) or original (Emu3's own).")
    ] = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show config, data, steps and memory, and stop.")] = False,
) -> None:
    """Fine-tune a model on token stores: earl sft --config embedded/sft --model base/ --data store/ -o my-editor/"""
    from earl_cli.config.loader import resolve
    from earl_cli.config.sft import SftConfig

    given = {
        "model": model,
        "data": data or None,
        "coefficients": listed(coefficients),
        "validation": validation or None,
        "cot_keys": listed(cot_keys),
        "output": output,
        "max_length": max_length,
        "save_format": save_format,
        "device": device,
    }
    resolved = resolve(SftConfig, config, sets or [], given)

    with without_collector():
        from earl_cli.commands.sft.run import show_plan, train

    (show_plan if dry_run else train)(resolved)


def sft_plot(
    runs: Runs,
    *,
    output: Output = Path("curves.png"),
    smooth: Smooth = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Plot only this metric of the log, such as loss or eval_loss; repeatable."),
    ] = None,
    force: Force = False,
) -> None:
    """Plot the metrics of fine-tuning runs: earl sft plot run-a/ run-b/ -o curves.svg"""
    check_output(output, force)
    from earl_cli.training.common.plots import SFT

    plot(SFT, runs, output, smooth, metric or [])
