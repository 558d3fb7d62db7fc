"""``earl eval list``: what there is to evaluate on, and what can be evaluated."""

from __future__ import annotations

from earl_cli.console import console


def eval_list() -> None:
    """List the benchmarks and the editors that have a name."""
    from earl_cli.evaluation.baselines import BASELINES
    from earl_cli.evaluation.benchmarks import PACKAGE, benchmarks

    known = benchmarks()
    rows = []
    for name, each in known.items():
        columns = [part.columns for part in each.parts]
        target = "yes" if all(column.target for column in columns) else "no"
        places = ", ".join(
            dict.fromkeys("in the package" if part.place.startswith(PACKAGE) else part.place for part in each.parts)
        )
        rows.append([name, each.title, places, target, each.note])
    rows.append(["PATH", "your own pairs: a folder with a list, .jsonl, .csv, .parquet", "-", "if there", ""])
    console.table(["benchmark", "what", "from", "true edits", "note"], rows, title="Benchmarks")
    editors = [["embedded", "the small model that ships with earl"], ["PATH or ORG/NAME", "any EARL model"]]
    editors += [[name, f"baseline: {each.model}"] for name, each in BASELINES.items()]
    editors += [
        ["https://HOST/v1#MODEL", "any OpenAI-compatible image-edit endpoint"],
        ["results:FOLDER", "finished pictures, named by the samples' ids"],
        ["copy", "the unchanged source, the floor"],
    ]
    console.table(["editor", "what"], editors, title="Editors")
    console.document(
        {
            "benchmarks": [each.model_dump(mode="json") for each in known.values()],
            "editors": {name: each.model for name, each in BASELINES.items()},
        }
    )
