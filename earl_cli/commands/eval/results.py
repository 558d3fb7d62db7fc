"""``earl eval compare``, ``earl eval report`` and ``earl eval score``: commands for results that exist."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from earl_cli.commands._options import (
    API_KEY_VARIABLE,
    DECLARATION,
    TIMEOUT,
    DeclarationOption,
    KeyOption,
    TimeoutOption,
)
from earl_cli.commands.eval.options import (
    CACHE,
    JudgeAddressOption,
    JudgeModelOption,
    RubricsOption,
)
from earl_cli.console import console
from earl_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from earl_cli.evaluation.results import EvalRun
    from earl_cli.evaluation.statistics import Difference
    from earl_cli.rewards.judge.pairwise import Preference


from earl_cli.commands.eval.options import (
    AreaOption,
    GroundOption,
    JudgeDeclarationOption,
    LpipsOption,
    ProtocolOption,
    ScoringRequest,
    finish,
    run_document,
    score_folder,
    scoring_of,
    show_runs,
)

BATCH_SIZE = 32


def eval_compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Results of one editor.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Results of another one on the same benchmark.")],
    *,
    pairwise: Annotated[
        bool, typer.Option("--pairwise", help="Also let the judge choose the better of two edits, in both orders.")
    ] = False,
    judge: JudgeAddressOption = None,
    judge_model: JudgeModelOption = None,
    rubrics: RubricsOption = None,
    api_key_variable: KeyOption = API_KEY_VARIABLE,
    declaration: DeclarationOption = DECLARATION,
    timeout: TimeoutOption = TIMEOUT,
) -> None:
    """Compare two editors sample by sample: earl eval compare results/omniedit/A results/omniedit/B

    Shows the difference of B to A with a 95 % interval, a p-value, and the number of samples that B wins.
    """
    from earl_cli.evaluation.comparing import comparability
    from earl_cli.evaluation.statistics import columns_of, compare, finite
    from earl_cli.rewards.judge.declarations import load_declaration
    from earl_cli.rewards.judge.server import open_judge

    client = None
    if pairwise:
        if not judge:
            raise UsageError(
                "a pairwise comparison needs a judge", where="--pairwise", hint="--judge http://HOST:4877/v1"
            )
        client = open_judge(judge, judge_model, api_key_variable, timeout, load_declaration(declaration))[0]
    first, second = _only(a), _only(b)
    warnings = comparability([first, second])
    if first.benchmark != second.benchmark:
        warnings.insert(0, f"these are results on different benchmarks: {first.benchmark} and {second.benchmark}.")
    found = {name: compare(first, second, name) for name in columns_of([first, second])}
    differences = {name: each for name, each in found.items() if each is not None}
    if not differences and not pairwise:
        what = "no sample has a metric in both"
        raise InputError(what, where=f"{a}, {b}", hint="earl eval score computes them")
    console.say(f"A: {first.editor} ({a})")
    console.say(f"B: {second.editor} ({b})")
    _show(differences)
    document: dict[str, Any] = {"a": str(a), "b": str(b), "warnings": warnings}
    document["columns"] = {name: finite(vars(each)) for name, each in differences.items()}
    if client is not None:
        document["pairwise"] = _pairwise(first, second, client, rubrics)
    for sentence in warnings:
        console.warn(sentence)
    console.document(document)


def _only(place: Path) -> EvalRun:
    from earl_cli.evaluation.results import find_results, load_run

    found = find_results([place])
    if len(found) > 1:
        some = ", ".join(str(each) for each in found[:8])
        raise UsageError(f"there are {len(found)} results here", where=str(place), hint=f"name one of {some}")
    return load_run(found[0])


def _show(differences: dict[str, Difference]) -> None:
    from earl_cli.evaluation.results import COLUMNS

    rows = []
    for name, each in differences.items():
        digits = COLUMNS[name].digits
        interval = "-" if math.isnan(each.low) else f"{each.low:+.{digits}f} to {each.high:+.{digits}f}"
        rows.append(
            [
                COLUMNS[name].title,
                f"{each.mean_a:.{digits}f}",
                f"{each.mean_b:.{digits}f}",
                f"{each.difference:+.{digits}f}",
                interval,
                "< 0.001" if each.p < 0.001 else f"{each.p:.3f}",
                f"{each.wins} / {each.ties} / {each.losses}",
            ]
        )
    if rows:
        console.table(["metric", "A", "B", "B - A", "95 % interval", "p", "B better / same / worse"], rows)
        images = max(each.pictures for each in differences.values())
        console.note(f"intervals and p are over {images} source images; seeds of a sample are averaged")


def _pairwise(first: EvalRun, second: EvalRun, judge: Any, rubrics: Path | None) -> dict[str, Any]:
    from dataclasses import asdict, replace

    from earl_cli.evaluation.scoring import pairs_of, shared_keys
    from earl_cli.openai_client.retry import Backoff
    from earl_cli.rewards.judge.declarations import load_rubrics
    from earl_cli.rewards.judge.pairwise import count_preferences, first_position_rate, prefer, sign_test_p

    judge = replace(judge, cache=second.folder / CACHE, backoff=Backoff())
    wording = load_rubrics(rubrics)
    keys = shared_keys(first, second)
    if not keys:
        raise InputError("the two have no sample and seed in common", where=f"{first.folder}, {second.folder}")
    preferences: list[Preference] = []
    verdicts: list[dict[str, Any]] = []
    with console.progress("comparing", len(keys), unit="pairs") as progress:
        for start in range(0, len(keys), BATCH_SIZE):
            pairs = pairs_of(first, second, keys[start : start + BATCH_SIZE], judge.declaration.area)
            answers = prefer(judge, wording, pairs)
            preferences += answers
            verdicts += [
                {"id": pair.id, "verdict": each.verdict, "consistent": each.consistent, "missing": each.missing}
                for pair, each in zip(pairs, answers, strict=True)
            ]
            progress.update(min(start + BATCH_SIZE, len(keys)), len(keys))
    result = count_preferences(preferences)
    rows = [["A", str(result.a)], ["B", str(result.b)], ["neither", str(result.ties)]]
    rows += [["of these, decided by the order", str(result.inconsistent)], ["no reply", str(result.missing)]]
    console.table([f"{judge.model} prefers", "edits"], rows)
    p, rate = sign_test_p(result.a, result.b), first_position_rate(preferences)
    bias = "" if math.isnan(rate) else f"; the edit shown first won {rate:.0%} of the time"
    console.say(f"p {p:.3f} (sign test){bias}")
    shown_first = None if math.isnan(rate) else rate
    about = {"judge": judge.model, "declaration": judge.declaration.describe()}
    return {**about, **asdict(result), "p": p, "first_rate": shown_first, "verdicts": verdicts}


def eval_report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="Folders of earl eval, or files of published JSON lines.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html", help="The page to write.")] = Path(
        "report.html"
    ),
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write tables in Markdown.")
    ] = None,
    latex: Annotated[Path | None, typer.Option("--latex", metavar="FILE", help="Also write tables in LaTeX.")] = None,
    title: Annotated[str, typer.Option("--title", help="Title of the page.")] = "Evaluation",
    entries: Annotated[
        int, typer.Option("--entries", min=0, help="Most samples of each benchmark in the gallery.")
    ] = 200,
) -> None:
    """Write a page and tables of any results: earl eval report results -o report.html"""
    from earl_cli.evaluation import tables
    from earl_cli.evaluation.report import report
    from earl_cli.evaluation.results import find_results, load_run
    from earl_cli.files import atomic_write
    from earl_cli.images.html_gallery import check_page_name, write_page

    check_page_name(output)
    runs = [load_run(place) for place in find_results(results)]
    files = {"report": output}
    for kind, path, text in (("markdown", markdown, tables.markdown), ("latex", latex, tables.latex)):
        if path is not None:
            with atomic_write(path) as aside:
                aside.write_text(text(runs), encoding="utf-8")
            files[kind] = path
    write_page(output, report(runs, title, entries))
    show_runs(runs)
    for path in files.values():
        console.say(str(path))
    written = {kind: str(path) for kind, path in files.items()}
    console.document({"results": [run_document(run) for run in runs], **written})


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
    declaration: JudgeDeclarationOption = None,
    judge_area: AreaOption = None,
) -> None:
    """Score finished edits again, for instance by another judge: earl eval score results/omniedit/NAME

    The new scores replace the old ones; cached replies of a judge are used again.
    """
    from earl_cli.evaluation.generating import keys_of_subset
    from earl_cli.evaluation.results import adopt, find_results, load_run

    request = ScoringRequest(
        judge, judge_model, api_key_variable, timeout, protocol, declaration, judge_area, rubrics, ground_score, lpips
    )
    folders = [adopt(place) if place.is_file() else place for place in find_results(results)]
    runs = [load_run(folder, scored=False) for folder in folders]
    if not judge and not any(line.result.gt_edited_image for run in runs for line in run.lines):
        what = "these edits have no target images, so only a judge can score them"
        raise UsageError(what, where="--judge", hint="--judge http://HOST:4877/v1; earl judge serve starts one")
    scoring = scoring_of(request)
    scored = [score_folder(run, scoring, keys_of_subset(run) if protocol == "paper" else None) for run in runs]
    show_runs(scored)
    finish(scored, scoring, {"results": [run_document(run) for run in scored]})
