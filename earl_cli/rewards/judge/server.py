"""The published judge: the command that serves it, and a client to try a judge with."""

from __future__ import annotations

import json
from collections.abc import Sequence

from earl_cli.errors import UsageError
from earl_cli.openai_client.client import check_keys
from earl_cli.openai_client.retry import Backoff, NotFoundError
from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.judge.declarations import Declaration

PUBLISHED_MODEL = "Qwen/Qwen2.5-VL-72B-Instruct"
IMAGES_PER_PROMPT = 3
MAX_LISTED = 8  # models in an error message


def server_command(
    program: str, model: str, host: str, port: int, tensor_parallel: int, extra: Sequence[str] = ()
) -> list[str]:
    """The command line of vLLM's server with the published settings; the options in ``extra`` override them.

    One setting differs: a prompt may have three images in place of two, because pairwise comparison shows the source
    and both edits.
    """
    settings = {
        "--host": host,
        "--port": port,
        "--dtype": "bfloat16",
        "--tensor-parallel-size": tensor_parallel,
        "--max-model-len": 4096,
        "--max-num-seqs": 1024,
        "--limit-mm-per-prompt": json.dumps({"image": IMAGES_PER_PROMPT}),
    }
    return [program, "serve", model, *(str(part) for item in settings.items() for part in item), *extra]


def open_judge(
    api_base: str, model: str | None, key_variable: str, timeout: float, declaration: Declaration
) -> tuple[Judge, list[str]]:
    """A client for one or a few prompts, with few retries, and the names of the server's models.

    With ``model`` None it uses the published model, or the server's only one. Raises UsageError for a model that isn't
    served or a variable without a key, JudgeDownError if the server doesn't answer.
    """
    check_keys([key_variable])
    judge = Judge(
        api_base,
        model or PUBLISHED_MODEL,
        api_key_variable=key_variable,
        timeout=timeout,
        declaration=declaration,
        backoff=Backoff(attempts=3, rate_limit_attempts=6),
    )
    try:
        served = judge.models()
    except NotFoundError:
        if model is None:
            raise
        served = [model]  # some servers have no list; the first prompt shows whether they have the model
    if model is None and PUBLISHED_MODEL not in served and len(served) == 1:
        judge.model = served[0]
    if judge.model not in served:
        listed = ", ".join(served[:MAX_LISTED]) + (", …" if len(served) > MAX_LISTED else "")
        what = f"{judge.model} isn't served here"
        raise UsageError(what, where=judge.address, hint=f"it serves {listed or 'no model'}")
    return judge, served
