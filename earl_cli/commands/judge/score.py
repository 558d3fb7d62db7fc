"""``earl judge score``: what one edit is worth, in figures and in the judge's words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from earl_cli.commands._judge_options import (
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


def judge_score(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The photo before.")],
    edited: Annotated[Path, typer.Argument(metavar="EDIT", help="The photo after.")],
    instruction: Annotated[str, typer.Argument(metavar="INSTRUCTION", help="What the editor was told.")],
    *,
    target: Annotated[
        Path | None, typer.Option("--target", metavar="FILE", help="The true edit; the ground score needs it.")
    ] = None,
    reward: Annotated[
        str,
        typer.Option("--reward", help="viescore, ground_score, sqrt(viescore_pqxground_score), or module:function."),
    ] = "viescore",
    rubrics: Annotated[
        Path | None, typer.Option("--rubrics", metavar="FILE", help="Your own wording of the judge's task.")
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
            help="Pictures of more pixels are made smaller for the judge. As declared by default.",
        ),
    ] = None,
) -> None:
    """Score one edit: earl judge score photo.jpg photo.edited.jpg "make it snowy" """
    from earl_cli.rewards.judge.declarations import load_declaration
    from earl_cli.rewards.judge.rubrics import load_rubrics
    from earl_cli.rewards.judge.server import reach
    from earl_cli.rewards.registry import choose
    from earl_cli.rewards.reward import Edit
    from earl_cli.rewards.viescore import JUDGED

    declared = load_declaration(declaration)
    area = image_area or declared.area
    pixels = [None if path is None else _pixels(path, area) for path in (source, edited, target)]
    wording = load_rubrics(rubrics)
    judge = reach(api_base, model, api_key_variable, timeout, declared)[0] if reward in JUDGED else None
    assert pixels[0] is not None
    edit = Edit(str(edited), instruction, pixels[0], pixels[1], pixels[2])
    (score,) = choose(reward, judge, wording)([edit])
    document = {
        "reward": reward,
        "model": judge.model if judge else None,
        "declaration": judge.declaration.describe() if judge else None,
        "value": score.value,
        "parts": dict(score.parts),
        "reason": score.reason,
    }
    if score.value is None:
        hint = "--target names the true edit" if target is None and "no true edit" in score.reason else None
        error = EarlError(f"there is no score: {' '.join(score.reason.split())}", where=str(edited), hint=hint)
        console.fail(error, beside=document)
        raise typer.Exit(error.exit_code)
    rows = [[name, f"{value:.2f}"] for name, value in score.parts.items() if name != reward]
    console.table(["part", "of 10" if judge else "score"], [*rows, [reward, f"{score.value:.2f}"]])
    if score.reason:
        console.block(score.reason)
    console.document(document)


def _pixels(path: Path, area: int | None) -> Pixels:
    """A picture uint8[h, w, 3] of at most about ``area`` pixels, if that is given."""
    import numpy as np

    from earl_cli.images.image_file import open_picture

    picture = open_picture(path).rgb
    shrink = min(1.0, (area / (picture.width * picture.height)) ** 0.5) if area else 1.0
    if shrink < 1:
        picture = picture.resize((max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink))))
    return np.asarray(picture)
