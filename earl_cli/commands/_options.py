"""Which engine samples: the options that commands with a model share."""

from __future__ import annotations

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
