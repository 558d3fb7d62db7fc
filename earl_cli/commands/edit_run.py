"""The work of ``earl edit``: open a few pictures, sample their edits in one batch, save each as soon as it is there."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from earl_cli.commands.edit_files import EXTENSIONS, Failed, Source, Targets
from earl_cli.console import console
from earl_cli.errors import InputError, explain

if TYPE_CHECKING:
    from PIL.Image import Image

    from earl_cli.generation.editing import Draft
    from earl_cli.generation.loading import Editor, EngineName
    from earl_cli.images.picture import Picture

Kind = Literal["edit", "grid", "compare"]
VARIANTS_AT_ONCE, VLLM_AT_ONCE = 8, 64


@dataclass(frozen=True)
class Order:
    """What the person asked for. ``sampling`` has only what was said; ``sheets`` are "grid" and "compare"."""

    instruction: str
    seeds: tuple[int, ...]
    sampling: Mapping[str, float]
    mode: Literal["edit", "reasoning"]
    size: Literal["source", "model"]
    sheets: tuple[Kind, ...]
    model: str | None
    device: str
    engine: EngineName
    engine_args: Mapping[str, Any]
    image_area: int | None
    max_pixels: int


@dataclass(frozen=True)
class Result:
    """One picture that was written; ``output`` is None for stdout. A grid or a comparison shows several edits."""

    kind: Kind
    source: str
    output: str | None
    seeds: tuple[int, ...]
    width: int
    height: int
    thoughts: str | None = None
    problem: str | None = None


@dataclass
class Outcome:
    """What came of an order so far; ``editor`` is None as long as no picture could be opened."""

    failed: list[Failed]
    results: list[Result] = field(default_factory=list)
    editor: Editor | None = None

    @contextmanager
    def going_on(self, name: str) -> Iterator[None]:
        """A failure in here is noted under ``name`` and ends nothing else."""
        try:
            yield
        except BrokenPipeError:
            raise
        except Exception as failure:  # whatever is wrong with one picture must not cost the others
            self.note(name, failure)

    def note(self, name: str, failure: Exception) -> None:
        """Remember a failure; its message says where, if it doesn't yet."""
        error = explain(failure)
        error.where = error.where or name
        self.failed.append(Failed(name, error))


@dataclass(frozen=True)
class Opened:
    """A picture that is ready to be edited, and the names of its results; none where they go to stdout."""

    source: Source
    picture: Picture
    paths: tuple[Path, ...]


def edit_all(
    order: Order, sources: Sequence[Source], targets: Targets, failed: Sequence[Failed], piped: bool
) -> Outcome:
    """Edit every source; one that fails is noted and the others go on. The model is loaded when the first is open."""
    outcome = Outcome(list(failed))
    last = 0
    while last < len(sources):
        start = last
        last = min(start + _at_once(outcome.editor, len(order.seeds)), len(sources))
        batch: list[Opened] = []
        for source in sources[start:last]:
            with outcome.going_on(source.name):
                batch.append(_open(source, order, targets, piped))
        if not batch:
            continue
        if outcome.editor is None:
            with _without_collector():
                outcome.editor = _load(order)
        editor = outcome.editor
        span = f"{start + 1}" if last == start + 1 else f"{start + 1}-{last}"
        label = "editing" if len(sources) == 1 else f"editing {span} of {len(sources)}"
        for opened, drafts in zip(batch, _drafts(order, editor, batch, label, outcome), strict=True):
            with outcome.going_on(opened.source.name):
                _finish(order, opened, drafts, editor=editor, targets=targets, outcome=outcome)
    return outcome


