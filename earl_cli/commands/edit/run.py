"""The work of ``earl edit``: open some images, sample their edits in one batch, save them during the next batch."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from earl_cli.commands._options import without_collector
from earl_cli.commands.edit.files import Failed, InputFile
from earl_cli.commands.edit.targets import EXTENSIONS, Targets
from earl_cli.console import console
from earl_cli.errors import InputError, OutputError, explain

if TYPE_CHECKING:
    from threading import Event

    from PIL.Image import Image

    from earl_cli.generation.editing import SampledEdit
    from earl_cli.generation.editor import Editor, EngineName
    from earl_cli.images.image_file import ImageFile

ResultKind = Literal["edit", "grid", "compare"]


@dataclass(frozen=True)
class EditRequest:
    """A command line of ``earl edit``. ``sampling`` has only the options given; ``sheets`` are "grid" and "compare"."""

    instruction: str
    seeds: tuple[int, ...]
    sampling: Mapping[str, float]
    mode: Literal["edit", "reasoning"]
    size: Literal["source", "model"]
    sheets: tuple[ResultKind, ...]
    model: str | None
    device: str
    engine: EngineName
    engine_args: Mapping[str, Any]
    image_area: int | None
    max_pixels: int


@dataclass(frozen=True)
class EditOutput:
    """One image that was written; ``output`` is None for stdout. A grid or comparison has several seeds."""

    kind: ResultKind
    source: str
    output: str | None
    seeds: tuple[int, ...]
    width: int
    height: int
    thoughts: str | None = None
    problem: str | None = None


@dataclass
class EditRecord:
    """Results, failures and notes of one image; only one thread works on an image at a time."""

    results: list[EditOutput] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)

    def show_notes(self, name: str, notes: Iterable[str]) -> None:
        """Show notes on this image, each once."""
        for note in notes:
            if note not in self.notes:
                self.notes.add(note)
                console.note(f"{name}: {note}")

    @contextmanager
    def recording(self, name: str) -> Iterator[None]:
        """Record an exception under ``name`` instead of raising it."""
        try:
            yield
        except BrokenPipeError:
            raise
        except Exception as failure:  # one bad image must not stop the others
            self.add_failure(name, failure)

    def add_failure(self, name: str, failure: Exception) -> None:
        """Record a failure, with the image as its place if it names none."""
        error = explain(failure)
        error.where = error.where or name
        self.failed.append(Failed(name, error))


@dataclass(frozen=True)
class EditSummary:
    """Results and failures in the order of the images; ``editor`` is None if no image could be opened."""

    failed: list[Failed]
    results: list[EditOutput]
    editor: Editor | None


@dataclass(frozen=True)
class OpenedInput:
    """An image that is ready to be edited.

    ``paths`` and ``sheets`` are the output paths of its results, empty where they go to stdout.
    """

    source: InputFile
    image: ImageFile
    paths: tuple[Path, ...]
    sheets: tuple[Path, ...]
    targets: Targets
    record: EditRecord


def edit_all(
    request: EditRequest, sources: Sequence[InputFile], targets: Targets, failed: Sequence[Failed], piped: bool
) -> EditSummary:
    """Edit every source; failures are recorded, not raised. The model is loaded once the first image is open."""
    records = [EditRecord() for _ in sources]
    images = _openable(request, sources, records, targets, piped)
    editor = None
    if first := next(images, None):
        with without_collector():
            editor = _load(request)
        _edit(request, editor, chain([first], images), len(sources))
    return EditSummary(
        [*failed, *(failure for each in records for failure in each.failed)],
        [result for each in records for result in each.results],
        editor,
    )


def _edit(request: EditRequest, editor: Editor, images: Iterable[OpenedInput], total: int) -> None:
    """Sample batch after batch; sampled edits are saved in a thread beside that."""
    from earl_cli.generation.editing import EditJob
    from earl_cli.generation.pipeline import EditSteps

    finished = 0

    def job(opened: OpenedInput) -> EditJob:
        return EditJob(opened.image.rgb, request.instruction, request.seeds)

    def finish(opened: OpenedInput, drafts: Sequence[SampledEdit], ending: Event) -> None:
        nonlocal finished
        _finish(request, opened, drafts, editor, ending)
        finished += 1

    def fail(opened: OpenedInput, failure: Exception) -> None:
        opened.record.add_failure(opened.source.name, failure)

    at_once = max(1, editor.batch_size // len(request.seeds))
    with console.progress("editing", unit="tokens" if total == 1 else "images") as progress:

        def show(done: int, expected: int) -> None:
            if total > 1:
                progress.update(finished, total, f"sampling {done / expected:.0%}")
            else:
                progress.update(done, expected)

        for _ in editor.process(images, EditSteps(job, finish, fail), at_once=at_once, on_progress=show):
            if total > 1:
                progress.update(finished, total)


def _openable(
    request: EditRequest, sources: Sequence[InputFile], records: Sequence[EditRecord], targets: Targets, piped: bool
) -> Iterator[OpenedInput]:
    """The images that can be opened, each opened when it is requested."""
    for source, own in zip(sources, records, strict=True):
        with own.recording(source.name):
            yield _open(source, request, targets, piped, own)


def _open(source: InputFile, request: EditRequest, targets: Targets, piped: bool, record: EditRecord) -> OpenedInput:
    from earl_cli.images.image_file import open_image

    if source.path is None and sys.stdin.isatty():
        raise InputError("stdin is a terminal, not a pipe", where="-", hint="earl edit - ... < photo.jpg")
    image = open_image(source.path or sys.stdin.buffer, name=source.name, max_pixels=request.max_pixels)
    record.show_notes(source.name, image.notes)
    paths = () if piped else tuple(targets.path(source, image.format) for _ in request.seeds)
    sheets = () if piped else tuple(targets.beside(paths[0], kind, source) for kind in request.sheets)
    return OpenedInput(source, image, paths, sheets, targets, record)


def _load(request: EditRequest) -> Editor:
    from earl_cli.generation.editor import load_editor

    editor = load_editor(
        request.model,
        device=request.device,
        sampling=request.sampling,
        mode=request.mode,
        image_area=request.image_area,
        engine=request.engine,
        engine_args=request.engine_args,
    )
    console.note(f"{editor.model.name}: {editor.model.plan} · {editor.engine_name}")
    return editor


def _finish(
    request: EditRequest, opened: OpenedInput, drafts: Sequence[SampledEdit], editor: Editor, ending: Event
) -> None:
    """Decode, compose and save all variants of one image, and its sheets; stops early when the run is ending."""
    from earl_cli.generation.editing import contact_sheet, decode_image, render_edit

    record, images = opened.record, []
    with record.recording(opened.source.name):
        before = decode_image(editor.model, drafts[0].source)
        for index, draft in enumerate(drafts):
            if ending.is_set():
                return
            name = opened.source.name if len(drafts) == 1 else f"{opened.source.name}, seed {draft.seed}"
            if request.mode != "edit" and draft.completion.thoughts:
                console.block(f"reasoning: {draft.completion.thoughts}")
            elif request.mode != "edit":
                console.warn(f"{name}: the model gave no reasoning; --think is for models that were trained to")
            with record.recording(name):
                edited = render_edit(editor.model, opened.image.pixels, before, draft, request.size)
                images.append(edited.image)
                if opened.paths or not request.sheets:
                    path = opened.paths[index] if opened.paths else None
                    record.results.append(
                        _save(request, "edit", edited.image, path, [draft], opened, editor, edited.problem)
                    )
        for index, kind in enumerate(request.sheets if images else ()):
            if ending.is_set():
                return
            with record.recording(f"{opened.source.name}, {kind}"):
                shown = images if kind == "grid" else [opened.image.rgb.resize(images[0].size), *images]
                path = opened.sheets[index] if opened.sheets else None
                tiles = contact_sheet(shown, columns=None if kind == "grid" else len(shown))
                record.results.append(_save(request, kind, tiles, path, drafts, opened, editor))


def _save(
    request: EditRequest,
    kind: ResultKind,
    image: Image,
    path: Path | None,
    drafts: Sequence[SampledEdit],
    opened: OpenedInput,
    editor: Editor,
    problem: str | None = None,
) -> EditOutput:
    """Write one image, to stdout if it has no path, with the metadata that reproduces it."""
    from earl_cli.generation.editing import provenance
    from earl_cli.images.image_file import save_image
    from earl_cli.models.abilities import understand

    name = opened.source.name
    seeds = tuple(draft.seed for draft in drafts)
    shown = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    instruction = understand(request.instruction, editor.model.abilities)
    metadata = provenance(editor.model.name, instruction, shown, editor.settings)
    if path:
        wanted, path = path, opened.targets.still(path, opened.source)
        lost = save_image(image, path, like=opened.image, texts=metadata)
        if path != wanted and opened.targets.chosen:
            what = f"another program wrote this file meanwhile; the edit is in {path}"
            opened.record.add_failure(name, OutputError(what, where=str(wanted)))
    else:
        encoded = io.BytesIO()
        form = opened.image.format if opened.image.format in EXTENSIONS else "PNG"
        lost = save_image(image, encoded, like=opened.image, format=form, texts=metadata)
        _to_stdout(encoded.getbuffer())
    opened.record.show_notes(name, lost)
    output = str(path) if path else None
    console.say(f"{name} -> {output or 'stdout'}  ({image.width} x {image.height}, seed {shown})")
    if kind != "edit":
        return EditOutput(kind, name, output, seeds, image.width, image.height)
    if problem:
        console.warn(f"{name}: {problem}; try another --seed than {shown}")
    return EditOutput(kind, name, output, seeds, image.width, image.height, drafts[0].completion.thoughts, problem)


def _to_stdout(data: memoryview) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the image can't be written: {error.strerror}", where="stdout") from error
