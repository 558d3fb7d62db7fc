"""Options that several commands share (engine, judge), and their start without garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer

EngineOption = Annotated[
    Literal["auto", "transformers", "vllm"],
    typer.Option("--engine", help="What samples. auto: vllm for a large model on a GPU, if it is installed."),
]
EngineArgOption = Annotated[
    list[str] | None,
    typer.Option("--engine-arg", metavar="KEY=VALUE", help="An argument of vLLM, such as tensor_parallel_size=2."),
]


API_BASE, API_KEY_VARIABLE, TIMEOUT = "http://localhost:4877/v1", "OPENAI_API_KEY", 120.0
DECLARATION = "earl"
ApiBaseOption = Annotated[
    str, typer.Option("--api-base", envvar="APP__REWARD_FUNCTION_API_BASE", help="The judge's address.")
]
JudgeOption = Annotated[
    str | None, typer.Option("--model", help="Which of its models; the published judge, or the only one.")
]
KeyOption = Annotated[str, typer.Option("--api-key-variable", help="The environment variable that holds the key.")]
DeclarationOption = Annotated[
    str,
    typer.Option(
        "--declaration", metavar="NAME|FILE.toml", help="How it is asked: earl, viescore-published, or a file of yours."
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")]


@contextmanager
def without_collector() -> Iterator[None]:
    """Imports and loading make millions of objects that stay; looking for garbage among them takes a quarter longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
