"""The published judge: how its server is started, and a client of whichever judge there is."""

from __future__ import annotations

import json
from collections.abc import Sequence

from earl_cli.errors import UsageError
from earl_cli.openai_client.client import check_keys
from earl_cli.openai_client.retry import Backoff, NotThereError
from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.judge.declarations import Declaration

MODEL = "Qwen/Qwen2.5-VL-72B-Instruct"
LISTED = 8  # models in a message


def serve_command(
    program: str, model: str, host: str, port: int, tensor_parallel: int, extra: Sequence[str] = ()
) -> list[str]:
    """The command line of vLLM's server with the published settings; ``extra`` comes last, so it has the last word."""
    settings = {
        "--host": host,
        "--port": port,
        "--dtype": "bfloat16",
        "--tensor-parallel-size": tensor_parallel,
        "--max-model-len": 4096,
        "--max-num-seqs": 1024,
        "--limit-mm-per-prompt": json.dumps({"image": 2}),
    }
    return [program, "serve", model, *(str(part) for item in settings.items() for part in item), *extra]


def reach(
    api_base: str, model: str | None, key_variable: str, timeout: float, declaration: Declaration
) -> tuple[Judge, list[str]]:
    """A client for one or a few questions, that doesn't try for long, and the names of the models that are served.

    With ``model`` None it is the published one, or the only one there is. Raises UsageError for a model that isn't
    served or a variable without a key, JudgeDownError if nobody answers.
    """
    check_keys([key_variable])
    pacing = Backoff(tries=3, limits=6)
    judge = Judge(api_base, model or MODEL, None, key_variable, timeout=timeout, declaration=declaration, pacing=pacing)
    try:
        served = judge.models()
    except NotThereError:
        if model is None:
            raise
        served = [model]  # some servers list none, and say at the first question if they don't have it
    if model is None and MODEL not in served and len(served) == 1:
        judge.model = served[0]
    if judge.model not in served:
        some = ", ".join(served[:LISTED]) + (", …" if len(served) > LISTED else "")
        what = f"{judge.model} isn't served here"
        raise UsageError(what, where=judge.address, hint=f"it serves {some or 'no model'}")
    return judge, served
