"""``earl sft``: fine-tune a model on token stores; started again, it goes on from its newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from earl_cli.console import console


def sft(
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="A .jsonnet, .json or .yaml file, or a recipe such as embedded/sft."),
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option("--model", help="The model to start from: a folder or ORG/NAME[@REV].")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="A token store; may be repeated.")] = None,
    validation: Annotated[
        list[Path] | None, typer.Option("--validation", help="A token store to validate on; may be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the trained model goes.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the config; may be repeated.")
    ] = None,
) -> None:
    """Train a model on token stores: earl sft --config embedded/sft --model base/ --data store/ -o my-editor/"""
    from earl_cli.config.loader import load_config
    from earl_cli.config.sft import SftConfig

    given = {"model": model, "data": data or None, "validation": validation or None, "output": output, "device": device}
    settings = load_config(SftConfig, config, sets or [], given)

    from earl_cli.models.bundle import load_for_training, save_trained
    from earl_cli.training.sft import CHECKPOINTS, fine_tune

    trainee = load_for_training(settings.model, device=settings.device)
    console.note(str(trainee.plan))
    settings.output.mkdir(parents=True, exist_ok=True)
    with console.progress("training", unit="steps") as progress:

        def on_step(step: int, steps: int, figures: Mapping[str, float]) -> None:
            progress.update(step, steps)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if name in SHOWN)
            if shown:
                console.note(f"step {step}/{steps}: {shown}")

        result = fine_tune(settings, trainee.language, trainee.layout, on_step)
    save_trained(trainee, settings.output)
    resumed = f", resumed from step {result.resumed_from}" if result.resumed_from else ""
    loss = f", validation loss {result.validation_loss:.4f}" if result.validation_loss is not None else ""
    console.say(
        f"{result.steps} steps{resumed}{loss}; the model is in {settings.output}, its checkpoints in {CHECKPOINTS}/"
    )
    console.document(
        {
            "model": str(settings.output),
            "steps": result.steps,
            "validation_loss": result.validation_loss,
            "resumed_from": result.resumed_from,
        }
    )


SHOWN = ("loss", "eval_loss", "grad_norm", "learning_rate")
