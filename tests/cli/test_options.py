"""Options that commands share: each sampling parameter is one, everywhere where something is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import typer

from earl_cli.commands._options import sampling_options
from earl_cli.commands.edit import edit
from earl_cli.commands.eval import eval
from earl_cli.commands.serve import serve
from earl_cli.config.sampling import PARAMETERS
from earl_cli.errors import UsageError


def command_of(function: Callable[..., None]) -> typer.core.TyperCommand:
    app = typer.Typer()
    app.command()(function)
    return typer.main.get_command(app)  # type: ignore[return-value]


@pytest.mark.parametrize("function", [edit, eval, serve])
def test_every_parameter_is_an_option(function: Callable[..., None]) -> None:
    options = {option.name: option.opts for option in command_of(function).params}
    assert "sampling" not in options
    for parameter in PARAMETERS:
        assert options[parameter.name] == [f"--{parameter.name.replace('_', '-')}"]


def test_a_command_gets_the_parameters_that_were_given() -> None:
    got: list[tuple[str, Mapping[str, float]]] = []

    @sampling_options
    def command(*, name: str = "x", sampling: Mapping[str, float]) -> None:
        got.append((name, sampling))

    run = command_of(command)
    run(["--top-k", "0", "--temperature", "0.5"], standalone_mode=False)
    run(["--name", "y"], standalone_mode=False)
    assert got == [("x", {"temperature": 0.5, "top_k": 0}), ("y", {})]
    with pytest.raises(UsageError, match=r"^--top-p: must be above 0 and at most 1, not 2"):
        run(["--top-p", "2"], standalone_mode=False)
