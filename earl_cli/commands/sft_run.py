"""What ``earl sft`` does once its config is known: show the plan, or train."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout

from earl_cli.commands.training import check_folder, positions, show_config, show_memory, show_sets
from earl_cli.config.loader import Resolved
from earl_cli.config.sft import SftConfig
from earl_cli.console import console
from earl_cli.dashboard import Figure, dashboard, gigabytes, scientific, whole
from earl_cli.data.batches import ExampleData
from earl_cli.files import is_aside
from earl_cli.generation.engine import Sampling
from earl_cli.models.bundle import Base, load_vision_of, open_base, save_trained
from earl_cli.training.checkpoints import CHECKPOINTS, alone_in, written
from earl_cli.training.distributed import adopt_slurm, check_processes, first_speaks, rank, stand_alone, world_size
from earl_cli.training.gallery import draw_gallery
from earl_cli.training.log import check_trackers
from earl_cli.training.memory import Shape, estimate
from earl_cli.training.precision import uses_bfloat16
from earl_cli.training.sft import SftData, fine_tune, load_data, steps_of
from earl_cli.training.trainee import load_trainee, merged

GALLERIES, ADAPTER = "validation", "adapter"


def show_plan(resolved: Resolved[SftConfig]) -> None:
    """Everything that can be known of a run without its weights."""
    config = resolved.config
    base = open_base(config.model)
    data = load_data(config, base.layout, positions(base))
    processes = config.processes or world_size()
    values = show_config(resolved)
    rows = data.train.rows
    sets = [
        {"data": name, "rows": size, "coefficient": round(coefficient, 4), "rows_an_epoch": count, "unreadable": lost}
        for name, size, coefficient, count, lost in zip(
            rows.names, rows.sizes, data.mixture.coefficients, data.mixture.counts, rows.unreadable, strict=True
        )
    ]
    show_sets(sets)
    lengths = rows.lengths[data.train.order]
    steps = steps_of(config, len(data.train), processes)
    pairs = config.batch_size * config.accumulation * processes
    epochs = steps * pairs / len(data.train)
    console.say(
        f"{steps} steps of {pairs} pairs: {epochs:.3g} epochs of {len(data.train)} pairs and {lengths.sum():,} tokens"
        + (f"; {data.skipped} are too long and left out" if data.skipped else "")
        + (f"; {rows.thinking} of {len(rows)} rows have a chain of thought" if config.cot_keys else "")
    )
    memory = estimate(
        Shape.of(base.parameters, base.config),
        config,
        processes=processes,
        bfloat16=uses_bfloat16(config),
        longest=int(lengths.max()),
    )
    parts = show_memory(memory, base, processes)
    console.document(
        {
            "config": values,
            "origins": resolved.origins,
            "data": sets,
            "skipped": data.skipped,
            "thinking_rows": rows.thinking,
            "validation_rows": len(data.validation) if data.validation else 0,
            "tokens_an_epoch": int(lengths.sum()),
            "steps": steps,
            "epochs": epochs,
            "memory": parts,
        }
    )


def train(resolved: Resolved[SftConfig]) -> None:
    """Train, and write the model."""
    config = resolved.config
    adopt_slurm()
    if config.sharding != "none":
        stand_alone()
    console.quiet |= rank() > 0  # of several processes the first speaks
    with first_speaks():
        check_processes(config.processes, config.batch_size, config.accumulation)
        check_trackers(config.trackers)
        check_folder(config.output)
        base = open_base(config.model)
        data = load_data(config, base.layout, positions(base))
        if data.skipped:
            console.warn(f"{data.skipped} pairs have too many tokens and are left out")
        with alone_in(config.output / CHECKPOINTS) if rank() == 0 else nullcontext():
            _train(config, base, data)


def _train(config: SftConfig, base: Base, data: SftData) -> None:
    longest = int(data.train.rows.lengths[data.train.order].max())
    model, place = load_trainee(base, config, longest)
    console.note(str(place))
    if rank() == 0:
        for left in filter(is_aside, config.output.rglob("*")):  # by a process that was killed
            left.unlink()
    vision = load_vision_of(config.model, device=config.device) if _draws(config) else None
    sampling = Sampling(**dict(base.description.content.get("sampling") or {}))

    with redirect_stdout(sys.stderr), dashboard(f"training {config.output.name}", FIGURES, unit="steps") as board:

        def on_step(step: int, steps: int, figures: Mapping[str, float]) -> None:
            board.update(step, steps, figures)

        def on_validation(step: int, held: ExampleData) -> None:
            if vision is not None:
                path = config.output / GALLERIES / f"step-{step:06d}.html"
                title = f"{config.output.name}, step {step}"
                draw_gallery(model, vision.model, base.layout, held, config.gallery_rows, sampling, path, title)

        result = fine_tune(config, model, base.layout, data, on_step, on_validation)
    if rank() > 0:
        return
    with written("the model", config.output):
        if config.lora_rank:
            model.peft_config["default"].base_model_name_or_path = config.model
            model.save_pretrained(str(config.output / ADAPTER), save_embedding_layers=False)  # else it asks the Hub
            save_trained(base, merged(model, base), config.output, config.save_layout)
        else:
            save_trained(base, model, config.output, config.save_layout, state=result.weights)
    resumed = f", resumed from step {result.resumed_from}" if result.resumed_from else ""
    loss = f", validation loss {result.validation_loss:.4f}" if result.validation_loss is not None else ""
    console.say(
        f"{result.steps} steps{resumed}{loss}; the model is in {config.output}, its checkpoints in {CHECKPOINTS}/"
    )
    console.document(
        {
            "model": str(config.output),
            "steps": result.steps,
            "validation_loss": result.validation_loss,
            "resumed_from": result.resumed_from,
            "skipped": data.skipped,
        }
    )


FIGURES = (
    Figure("loss", drawn=True),
    Figure("eval_loss", "validation loss", drawn=True),
    Figure("learning_rate", form=scientific, drawn=True),
    Figure("grad_norm", "gradient norm", drawn=True),
    Figure("tokens_per_second", "tokens/s", whole),
    Figure("memory", form=gigabytes),
)


def _draws(config: SftConfig) -> bool:
    """Whether validations are drawn: where the weights are in one place, by the first process."""
    whole = not config.sharding.startswith("zero3") and config.quantize == "none"
    return bool(config.validation and config.gallery_rows and whole and rank() == 0)
