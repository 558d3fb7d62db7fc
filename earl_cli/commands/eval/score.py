"""``earl eval score``: figures for edits that are there, without drawing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from earl_cli.commands._judge_options import API_KEY_VARIABLE, TIMEOUT, KeyOption, TimeoutOption
from earl_cli.commands.eval.options import (
    AreaOption,
    Asked,
    DeclarationOption,
    GroundOption,
    JudgeAddressOption,
    JudgeModelOption,
    LpipsOption,
    ProtocolOption,
    RubricsOption,
    finish,
    run_document,
    score_folder,
    scoring_of,
    show_runs,
)
from earl_cli.errors import UsageError


def eval_score(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="Folders of earl eval, or files of published JSON lines.")
    ],
    *,
    judge: JudgeAddressOption = None,
    judge_model: JudgeModelOption = None,
    rubrics: RubricsOption = None,
    ground_score: GroundOption = False,
    lpips: LpipsOption = False,
    api_key_variable: KeyOption = API_KEY_VARIABLE,
    timeout: TimeoutOption = TIMEOUT,
    protocol: ProtocolOption = "earl",
    declaration: DeclarationOption = None,
    judge_area: AreaOption = None,
) -> None:
    """Score finished edits again, for instance by another judge: earl eval score results/omniedit/NAME

    The new scores take the place of the old ones; what a judge answered before isn't asked again.
    """
    from earl_cli.evaluation.generating import keys_of_subset
    from earl_cli.evaluation.results import adopt, find_results, load_run

    asked = Asked(
        judge, judge_model, api_key_variable, timeout, protocol, declaration, judge_area, rubrics, ground_score, lpips
    )
    folders = [adopt(place) if place.is_file() else place for place in find_results(results)]
    runs = [load_run(folder, scored=False) for folder in folders]
    if not judge and not any(line.result.gt_edited_image for run in runs for line in run.lines):
        what = "these edits have no true ones to be compared with, so only a judge can score them"
        raise UsageError(what, where="--judge", hint="--judge http://HOST:4877/v1; earl judge serve starts one")
    scoring = scoring_of(asked)
    scored = [score_folder(run, scoring, keys_of_subset(run) if protocol == "paper" else None) for run in runs]
    show_runs(scored)
    finish(scored, scoring, {"results": [run_document(run) for run in scored]})
