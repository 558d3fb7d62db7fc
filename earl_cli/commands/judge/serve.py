"""``earl judge serve``: vLLM's server with the published judge and settings, in this process's place."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from earl_cli.console import console
from earl_cli.errors import MissingExtraError


def judge_serve(
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="OPTION", help="More options of vllm serve, after --; they override those set here."),
    ] = None,
    *,
    model: Annotated[
        str, typer.Option("--model", help="A Hub id or folder of a model that sees pictures.")
    ] = "Qwen/Qwen2.5-VL-72B-Instruct",
    host: Annotated[
        str, typer.Option("--host", help="Who may ask: 127.0.0.1 is this machine only, 0.0.0.0 is everybody.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where it listens.")] = 4877,
    tensor_parallel: Annotated[
        int | None, typer.Option("--tensor-parallel", min=1, help="GPUs that share the model; all by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command line.")] = False,
) -> None:
    """Serve the judge with vLLM: earl judge serve --host 0.0.0.0"""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("vllm", path=places)
    if program is None and not dry_run:
        raise MissingExtraError("the judge's server needs the package vllm", hint='pip install "earl-cli[vllm]"')
    from earl_cli.rewards.judge.server import serve_command

    gpus = tensor_parallel or _gpus()
    command = serve_command("vllm" if dry_run else program or "vllm", model, host, port, gpus, extra or [])
    if dry_run:
        console.say(shlex.join(command))
        console.document({"command": command})
        return
    console.note(shlex.join(command))
    sys.stdout.flush()
    os.execv(command[0], command)  # signals reach the server itself, and its exit code is this command's


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())
