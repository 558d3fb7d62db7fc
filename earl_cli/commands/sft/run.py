"""``earl sft`` with a validated config: show the plan, or train; both run the same checks in the same order."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout

from earl_cli.commands._training import (
    check_before,
    ending,
    multiple,
    positions,
    problem_of,
    refuse_after,
    show_config,
    show_disk,
    show_memory,
    show_sets,
    stopped,
)
from earl_cli.config.loader import Resolved
from earl_cli.config.sft import SftConfig
from earl_cli.console import console
from earl_cli.dashboard import MetricPanel, dashboard, gigabytes, scientific, whole
from earl_cli.data.batches import ExampleData
from earl_cli.files import folder_lock, is_partial
from earl_cli.models.bundle import Base, load_vision_of, open_base
from earl_cli.training.common.checkpoints import (
    CHECKPOINTS,
    TRAINING,
    changed_data,
    check_origin,
    check_unlocked,
    run_origin,
    write_origin,
    writing,
)
from earl_cli.training.common.distributed import (
    rank,
    read_slurm_environment,
    report_once,
    set_single_process_environment,
    uses_bfloat16,
    world_size,
)
from earl_cli.training.common.memory import Disk, ModelShape, check_disk_space, estimate, sft_disk
from earl_cli.training.sft.model import load_trainable, plan_device, save_model
from earl_cli.training.sft.run import SftData, check_resumable, fine_tune, load_data, optimizer_steps, write_gallery

GALLERIES = "validation"


def show_plan(resolved: Resolved[SftConfig]) -> None:
    """Show what is known of a run without reading weights, then the error it would end with, if any."""
    config = resolved.config
    read_slurm_environment()
    console.quiet |= rank() > 0
    problem = problem_of(lambda: _check_before(config))
    base = open_base(config.model)
    data = load_data(config, base.layout, positions(base))
    processes = config.processes or world_size()
    steps = optimizer_steps(config, len(data.train), processes)
    problem = problem or problem_of(lambda: _check(config, base, data))
    problem = problem or problem_of(lambda: check_unlocked(config.output / CHECKPOINTS))
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
    examples = config.batch_size * config.accumulation * processes
    epochs = steps * examples / len(data.train)
    console.say(
        f"{steps} steps of {examples} examples: {multiple(epochs)} epochs of {len(data.train)} examples and "
        f"{lengths.sum():,} tokens"
        + (f"; {rows.thinking} of {len(rows)} rows have a chain of thought" if config.cot_keys else "")
    )
    memory = estimate(
        ModelShape.of(base.parameters, base.config),
        config,
        processes=processes,
        bfloat16=uses_bfloat16(config),
        longest=int(lengths.max()),
    )
    parts = show_memory(memory, base, processes)
    disk = show_disk(sft_disk(config, base, steps))
    _warn(resolved, data, steps)
    plan = {
        "config": values,
        "origins": resolved.origins,
        "data": sets,
        "skipped": data.skipped,
        "over_max_length": data.lengths.over,
        "thinking_rows": rows.thinking,
        "validation_rows": len(data.validation) if data.validation else 0,
        "tokens_an_epoch": int(lengths.sum()),
        "steps": steps,
        "epochs": epochs,
        "memory": parts,
        "disk": disk,
    }
    refuse_after(plan, problem)


def _check_before(config: SftConfig) -> None:
    """Checks before model and data are opened."""
    check_before("sft", config, config.output)


def _check(config: SftConfig, base: Base, data: SftData) -> None:
    """Checks before any weight is read."""
    check_origin(config.output, run_origin("sft", config.model, config.data))
    check_resumable(config, world_size())
    plan_device(base, config, _longest(data))
    check_disk_space(config.output, sft_disk(config, base, optimizer_steps(config, len(data.train), world_size())))


def _longest(data: SftData) -> int:
    return int(data.train.rows.lengths[data.train.order].max())


def _warn(resolved: Resolved[SftConfig], data: SftData, steps: int) -> None:
    """Warn of settings and data that have another effect than expected."""
    config, found = resolved.config, data.lengths
    if data.skipped:
        console.warn(f"{data.skipped} examples have more than {found.limit} tokens and are left out")
    elif found.over:
        console.warn(
            f"{found.over} examples have more than {found.limit} tokens, up to {found.longest}, and are trained on as "
            "they are; too_long=skip leaves them out, too_long=stop refuses them"
        )
    if data.validation_skipped:
        console.warn(f"{data.validation_skipped} validation examples have too many tokens and are left out")
    other = changed_data(config.output, run_origin("sft", config.model, config.data))
    for text in (*config.remarks(steps, resolved.origins), *([other] if other else [])):
        console.warn(text)


def train(resolved: Resolved[SftConfig]) -> None:
    """Train, and write the model."""
    config = resolved.config
    read_slurm_environment()
    if config.sharding != "none":
        set_single_process_environment()
    console.quiet |= rank() > 0  # only the first process prints
    with report_once():
        _check_before(config)
        base = open_base(config.model)
        data = load_data(config, base.layout, positions(base))
        _check(config, base, data)
        steps = optimizer_steps(config, len(data.train), world_size())
        _warn(resolved, data, steps)
        disk = sft_disk(config, base, steps)
        with folder_lock(config.output / CHECKPOINTS, TRAINING) if rank() == 0 else nullcontext():
            _train(config, base, data, disk)


def _train(config: SftConfig, base: Base, data: SftData, disk: Disk) -> None:
    model, placement = load_trainable(base, config, _longest(data))
    console.note(f"{placement} · disk: {disk}")
    if rank() == 0:
        for left in filter(is_partial, config.output.rglob("*")):  # by a process that was killed
            left.unlink()
        write_origin(config.output, run_origin("sft", config.model, config.data))
    vision = load_vision_of(config.model, device=config.device) if _renders_samples(config) else None

    with (
        stopped("step", config.output),
        redirect_stdout(sys.stderr),
        dashboard(f"training {config.output.name}", METRICS, unit="steps") as board,
    ):

        def on_step(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            board.update(step, steps, metrics)

        def on_validation(step: int, validation: ExampleData, again: bool) -> None:
            path = config.output / GALLERIES / f"step-{step:06d}.html"
            if vision is not None and not (again and path.is_file()):
                title = f"{config.output.name}, step {step}"
                write_gallery(
                    model,
                    vision.model,
                    base.layout,
                    validation,
                    config.gallery_examples,
                    base.description.sampling,
                    path,
                    title,
                )

        result = fine_tune(config, model, base, data, on_step, on_validation)
    if rank() > 0:
        return
    with writing("the model", config.output):
        save_model(base, model, config.output, config.save_format, result.weights)
    resumed = f", resumed from step {result.resumed_from}" if result.resumed_from else ""
    loss = f", validation loss {result.validation_loss:.4f}" if result.validation_loss is not None else ""
    console.say(f"{result.steps} steps{resumed}{loss}; {ending(config.output, 'step', result.best)}")
    console.document(
        {
            "model": str(config.output),
            "steps": result.steps,
            "validation_loss": result.validation_loss,
            "resumed_from": result.resumed_from,
            "skipped": data.skipped,
            "best": {"step": result.best[0], "validation_loss": result.best[1]} if result.best else None,
        }
    )


METRICS = (
    MetricPanel("loss", plotted=True),
    MetricPanel("eval_loss", "validation loss", plotted=True),
    MetricPanel("learning_rate", form=scientific, plotted=True),
    MetricPanel("grad_norm", "gradient norm", plotted=True),
    MetricPanel("tokens_per_second", "tokens/s", whole),
    MetricPanel("memory", form=gigabytes),
)


def _renders_samples(config: SftConfig) -> bool:
    """Whether this process renders samples at validations: the first one, where it has the whole weights."""
    whole = not config.sharding.startswith("zero3") and config.quantize == "none"
    return bool(config.validation and config.gallery_examples and whole and rank() == 0)
