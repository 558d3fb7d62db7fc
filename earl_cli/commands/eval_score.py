"""``earl eval score``: figures for edits that are there, without drawing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from earl_cli.commands.evaluating import (
    GroundOption,
    JudgeAddressOption,
    JudgeModelOption,
    LpipsOption,
    RubricsOption,
    judge_of,
    run_document,
    score_folder,
    scoring_of,
    show_runs,
)
from earl_cli.commands.judging import API_KEY_VARIABLE, TIMEOUT, KeyOption, TimeoutOption
from earl_cli.console import console


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
) -> None:
    """Score finished edits again, for instance by another judge: earl eval score results/omniedit/NAME

    The new scores take the place of the old ones; what a judge answered before isn't asked again.
    """
    from earl_cli.evaluation.results import adopt, find_results, load_run

    folders = [adopt(place) if place.is_file() else place for place in find_results(results)]
    runs = [load_run(folder, scored=False) for folder in folders]
    scoring = scoring_of(judge_of(judge, judge_model, api_key_variable, timeout), rubrics, ground_score, lpips)
    scored = [score_folder(run, scoring) for run in runs]
    show_runs(scored)
    console.document({"results": [run_document(run) for run in scored]})