def _at_once(editor: Editor | None, variants: int) -> int:
    """Pictures of a batch; vLLM fills its own from many."""
    most = VLLM_AT_ONCE if editor is not None and editor.engine_name == "vllm" else VARIANTS_AT_ONCE
    return max(1, most // variants)


def _open(source: Source, order: Order, targets: Targets, piped: bool) -> Opened:
    from earl_cli.images.picture import open_picture

    if source.path is None and sys.stdin.isatty():
        raise InputError("nothing is piped into stdin", where="-", hint="earl edit - ... < photo.jpg")
    picture = open_picture(source.path or sys.stdin.buffer, name=source.name, max_pixels=order.max_pixels)
    for note in picture.notes:
        console.note(f"{source.name}: {note}")
    paths = () if piped else tuple(targets.path(source, picture.format) for _ in order.seeds)
    return Opened(source, picture, paths)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Imports and loading make millions of objects that stay; looking for garbage among them takes a quarter longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _load(order: Order) -> Editor:
    from earl_cli.generation.loading import load_editor

    editor = load_editor(
        order.model,
        device=order.device,
        sampling=order.sampling,
        mode=order.mode,
        image_area=order.image_area,
        engine=order.engine,
        engine_args=order.engine_args,
    )
    console.note(f"{editor.model.name}: {editor.model.plan} · {editor.engine_name}")
    return editor


def _drafts(order: Order, editor: Editor, batch: Sequence[Opened], label: str, outcome: Outcome) -> list[list[Draft]]:
    """The drafts of each picture of the batch. If the batch fails, each is tried alone: one may be at fault."""
    from earl_cli.generation.editing import Job, draft

    jobs = [Job(opened.picture.rgb, order.instruction, order.seeds) for opened in batch]
    try:
        with console.progress(label, unit="tokens") as progress:
            return draft(editor.model, editor.engine, jobs, editor.settings, progress.update)
    except Exception as failure:  # noted, or tried again one by one
        if len(batch) > 1:
            return [drafts for opened in batch for drafts in _drafts(order, editor, [opened], label, outcome)]
        outcome.note(batch[0].source.name, failure)
        return [[]]


def _finish(
    order: Order, opened: Opened, drafts: Sequence[Draft], *, editor: Editor, targets: Targets, outcome: Outcome
) -> None:
    """Decode, compose and save all variants of one picture, and the sheets that show several."""
    from earl_cli.generation.editing import decoded, render, sheet

    if not drafts:
        return
    before = decoded(editor.model, drafts[0].source)
    images = []
    for index, draft in enumerate(drafts):
        name = opened.source.name if len(drafts) == 1 else f"{opened.source.name}, seed {draft.seed}"
        if order.mode != "edit":
            console.say(f"reasoning: {draft.answer.thoughts or '(none)'}")
        with outcome.going_on(name):
            image = render(editor.model, opened.picture.rgb, before, draft, order.size)
            images.append(image)
            if opened.paths or not order.sheets:
                path = opened.paths[index] if opened.paths else None
                outcome.results.append(_save(order, "edit", image, path, [draft], opened, editor))
    for kind in order.sheets if images else ():
        shown = images if kind == "grid" else [opened.picture.rgb.resize(images[0].size), *images]
        path = targets.beside(opened.paths[0], kind) if opened.paths else None
        tiles = sheet(shown, columns=None if kind == "grid" else len(shown))
        outcome.results.append(_save(order, kind, tiles, path, drafts, opened, editor))


def _save(
    order: Order, kind: Kind, image: Image, path: Path | None, drafts: Sequence[Draft], opened: Opened, editor: Editor
) -> Result:
    """Write one picture, to stdout where it has no path, with what is needed to make it again."""
    from earl_cli.generation.editing import provenance
    from earl_cli.images.picture import save_picture

    name = opened.source.name
    seeds = tuple(draft.seed for draft in drafts)
    shown = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    metadata = provenance(editor.model.name, order.instruction, shown, editor.settings)
    if path:
        save_picture(image, path, like=opened.picture, metadata=metadata)
    else:
        encoded = io.BytesIO()
        form = opened.picture.format if opened.picture.format in EXTENSIONS else "PNG"
        save_picture(image, encoded, like=opened.picture, format=form, metadata=metadata)
        sys.stdout.buffer.write(encoded.getvalue())
        sys.stdout.buffer.flush()
    console.say(f"{name} -> {path or 'stdout'}  ({image.width} x {image.height}, seed {shown})")
    output = str(path) if path else None
    if kind != "edit":
        return Result(kind, name, output, seeds, image.width, image.height)
    answer = drafts[0].answer
    if answer.problem:
        console.warn(f"{name}: {answer.problem}")
    return Result(kind, name, output, seeds, image.width, image.height, answer.thoughts, answer.problem)
