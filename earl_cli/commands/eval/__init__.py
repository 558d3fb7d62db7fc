"""``earl eval``: evaluate models on benchmarks, resuming from existing results. And ``earl eval list``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from earl_cli.commands._options import (
    API_KEY_VARIABLE,
    OWN,
    TIMEOUT,
    EngineArgOption,
    EngineOption,
    KeyOption,
    TimeoutOption,
    sampling_options,
)
from earl_cli.commands.eval.options import (
    AreaOption,
    GroundOption,
    JudgeAddressOption,
    JudgeDeclarationOption,
    JudgeModelOption,
    LpipsOption,
    ProtocolOption,
    RubricsOption,
    ScoringRequest,
)
from earl_cli.console import console


@sampling_options
def eval(
    *,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            "-b",
            metavar="NAME|FILE.toml|DATA",
            help="A name of earl eval list, a file that declares one, or your own examples; repeatable.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]WHAT",
            help="A model folder or Hub id, embedded, a baseline of earl eval list, results:FOLDER, "
            "https://HOST/v1#MODEL or copy; repeatable.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the results.")] = Path(
        "results"
    ),
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Number of samples, a fixed random subset.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Do part I of N; torchrun's rank by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first edit of each sample.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of edits of each sample.")] = 1,
    size: Annotated[
        Literal["source", "model"] | None,
        typer.Option(
            "--size",
            help="source: at the photo's size. model: the model's output as it is. The benchmark's by default.",
        ),
    ] = None,
    image_area: Annotated[
        int | None, typer.Option("--image-area", min=64, help=f"Pixels of the image that the model sees. {OWN}")
    ] = None,
    think: Annotated[bool, typer.Option("--think", help="Let the model reason before the edit.")] = False,
    sampling: Mapping[str, float],
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    engine: EngineOption = "auto",
    engine_arg: EngineArgOption = None,
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
    endpoint_seed: Annotated[
        bool, typer.Option(help="Send seeds to an image-edit endpoint; some servers refuse them.")
    ] = True,
    endpoint_key_variable: Annotated[
        str,
        typer.Option("--endpoint-key-variable", help="Environment variable with the key of an image-edit endpoint."),
    ] = API_KEY_VARIABLE,
    floor: Annotated[bool, typer.Option(help="Also score the unchanged source as a baseline.")] = True,
    page: Annotated[bool, typer.Option("--report/--no-report", help="Also write report.html.")] = True,
) -> None:
    """Evaluate models on benchmarks: earl eval --benchmark embedded --model embedded

    The same command resumes a stopped or killed run. Of several processes the last one scores.
    """
    from earl_cli.commands.eval.run import EvalRequest, evaluate
    from earl_cli.data.shard_plan import parse_share
    from earl_cli.evaluation.editor_registry import EditorOptions
    from earl_cli.generation.vllm.environment import parse_engine_arguments

    options = EditorOptions(
        device=device,
        mode="reasoning" if think else "edit",
        sampling=sampling,
        image_area=image_area,
        size=size,
        engine=engine,
        engine_args=parse_engine_arguments(engine_arg or []),
        endpoint_key_variable=endpoint_key_variable,
        endpoint_seed=endpoint_seed,
    )
    request = EvalRequest(
        benchmarks=tuple(dict.fromkeys(benchmark or ["embedded"])),
        models=tuple(dict.fromkeys([*(model or ["embedded"]), *(["copy"] if floor else [])])),
        options=options,
        output=output,
        limit=limit,
        seeds=tuple(range(seed, seed + seeds)),
        share=parse_share(shard),
        scoring=ScoringRequest(
            judge,
            judge_model,
            api_key_variable,
            timeout,
            protocol,
            declaration,
            judge_area,
            rubrics,
            ground_score,
            lpips,
        ),
        page=page,
    )
    evaluate(request)


def eval_list() -> None:
    """List the named benchmarks and editors."""
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
    rows.append(["PATH", "your own examples: a folder with a list, .jsonl, .csv, .parquet", "-", "if given", ""])
    console.table(["benchmark", "title", "source", "targets", "note"], rows, title="Benchmarks")
    editors = [["embedded", "the small model that ships with earl"], ["PATH or ORG/NAME", "any EARL model"]]
    editors += [[name, f"baseline: {each.model}"] for name, each in BASELINES.items()]
    editors += [
        ["https://HOST/v1#MODEL", "any OpenAI-compatible image-edit endpoint"],
        ["results:FOLDER", "finished images, named by sample id"],
        ["copy", "the unchanged source, the baseline"],
    ]
    console.table(["editor", "what"], editors, title="Editors")
    console.document(
        {
            "benchmarks": [each.model_dump(mode="json") for each in known.values()],
            "editors": {name: each.model for name, each in BASELINES.items()},
        }
    )
