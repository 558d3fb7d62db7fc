"""Shared by the commands of ``earl eval``: scoring options, scoring, tables of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from earl_cli.console import console
from earl_cli.errors import EarlError, InputError, PartialFailureError, UsageError

if TYPE_CHECKING:
    from earl_cli.evaluation.results import EvalRun
    from earl_cli.evaluation.scoring import Scoring
    from earl_cli.evaluation.statistics import Estimate

JudgeAddressOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="URL",
        envvar="APP__REWARD_FUNCTION_API_BASE",
        help="URL of the judge's server, such as http://localhost:4877/v1; needed for VIEScore.",
    ),
]
JudgeModelOption = Annotated[
    str | None,
    typer.Option(
        "--judge-model",
        help="Name of the judge's model. By default that of the published reward, or the only one served.",
    ),
]
RubricsOption = Annotated[
    Path | None, typer.Option("--rubrics", metavar="FILE", help="Rubrics in place of the package's.")
]
GroundOption = Annotated[
    bool, typer.Option("--ground-score", help="Also let the judge score how close an edit is to the target.")
]
LpipsOption = Annotated[
    bool, typer.Option("--lpips", help="Also compute LPIPS; needs torchvision, which downloads weights.")
]
ProtocolOption = Annotated[
    Literal["earl", "paper"],
    typer.Option("--protocol", help="paper: the published samples and judge requests, at 256 x 256 pixels."),
]
JudgeDeclarationOption = Annotated[
    str | None,
    typer.Option(
        "--declaration",
        metavar="NAME|FILE.toml",
        help="Request format of the judge: earl, viescore-published, or a file. The protocol's by default.",
    ),
]
AreaOption = Annotated[
    int | None,
    typer.Option("--judge-area", min=1, help="Most pixels of an image that the judge sees. The protocol's by default."),
]
CACHE = "judge.sqlite"
MAIN = ("vie_all", "vie_sc", "vie_pq", "reference", "psnr", "ssim", "l1")
MOST_COLUMNS = 7
MOST_REASONS = 3
SCORING_LOCK = ".scoring.lock"


@dataclass(frozen=True)
class ScoringRequest:
    """The scoring options of a command line: judge, request format, extra metrics."""

    judge: str | None = None
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    protocol: Literal["earl", "paper"] = "earl"
    declaration: str | None = None
    area: int | None = None
    rubrics: Path | None = None
    ground_score: bool = False
    lpips: bool = False


def scoring_of(request: ScoringRequest) -> Scoring:
    """The scoring that was requested, with a connection to the judge if a URL is given.

    Raises UsageError, MissingExtraError or JudgeDownError before anything is sampled.
    """
    from earl_cli.evaluation.metrics import DEFAULT, available
    from earl_cli.evaluation.scoring import PROTOCOLS, Scoring
    from earl_cli.rewards.judge.declarations import load_declaration, load_rubrics
    from earl_cli.rewards.judge.server import open_judge

    metrics = (*DEFAULT, "lpips") if request.lpips else DEFAULT
    available(metrics)
    protocol = PROTOCOLS[request.protocol]
    declaration = load_declaration(request.declaration or protocol.declaration)
    area = request.area or protocol.area or declaration.area
    rubrics = load_rubrics(request.rubrics)
    if request.ground_score and not request.judge:
        raise UsageError("the ground score needs a judge", where="--ground-score", hint="--judge http://HOST:4877/v1")
    judge = None
    if request.judge:
        judge = open_judge(request.judge, request.model, request.key_variable, request.timeout, declaration)[0]
        most = f"at most {area} pixels" if area else "as they are"
        console.note(f"protocol {request.protocol}: {judge.model} sees all images of a sample at one size, {most}")
        console.note(f"request format: {declaration.describe()}")
    return Scoring(judge, rubrics, metrics, request.ground_score, area, request.protocol)


def finish(runs: Sequence[EvalRun], scoring: Scoring, document: Mapping[str, Any]) -> None:
    """Print the document of a command that scores; exit with an error where no edit could be scored."""
    invalid = [run for run in runs if run.lines and not any(line.result.edited_image for line in run.lines)]
    if invalid:
        console.warn(f"{_names(invalid)} gave no image: {invalid[0].lines[0].result.problem}")
    failure = _failure(runs, scoring)
    if failure is None:
        console.document(document)
        return
    console.fail(failure, beside=document)
    raise typer.Exit(failure.exit_code)


def _failure(runs: Sequence[EvalRun], scoring: Scoring) -> EarlError | None:
    """The error of runs in which nothing was scored; None if there are none."""
    if empty := [run for run in runs if not run.lines and run.unreadable]:
        return InputError(f"no row of {empty[0].benchmark} can be used: {empty[0].unreadable[0].problem}")
    judged = [run for run in runs if run.lines and scoring.judge]
    lost = [run for run in judged if not any("vie_all" in line.scores for line in run.lines)]
    if not lost or scoring.judge is None:
        return None
    why = next((why for run in lost for line in run.lines for why in line.missing.values()), "")
    what = f"the judge gave no score for any edit of {_names(lost)}: {why}"
    kind = EarlError if len(lost) == len(judged) else PartialFailureError
    return kind(what, where=scoring.judge.address, hint="earl judge check tests it; earl eval score scores again")


def _names(runs: Sequence[EvalRun]) -> str:
    from earl_cli.evaluation.comparing import joined

    return joined([f"{run.editor} on {run.benchmark}" for run in runs])


def score_folder(run: EvalRun, scoring: Scoring, keys: Sequence[tuple[int, int]] | None = None) -> EvalRun:
    """Score a run's lines, or those of ``keys``, with progress, and write scores and summary into its folder.

    The judge's replies are cached there. Only one process at a time scores a folder; others block until it is done.
    """
    from dataclasses import replace

    from earl_cli.evaluation.results import SUMMARY, write_object, write_scored
    from earl_cli.evaluation.scoring import score
    from earl_cli.evaluation.statistics import summary_document
    from earl_cli.files import file_lock
    from earl_cli.openai_client.retry import Backoff

    wanted = None if keys is None else set(keys)
    chosen = replace(run, lines=tuple(each for each in run.lines if wanted is None or each.result.key in wanted))
    if scoring.judge is not None:
        judge = replace(scoring.judge, cache=run.folder / CACHE, backoff=Backoff())
        scoring = replace(scoring, judge=judge)
    with file_lock(run.folder / SCORING_LOCK):
        with console.progress(f"scoring {run.editor} on {run.benchmark}", len(chosen.lines), unit="edits") as progress:
            lines = score(chosen, scoring, progress.update)
        write_scored(run.folder, lines, scoring.describe())
        scored = replace(chosen, lines=tuple(lines), scoring=scoring.describe())
        write_object(run.folder / SUMMARY, summary_document(scored))
    return scored


def show_runs(runs: Sequence[EvalRun]) -> None:
    """A table for each benchmark: editors, metrics with 95 % intervals, counts of invalid and missing results."""
    from earl_cli.evaluation.comparing import comparability
    from earl_cli.evaluation.results import COLUMNS
    from earl_cli.evaluation.statistics import columns_of, summarize
    from earl_cli.evaluation.tables import floor_last

    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        mine = floor_last([run for run in runs if run.benchmark == benchmark])
        names = columns_of(mine)
        if len(names) > MOST_COLUMNS:
            names = [name for name in names if name in MAIN]
        groups = [summarize(run)[0] for run in mine]
        lost = any(estimate.missing for group in groups for estimate in group.columns.values())
        invalid = any(group.invalid for group in groups)
        heads = ["editor", "edits", *(COLUMNS[name].title for name in names)]
        rows = []
        for run, group in zip(mine, groups, strict=True):
            row = [run.editor, str(group.samples)]
            row += [cell(group.columns.get(name), COLUMNS[name].digits) for name in names]
            row += [str(group.invalid)] if invalid else []
            row += [str(max((each.missing for each in group.columns.values()), default=0))] if lost else []
            rows.append(row)
        heads += ["invalid"] if invalid else []
        heads += ["missing"] if lost else []
        console.table(heads, rows, title=benchmark)
        reasons = {why for run in mine for line in run.lines for why in line.missing.values()}
        for why in sorted(reasons)[:MOST_REASONS]:
            console.note(f"missing: {why}")
        for run in mine:
            if run.unreadable:
                first = run.unreadable[0].problem
                console.warn(f"{run.editor}: {len(run.unreadable)} rows can't be used; the first: {first}")
        for sentence in comparability(mine):
            console.warn(sentence)


def cell(estimate: Estimate | None, digits: int) -> str:
    """mean (low to high), or a dash."""
    if estimate is None or math.isnan(estimate.mean):
        return "-"
    if math.isnan(estimate.low):
        return f"{estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def run_document(run: EvalRun) -> dict[str, Any]:
    """A run for ``--json``: its folder and metrics."""
    from earl_cli.evaluation.statistics import group_document, summarize

    return {
        "benchmark": run.benchmark,
        "editor": run.editor,
        "folder": str(run.folder),
        "unreadable": len(run.unreadable),
        **group_document(summarize(run)[0]),
    }


def write_tables(output: Path, runs: Sequence[EvalRun], pages: bool) -> dict[str, str]:
    """tables.md, tables.tex and, with ``pages``, report.html in ``output``; their paths by kind."""
    from earl_cli.evaluation import tables
    from earl_cli.files import atomic_write

    files = {"markdown": output / "tables.md", "latex": output / "tables.tex"}
    for kind, text in (("markdown", tables.markdown(runs)), ("latex", tables.latex(runs))):
        with atomic_write(files[kind]) as aside:
            aside.write_text(text, encoding="utf-8")
    if pages:
        from earl_cli.evaluation.report import report
        from earl_cli.images.html_gallery import write_page

        files["report"] = output / "report.html"
        write_page(files["report"], report(runs, "Evaluation"))
    return {kind: str(path) for kind, path in files.items()}
