"""``earl eval report``: one page, and tables for papers, of results from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from earl_cli.commands.eval.options import run_document, show_runs
from earl_cli.console import console


def eval_report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="Folders of earl eval, or files of published JSON lines.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html", help="Where the page goes.")] = Path(
        "report.html"
    ),
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also tables in Markdown.")
    ] = None,
    latex: Annotated[Path | None, typer.Option("--latex", metavar="FILE", help="Also LaTeX tables.")] = None,
    title: Annotated[str, typer.Option("--title", help="The page's title.")] = "Evaluation",
    entries: Annotated[
        int, typer.Option("--entries", min=0, help="So many samples of each benchmark in the gallery.")
    ] = 200,
) -> None:
    """Write one page of several results: earl eval report results -o report.html"""
    from earl_cli.evaluation import tables
    from earl_cli.evaluation.report import report, write_report
    from earl_cli.evaluation.results import find_results, load_run
    from earl_cli.files import whole_file
    from earl_cli.images.html_gallery import check_page_name

    check_page_name(output)
    runs = [load_run(place) for place in find_results(results)]
    files = {"report": output}
    for kind, path, text in (("markdown", markdown, tables.markdown), ("latex", latex, tables.latex)):
        if path is not None:
            with whole_file(path) as aside:
                aside.write_text(text(runs), encoding="utf-8")
            files[kind] = path
    write_report(output, report(runs, title, entries))
    show_runs(runs)
    for path in files.values():
        console.say(str(path))
    written = {kind: str(path) for kind, path in files.items()}
    console.document({"results": [run_document(run) for run in runs], **written})
