"""``earl sft``: fine-tune a model on token stores; started again, it goes on from its newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sft(
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="A .jsonnet, .json or .yaml file, or a recipe such as sft/simple."),
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option("--model", help="The model to start from: a folder or ORG/NAME[@REV].")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="A token store or published folder; may be repeated.")
    ] = None,
    coefficients: Annotated[
        str | None, typer.Option("--coefficients", help="How often each set occurs in an epoch: 1,0.5")
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option("--validation", help="A token store to validate on; may be repeated.")
    ] = None,
    cot_keys: Annotated[
        str | None, typer.Option("--cot-keys", help="Train to think first, on these keys: plan,objects")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the trained model goes.")] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="The most tokens of a sequence.")
    ] = None,
    save_layout: Annotated[
        str | None, typer.Option("--save-layout", help="native (transformers) or original (Emu3's own).")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the config; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show values, data, steps and memory, and stop.")] = False,
) -> None:
    """Train a model on token stores: earl sft --config embedded/sft --model base/ --data store/ -o my-editor/"""
    from earl_cli.config.loader import resolve
    from earl_cli.config.sft import SftConfig

    given = {
        "model": model,
        "data": data or None,
        "coefficients": [part.strip() for part in coefficients.split(",")] if coefficients else None,
        "validation": validation or None,
        "cot_keys": [part.strip() for part in cot_keys.split(",")] if cot_keys else None,
        "output": output,
        "max_length": max_length,
        "save_layout": save_layout,
        "device": device,
    }
    resolved = resolve(SftConfig, config, sets or [], given)

    from earl_cli.commands.sft_run import show_plan, train

    (show_plan if dry_run else train)(resolved)
