"""Which judge the commands of ``earl judge`` ask: the options that they share."""

from __future__ import annotations

from typing import Annotated

import typer

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
