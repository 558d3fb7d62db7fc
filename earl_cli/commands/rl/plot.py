"""``earl rl plot``: the curves of reinforcement learning as one picture, and where each run stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from earl_cli.commands._plotting import Force, Output, Runs, Smooth, check_output, plot


def rl_plot(
    runs: Runs,
    *,
    output: Output = Path("curves.png"),
    smooth: Smooth = None,
    figure: Annotated[
        list[str] | None,
        typer.Option("--figure", help="Only this figure of the logs, such as reward or kl; may be repeated."),
    ] = None,
    force: Force = False,
) -> None:
    """Draw the curves of reinforcement learning: earl rl plot run-a/ run-b/ -o curves.svg"""
    check_output(output, force)
    from earl_cli.training.common.plots import RL

    plot(RL, runs, output, smooth, figure or [])
