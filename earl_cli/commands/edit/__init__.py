"""``earl edit``: edits files, folders and streams; a file that fails doesn't stop the others."""

from __future__ import annotations

import secrets
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from earl_cli import version
from earl_cli.commands._options import OWN, EngineArgOption, EngineOption, sampling_options
from earl_cli.commands.edit.files import find_sources, split_words
from earl_cli.commands.edit.run import EditRequest, EditSummary, ResultKind, edit_all
from earl_cli.commands.edit.targets import Targets
from earl_cli.config.sampling import SEEDS
from earl_cli.console import console, error_document, listed, one_line
from earl_cli.errors import PartialFailureError, UsageError

EXAMPLES_SHOWN = 8


@sampling_options
def edit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='IMAGE... "INSTRUCTION"',
            help="Files, folders, globs or - for stdin; the last word is the instruction, in quotes.",
            show_default=False,
        ),
    ] = None,
    *,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE|DIR/|-", help="Where results go. Beside the photo by default."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    variants: Annotated[
        int, typer.Option("--variants", "-n", min=1, help="Number of edits, each from its own seed.")
    ] = 1,
    grid: Annotated[bool, typer.Option("--grid", help="Also write one image of all variants.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write one image with before and after side by side.")
    ] = False,
    size: Annotated[
        Literal["source", "model"],
        typer.Option("--size", help="source: the photo's own size. model: the model's output as it is."),
    ] = "source",
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=SEEDS - 1,
            help="Seed of the first variant; the next ones count up. Random by default, and shown.",
        ),
    ] = None,
    sampling: Mapping[str, float],
    think: Annotated[
        bool, typer.Option("--think", help="Let the model reason before the edit, and show its reasoning.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="PATH|HUB_ID[@REV]", help="The model. The small one that ships with earl by default."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    engine: EngineOption = "auto",
    engine_arg: EngineArgOption = None,
    image_area: Annotated[
        int | None, typer.Option("--image-area", min=64, help=f"Pixels of the image that the model sees. {OWN}")
    ] = None,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Refuse images with more pixels.")
    ] = 200_000_000,
) -> None:
    """Edit photos by an instruction: earl edit photo.jpg "make it snowy"

    The result is photo.edited.jpg beside the photo, at the photo's size. Nothing is overwritten without --force.
    """
    from earl_cli.generation.vllm.environment import parse_engine_arguments

    names, instruction = split_words(words or [])
    found = find_sources(names)
    sources, failed = found.sources, found.failed
    named = len(sources) + len(failed)
    if found.earlier:
        console.note(f"left out, as results of earlier runs: {listed(found.earlier)}")
    targets = Targets(output, force, several=named > 1)
    chosen: list[tuple[ResultKind, bool]] = [("grid", grid), ("compare", compare)]
    sheets = tuple(kind for kind, wanted in chosen if wanted)
    piped = bool(sources) and targets.to_stdout(sources, len(sheets) or variants)
    if piped and console.json:
        raise UsageError("an image and JSON can't both go to stdout", where="--json", hint="-o FILE")
    console.stdout_is_data = piped
    first = secrets.randbelow(SEEDS) if seed is None else seed
    request = EditRequest(
        instruction=instruction,
        seeds=tuple((first + index) % SEEDS for index in range(variants)),
        sampling=sampling,
        mode="reasoning" if think else "edit",
        size=size,
        sheets=sheets,
        model=model,
        device=device,
        engine=engine,
        engine_args=parse_engine_arguments(engine_arg or []),
        image_area=image_area,
        max_pixels=max_pixels,
    )
    started = time.monotonic()
    with targets:
        summary = edit_all(request, sources, targets, failed, piped)
    _report(request, summary, named, time.monotonic() - started)


def _report(request: EditRequest, summary: EditSummary, named: int, seconds: float) -> None:
    """End of the run: remarks on the instruction, the JSON document, the summary of failures and its exit code."""
    if summary.failed and not summary.results and named == 1:
        raise summary.failed[0].error
    document: dict[str, Any] = {
        "instruction": request.instruction,
        "results": [asdict(result) for result in summary.results],
        "failed": [{"source": each.name, **error_document(each.error)} for each in summary.failed],
        "seconds": round(seconds, 3),
        "version": version(),
    }
    if summary.editor:
        model = summary.editor.model
        document |= {
            "model": model.name,
            "device": str(model.device),
            "engine": summary.editor.engine_name,
            "sampling": summary.editor.settings.sampling.to_dict(),
        }
        document["abilities"] = _abilities(request.instruction, model.abilities)
    if not summary.failed:
        if named > 1:
            console.note(f"{named} images in {seconds:.1f} s")
        console.document(document)
        return
    for each in summary.failed:
        if console.debug:
            traceback.print_exception(each.error)
        hint = f" ({each.error.hint})" if each.error.hint else ""
        console.warn(f"{one_line(each.name)}: {each.error.what}{hint}")
    names = "; ".join(one_line(each.name) for each in summary.failed)
    failure = PartialFailureError(f"{len(summary.failed)} failed, {len(summary.results)} written; failed: {names}")
    console.fail(failure, beside=document)
    raise typer.Exit(failure.exit_code)


def _abilities(instruction: str, abilities: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the model reads the instruction as, for JSON; a note where that differs, a warning where it is unknown."""
    if not abilities:
        return None
    from earl_cli.models.abilities import examples, out_of_range_message, understand

    found, known = understand(instruction, abilities), examples(abilities)
    if found.kind is None:
        console.warn(f"{out_of_range_message(found)}. It can, for instance: {'; '.join(known[:EXAMPLES_SHOWN])}")
    elif found.remark:
        console.note(found.remark)
    understood = found.text if found.kind else None
    return {"in_range": found.kind is not None, "kind": found.kind, "understood_as": understood, "examples": known}
