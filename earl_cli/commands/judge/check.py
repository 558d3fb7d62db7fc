"""``earl judge check``: is a judge there, which models has it, and can its answer be read?"""

from __future__ import annotations

import time

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

SIDE = 64


def judge_check(
    *,
    api_base: ApiBaseOption = API_BASE,
    model: JudgeOption = None,
    api_key_variable: KeyOption = API_KEY_VARIABLE,
    declaration: DeclarationOption = DECLARATION,
    timeout: TimeoutOption = TIMEOUT,
) -> None:
    """Ask a judge one small question, and see that its answer can be read: earl judge check"""
    import numpy as np

    from earl_cli.rewards.judge.client import Question
    from earl_cli.rewards.judge.declarations import load_declaration
    from earl_cli.rewards.judge.rubrics import asked, load_rubrics
    from earl_cli.rewards.judge.server import reach

    judge, served = reach(api_base, model, api_key_variable, timeout, load_declaration(declaration))
    red, blue = (np.full((SIDE, SIDE, 3), color, np.uint8) for color in ((200, 30, 30), (30, 30, 200)))
    text = asked(load_rubrics().semantic_consistency, "make the red square blue")
    start = time.perf_counter()
    (answer,) = judge.ask_all([Question(text, (red, blue))])
    seconds = time.perf_counter() - start
    document = {
        "api_base": judge.address,
        "models": served,
        "model": judge.model,
        "declaration": judge.declaration.describe(),
        "seconds": round(seconds, 3),
        "scores": answer.numbers,
        "reasoning": answer.text,
    }
    if answer.numbers is None:
        error = EarlError(answer.text, where=judge.address, hint=f"{judge.model} may be no judge: try another --model")
        console.fail(error, beside=document)
        raise typer.Exit(error.exit_code)
    numbers = ", ".join(f"{number:g}" for number in answer.numbers)
    rows = [["address", judge.address], ["models", ", ".join(served)], ["asked", judge.model]]
    rows += [["declared as", judge.declaration.describe()]]
    rows += [["answered in", f"{seconds:.2f} s"], ["a red square made blue", f"{numbers} of 10"]]
    console.table(["judge", "found"], rows)
    console.say("its answer can be read")
    console.document(document)
