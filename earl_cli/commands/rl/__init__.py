"""``earl rl``: train by reinforcement learning, resumed from the newest checkpoint. And ``earl rl plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from earl_cli.errors import UsageError

OPTIONS = {
    "reward_function_api_base": "--api-base",
    "reward_function_api_model_name": "--judge-model",
    "num_iterations": "--iterations",
}


def rl(
    config: Annotated[
        str | None,
        typer.Option(
            "--config", "-c", help="A .jsonnet, .json, .yaml or .toml file, or a recipe such as rl/sft_s__rl_s."
        ),
    ] = None,
    *,
    model: ModelOption = None,
    data: DataOption = None,
    coefficients: CoefficientsOption = None,
    validation: ValidationOption = None,
    reward: Annotated[
        str | None,
        typer.Option("--reward", help="viescore, ground_score, reference, MODULE:FUNCTION, or weights as JSON."),
    ] = None,
    api_base: Annotated[
        str | None, typer.Option("--api-base", help="URL of the judge's server, such as http://localhost:4877/v1.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option("--judge-model", help="Name of the judge's model.")] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Number of iterations in all.")] = None,
    output: OutputOption = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show config, data and memory, and stop.")] = False,
) -> None:
    """Improve a model by reinforcement learning: earl rl --config embedded/rl --data store/ -o better/"""
    from earl_cli.config.loader import resolve
    from earl_cli.config.rl import RlConfig

    given = {
        "model": model,
        "data": data or None,
        "coefficients": listed(coefficients),
        "validation": validation or None,
        "reward": _weights(reward) if reward and reward.startswith("{") else reward,
        "reward_function_api_base": api_base,
        "reward_function_api_model_name": judge_model,
        "num_iterations": iterations,
        "output": output,
        "device": device,
    }
    resolved = resolve(RlConfig, config, sets or [], given, OPTIONS)

    with without_collector():
        from earl_cli.commands.rl.run import show_plan, train

    (show_plan if dry_run else train)(resolved)


def _weights(text: str) -> Any:
    from earl_cli.config.formats import parse_json

    try:
        return parse_json(text)
    except ValueError as error:
        hint = """such as --reward '{"reference": 1, "my_rewards:brightness": 0.2}'"""
        raise UsageError(f"this is no JSON object of names and weights: {error}", where="--reward", hint=hint) from None


def rl_plot(
    runs: Runs,
    *,
    output: Output = Path("curves.png"),
    smooth: Smooth = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Plot only this metric of the log, such as reward/mean or kl; repeatable."),
    ] = None,
    force: Force = False,
) -> None:
    """Plot the metrics of reinforcement learning runs: earl rl plot run-a/ run-b/ -o curves.svg"""
    check_output(output, force)
    from earl_cli.training.common.plots import RL

    plot(RL, runs, output, smooth, metric or [])
