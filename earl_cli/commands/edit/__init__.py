"""``earl edit``: pictures in, edited pictures out; what one bad file costs is that file."""

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
from earl_cli.console import console, error_document, listed, one_line
from earl_cli.errors import PartialFailureError, UsageError

SEEDS = 2**31
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
        typer.Option("--output", "-o", metavar="FILE|DIR/|-", help="Where to. Beside the original by default."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
    variants: Annotated[int, typer.Option("--variants", "-n", min=1, help="How many different edits.")] = 1,
    grid: Annotated[bool, typer.Option("--grid", help="Also write all variants in one picture.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also write before and after side by side.")] = False,
    size: Annotated[
        Literal["source", "model"],
        typer.Option("--size", help="source: the photo's own size. model: exactly what the model drew."),
    ] = "source",
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, max=SEEDS - 1, help="Variants count up from it. Random by default, and shown."),
    ] = None,
    sampling: Mapping[str, float],
    think: Annotated[
        bool, typer.Option("--think", help="Let the model reason first, and show what it thought.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PATH|HUB_ID[@REV]", help="The small model that ships with earl by default."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    engine: EngineOption = "auto",
    engine_arg: EngineArgOption = None,
    image_area: Annotated[
        int | None, typer.Option("--image-area", min=64, help=f"Pixels of the picture the model sees. {OWN}")
    ] = None,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1, help="Refuse larger pictures.")] = 200_000_000,
) -> None:
    """Edit pictures by an instruction: earl edit photo.jpg "make it snowy"

    The result lies beside the original as photo.edited.jpg, at its size. Nothing is overwritten without --force.
    """
    from earl_cli.generation.vllm.environment import engine_arguments

    names, instruction = split_words(words or [])
    found = find_sources(names)
    sources, failed = found.sources, found.failed
    named = len(sources) + len(failed)
    if found.earlier:
        console.note(f"left out, as earlier runs wrote them: {listed(found.earlier)}")
    targets = Targets(output, force, several=named > 1)
    chosen: list[tuple[ResultKind, bool]] = [("grid", grid), ("compare", compare)]
    sheets = tuple(kind for kind, wanted in chosen if wanted)
    piped = bool(sources) and targets.to_stdout(sources, len(sheets) or variants)
    if piped and console.json:
        raise UsageError("a picture and JSON can't both go to stdout", where="--json", hint="-o FILE")
    console.stdout_is_data = piped
    first = secrets.randbelow(SEEDS) if seed is None else seed
    order = EditRequest(
        instruction=instruction,
        seeds=tuple((first + index) % SEEDS for index in range(variants)),
        sampling=sampling,
        mode="reasoning" if think else "edit",
        size=size,
        sheets=sheets,
        model=model,
        device=device,
        engine=engine,
        engine_args=engine_arguments(engine_arg or []),
        image_area=image_area,
        max_pixels=max_pixels,
    )
    started = time.monotonic()
    with targets:
        outcome = edit_all(order, sources, targets, failed, piped)
    _report(order, outcome, named, time.monotonic() - started)


def _report(order: EditRequest, outcome: EditSummary, named: int, seconds: float) -> None:
    """The end of the run: what the model can't do, the JSON document, the summary of failures and their exit code."""
    if outcome.failed and not outcome.results and named == 1:
        raise outcome.failed[0].error
    document: dict[str, Any] = {
        "instruction": order.instruction,
        "results": [asdict(result) for result in outcome.results],
        "failed": [{"source": each.name, **error_document(each.error)} for each in outcome.failed],
        "seconds": round(seconds, 3),
        "version": version(),
    }
    if outcome.editor:
        model = outcome.editor.model
        document |= {
            "model": model.name,
            "device": str(model.device),
            "engine": outcome.editor.engine_name,
            "sampling": outcome.editor.settings.sampling.to_dict(),
        }
        document["abilities"] = _abilities(order.instruction, model.abilities)
    if not outcome.failed:
        if named > 1:
            console.note(f"{named} pictures in {seconds:.1f} s")
        console.document(document)
        return
    for each in outcome.failed:
        if console.debug:
            traceback.print_exception(each.error)
        hint = f" ({each.error.hint})" if each.error.hint else ""
        console.warn(f"{one_line(each.name)}: {each.error.what}{hint}")
    names = "; ".join(one_line(each.name) for each in outcome.failed)
    summary = PartialFailureError(f"{len(outcome.failed)} failed, {len(outcome.results)} written; failed: {names}")
    console.fail(summary, beside=document)
    raise typer.Exit(summary.exit_code)


def _abilities(instruction: str, abilities: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the model understands the instruction as; said aloud where that isn't what was typed, or nothing."""
    if not abilities:
        return None
    from earl_cli.models.abilities import doubt, examples, understand

    found, known = understand(instruction, abilities), examples(abilities)
    if found.kind is None:
        console.warn(f"{doubt(found)}. It can, for instance: {'; '.join(known[:EXAMPLES_SHOWN])}")
    elif found.remark:
        console.note(found.remark)
    understood = found.text if found.kind else None
    return {"in_range": found.kind is not None, "kind": found.kind, "understood_as": understood, "examples": known}
