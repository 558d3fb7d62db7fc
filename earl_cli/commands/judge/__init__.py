"""``earl judge``: ``check`` a judge, ``score`` one edit, ``serve`` the published judge with vLLM."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from earl_cli.commands._options import (
    API_BASE,
    API_KEY_VARIABLE,
    DECLARATION,
    TIMEOUT,
    ApiBaseOption,
    DeclarationOption,
    JudgeOption,
    KeyOption,
    TimeoutOption,
)
from earl_cli.console import console
from earl_cli.errors import EarlError

if TYPE_CHECKING:
    from earl_cli.rewards.reward import Pixels


import os
import shlex
import shutil
import sys

from earl_cli.errors import MissingExtraError

SIDE = 64


def judge(ctx: typer.Context) -> None:
    """Serve, try and check the judge model that scores edits."""
    print(ctx.get_help())


def judge_check(
    *,
    api_base: ApiBaseOption = API_BASE,
    model: JudgeOption = None,
    api_key_variable: KeyOption = API_KEY_VARIABLE,
    declaration: DeclarationOption = DECLARATION,
    timeout: TimeoutOption = TIMEOUT,
) -> None:
    """Send a judge one small request and check that its reply can be parsed: earl judge check"""
    import numpy as np

    from earl_cli.rewards.judge.client import JudgePrompt
    from earl_cli.rewards.judge.declarations import format_rubric, load_declaration, load_rubrics
    from earl_cli.rewards.judge.server import open_judge

    judge, served = open_judge(api_base, model, api_key_variable, timeout, load_declaration(declaration))
    red, blue = (np.full((SIDE, SIDE, 3), color, np.uint8) for color in ((200, 30, 30), (30, 30, 200)))
    text = format_rubric(load_rubrics().semantic_consistency, "make the red square blue")
    start = time.perf_counter()
    (judgement,) = judge.ask_all([JudgePrompt(text, (red, blue))])
    seconds = time.perf_counter() - start
    document = {
        "api_base": judge.address,
        "models": served,
        "model": judge.model,
        "declaration": judge.declaration.describe(),
        "seconds": round(seconds, 3),
        "scores": judgement.scores,
        "reasoning": judgement.text,
    }
    if judgement.scores is None:
        error = EarlError(
            judgement.text, where=judge.address, hint=f"{judge.model} may not be a vision model: try another --model"
        )
        console.fail(error, beside=document)
        raise typer.Exit(error.exit_code)
    numbers = ", ".join(f"{number:g}" for number in judgement.scores)
    rows = [["address", judge.address], ["models", ", ".join(served)], ["model", judge.model]]
    rows += [["declaration", judge.declaration.describe()]]
    rows += [["time", f"{seconds:.2f} s"], ["a red square made blue", f"{numbers} of 10"]]
    console.table(["judge", "found"], rows)
    console.say("its reply can be parsed")
    console.document(document)


def judge_score(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The photo before.")],
    edited: Annotated[Path, typer.Argument(metavar="EDIT", help="The photo after.")],
    instruction: Annotated[str, typer.Argument(metavar="INSTRUCTION", help="The instruction of the edit.")],
    *,
    target: Annotated[
        Path | None, typer.Option("--target", metavar="FILE", help="The target image; the ground score needs it.")
    ] = None,
    reward: Annotated[
        str,
        typer.Option("--reward", help="viescore, ground_score, sqrt(viescore_pqxground_score), or module:function."),
    ] = "viescore",
    rubrics: Annotated[
        Path | None, typer.Option("--rubrics", metavar="FILE", help="Rubrics in place of the package's.")
    ] = None,
    api_base: ApiBaseOption = API_BASE,
    model: JudgeOption = None,
    api_key_variable: KeyOption = API_KEY_VARIABLE,
    declaration: DeclarationOption = DECLARATION,
    timeout: TimeoutOption = TIMEOUT,
    image_area: Annotated[
        int | None,
        typer.Option(
            "--image-area",
            min=1,
            help="Downscale larger images for the judge to this many pixels. The declaration's by default.",
        ),
    ] = None,
) -> None:
    """Score one edit: earl judge score photo.jpg photo.edited.jpg "make it snowy" """
    from earl_cli.rewards.judge.declarations import load_declaration, load_rubrics
    from earl_cli.rewards.judge.server import open_judge
    from earl_cli.rewards.registry import load_reward
    from earl_cli.rewards.reward import NO_TARGET, Edit
    from earl_cli.rewards.viescore import JUDGED_REWARDS

    declared = load_declaration(declaration)
    area = image_area or declared.area
    pixels = [None if path is None else _pixels(path, area) for path in (source, edited, target)]
    wording = load_rubrics(rubrics)
    judge = open_judge(api_base, model, api_key_variable, timeout, declared)[0] if reward in JUDGED_REWARDS else None
    assert pixels[0] is not None
    edit = Edit(str(edited), instruction, pixels[0], pixels[1], pixels[2])
    (score,) = load_reward(reward, judge, wording)([edit])
    document = {
        "reward": reward,
        "model": judge.model if judge else None,
        "declaration": judge.declaration.describe() if judge else None,
        "value": score.value,
        "parts": dict(score.parts),
        "reason": score.reason,
    }
    if score.value is None:
        hint = "--target names the target image" if target is None and NO_TARGET in score.reason else None
        error = EarlError(f"there is no score: {' '.join(score.reason.split())}", where=str(edited), hint=hint)
        console.fail(error, beside=document)
        raise typer.Exit(error.exit_code)
    rows = [[name, f"{value:.2f}"] for name, value in score.parts.items() if name != reward]
    console.table(["part", "of 10" if judge else "score"], [*rows, [reward, f"{score.value:.2f}"]])
    if score.reason:
        console.block(score.reason)
    console.document(document)


def _pixels(path: Path, area: int | None) -> Pixels:
    """An image uint8[h, w, 3], downscaled to about ``area`` pixels if it has more."""
    import numpy as np

    from earl_cli.images.image_file import open_image

    image = open_image(path).rgb
    shrink = min(1.0, (area / (image.width * image.height)) ** 0.5) if area else 1.0
    if shrink < 1:
        image = image.resize((max(1, round(image.width * shrink)), max(1, round(image.height * shrink))))
    return np.asarray(image)


def judge_serve(
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="OPTION", help="More options of vllm serve, after --; they override EARL's."),
    ] = None,
    *,
    model: Annotated[
        str, typer.Option("--model", help="Hub id or folder of a vision language model.")
    ] = "Qwen/Qwen2.5-VL-72B-Instruct",
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on: 127.0.0.1 is this machine only, 0.0.0.0 every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 4877,
    tensor_parallel: Annotated[
        int | None, typer.Option("--tensor-parallel", min=1, help="GPUs that share the model; all by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command line, and stop.")] = False,
) -> None:
    """Serve the judge with vLLM: earl judge serve --host 0.0.0.0"""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("vllm", path=places)
    if program is None and not dry_run:
        raise MissingExtraError("the judge's server needs the package vllm", hint='pip install "earl-cli[vllm]"')
    from earl_cli.rewards.judge.server import server_command

    gpus = tensor_parallel or _gpus()
    command = server_command("vllm" if dry_run else program or "vllm", model, host, port, gpus, extra or [])
    if dry_run:
        console.say(shlex.join(command))
        console.document({"command": command})
        return
    console.note(shlex.join(command))
    sys.stdout.flush()
    os.execv(command[0], command)  # the server gets signals itself, and its exit code is this command's


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())
