"""Options that several commands share (sampling, engine, judge), and their start without garbage collection."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field
from functools import wraps
from typing import Annotated, Any, Literal

import typer

from earl_cli.config.sampling import PARAMETERS, kind_of, problem
from earl_cli.errors import UsageError

OWN = "The model's own by default."
EngineOption = Annotated[
    Literal["auto", "transformers", "vllm"],
    typer.Option("--engine", help="The sampling engine. auto: vllm for a large model on a GPU, if it is installed."),
]
EngineArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg", metavar="KEY=VALUE", help="An argument of vLLM, such as tensor_parallel_size=2; repeatable."
    ),
]


API_BASE, API_KEY_VARIABLE, TIMEOUT = "http://localhost:4877/v1", "OPENAI_API_KEY", 120.0
DECLARATION = "earl"
ApiBaseOption = Annotated[
    str, typer.Option("--api-base", envvar="APP__REWARD_FUNCTION_API_BASE", help="URL of the judge's server.")
]
JudgeOption = Annotated[
    str | None,
    typer.Option("--model", help="Name of the judge's model. By default the published one, or the only one served."),
]
KeyOption = Annotated[str, typer.Option("--api-key-variable", help="Environment variable with the API key.")]
DeclarationOption = Annotated[
    str,
    typer.Option(
        "--declaration",
        metavar="NAME|FILE.toml",
        help="Request format of the judge: earl, viescore-published, or a file.",
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Timeout of one request, in seconds.")]


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with an option for each sampling parameter, such as --top-k, in place of its argument ``sampling``.

    The argument gets those that were given, by the parameter's name. A value that isn't allowed is a UsageError.
    """

    @wraps(command)
    def with_options(**arguments: Any) -> None:
        sampling = {}
        for parameter in PARAMETERS:
            value = arguments.pop(parameter.name)
            if value is not None:
                if wrong := problem(parameter, value):
                    raise UsageError(wrong, where=_flag(parameter))
                sampling[parameter.name] = value
        command(sampling=sampling, **arguments)

    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for each in signature.parameters.values():
        parameters += map(_option, PARAMETERS) if each.name == "sampling" else [each]
    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options


def _option(parameter: Field[Any]) -> inspect.Parameter:
    option = typer.Option(_flag(parameter), help=f"{parameter.metadata['help']} {OWN}")
    annotation = Annotated[kind_of(parameter) | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(parameter: Field[Any]) -> str:
    return f"--{parameter.name.replace('_', '-')}"


@contextmanager
def without_collector() -> Iterator[None]:
    """Without garbage collection: imports and loading make millions of permanent objects, and run a quarter faster."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
