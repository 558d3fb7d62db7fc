"""The work of ``earl edit``: open a few pictures, sample their edits in one batch, and save each beside the next."""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from earl_cli.commands._options import without_collector
from earl_cli.commands.edit.files import Failed, InputFile
from earl_cli.commands.edit.targets import EXTENSIONS, Targets
from earl_cli.console import console
from earl_cli.errors import InputError, OutputError, explain

if TYPE_CHECKING:
    from concurrent.futures import Future
    from threading import Event

    from PIL.Image import Image

    from earl_cli.generation.editing import Draft
    from earl_cli.generation.editor import Editor, EngineName
    from earl_cli.generation.engine import OnProgress
    from earl_cli.images.image_file import ImageFile

ResultKind = Literal["edit", "grid", "compare"]
VARIANTS_AT_ONCE, VLLM_AT_ONCE = 8, 64


@dataclass(frozen=True)
class EditRequest:
    """What the person asked for. ``sampling`` has only what was said; ``sheets`` are "grid" and "compare"."""

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
    """One picture that was written; ``output`` is None for stdout. A grid or a comparison shows several edits."""

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
    """What came of one picture; only one thread works on a picture at a time."""

    results: list[EditOutput] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    said: set[str] = field(default_factory=set)

    def tell(self, name: str, notes: Iterable[str]) -> None:
        """Show what a person should know of this picture, each once."""
        for note in notes:
            if note not in self.said:
                self.said.add(note)
                console.note(f"{name}: {note}")

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
class EditSummary:
    """What came of an order, in the order of its pictures; ``editor`` is None where none of them could be opened."""

    failed: list[Failed]
    results: list[EditOutput]
    editor: Editor | None


@dataclass(frozen=True)
class OpenedInput:
    """A picture that is ready to be edited.

    ``paths`` and ``sheets`` are the names that ``targets`` gave its results; none where they go to stdout.
    """

    source: InputFile
    picture: ImageFile
    paths: tuple[Path, ...]
    sheets: tuple[Path, ...]
    targets: Targets
    made: EditRecord


def edit_all(
    order: EditRequest, sources: Sequence[InputFile], targets: Targets, failed: Sequence[Failed], piped: bool
) -> EditSummary:
    """Edit every source; one that fails is noted and the others go on. The model is loaded when the first is open."""
    made = [EditRecord() for _ in sources]
    pictures = _openable(order, sources, made, targets, piped)
    editor = None
    if first := next(pictures, None):
        with without_collector():
            editor = _load(order)
        _edit(order, editor, chain([first], pictures), len(sources))
    return EditSummary(
        [*failed, *(failure for each in made for failure in each.failed)],
        [result for each in made for result in each.results],
        editor,
    )


def _edit(order: EditRequest, editor: Editor, pictures: Iterator[OpenedInput], total: int) -> None:
    """Sample batch after batch; what is drawn is finished beside that. No more than two batches are open at a time."""
    from earl_cli.generation.editing import PostprocessThread

    at_once = max(1, (VLLM_AT_ONCE if editor.engine_name == "vllm" else VARIANTS_AT_ONCE) // len(order.seeds))
    waiting: deque[Future[None]] = deque()
    finished = 0
    with (
        console.progress("editing", unit="tokens" if total == 1 else "pictures") as progress,
        PostprocessThread() as beside,
    ):

        def take(opened: OpenedInput, drafts: Sequence[Draft]) -> None:
            waiting.append(beside.submit(_finish, order, opened, drafts, editor, beside.ending))

        def settle(most: int) -> None:
            """Count what is finished, and wait until no more than ``most`` pictures aren't."""
            nonlocal finished
            while waiting and (len(waiting) > most or waiting[0].done()):
                waiting.popleft().result()
                finished += 1
                if total > 1:
                    progress.update(finished, total)

        def show(done: int, expected: int) -> None:
            settle(len(waiting))
            if total > 1:
                progress.update(finished, total, f"sampling {done / expected:.0%}")
            else:
                progress.update(done, expected)

        while batch := list(islice(pictures, at_once)):
            _draw(order, editor, batch, take, show)
            settle(at_once)
        settle(0)


def _draw(
    order: EditRequest,
    editor: Editor,
    batch: Sequence[OpenedInput],
    take: Callable[[OpenedInput, Sequence[Draft]], None],
    on_progress: OnProgress,
) -> None:
    """Sample a batch; ``take`` gets each picture with its drafts. If that fails, each of the rest is tried alone."""
    from earl_cli.generation.editing import EditJob, draft

    jobs = [EditJob(opened.picture.rgb, order.instruction, order.seeds) for opened in batch]
    left = dict(enumerate(batch))
    try:
        draft(
            editor.model,
            editor.engine,
            jobs,
            editor.settings,
            on_progress,
            lambda number, drafts: take(left.pop(number), drafts),
        )
    except BrokenPipeError:
        raise
    except Exception as failure:  # noted, or tried again one by one: one may be at fault
        for opened in left.values():
            if len(batch) == 1:
                opened.made.note(opened.source.name, failure)
            else:
                _draw(order, editor, [opened], take, on_progress)


def _openable(
    order: EditRequest, sources: Sequence[InputFile], made: Sequence[EditRecord], targets: Targets, piped: bool
) -> Iterator[OpenedInput]:
    """Those pictures that can be opened, each when it is asked for."""
    for source, own in zip(sources, made, strict=True):
        with own.going_on(source.name):
            yield _open(source, order, targets, piped, own)


def _open(source: InputFile, order: EditRequest, targets: Targets, piped: bool, made: EditRecord) -> OpenedInput:
    from earl_cli.images.image_file import open_picture

    if source.path is None and sys.stdin.isatty():
        raise InputError("nothing is piped into stdin", where="-", hint="earl edit - ... < photo.jpg")
    picture = open_picture(source.path or sys.stdin.buffer, name=source.name, max_pixels=order.max_pixels)
    made.tell(source.name, picture.notes)
    paths = () if piped else tuple(targets.path(source, picture.format) for _ in order.seeds)
    sheets = () if piped else tuple(targets.beside(paths[0], kind, source) for kind in order.sheets)
    return OpenedInput(source, picture, paths, sheets, targets, made)


def _load(order: EditRequest) -> Editor:
    from earl_cli.generation.editor import load_editor

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


def _finish(order: EditRequest, opened: OpenedInput, drafts: Sequence[Draft], editor: Editor, ending: Event) -> None:
    """Decode, compose and save all variants of one picture, and the sheets that show several; less at the run's end."""
    from earl_cli.generation.editing import decoded, render, sheet

    made, images = opened.made, []
    with made.going_on(opened.source.name):
        before = decoded(editor.model, drafts[0].source)
        for index, draft in enumerate(drafts):
            if ending.is_set():
                return
            name = opened.source.name if len(drafts) == 1 else f"{opened.source.name}, seed {draft.seed}"
            if order.mode != "edit" and draft.answer.thoughts:
                console.block(f"reasoning: {draft.answer.thoughts}")
            elif order.mode != "edit":
                console.warn(f"{name}: the model gave no reasoning; --think is for models that were trained to")
            with made.going_on(name):
                edited = render(editor.model, opened.picture.pixels, before, draft, order.size)
                images.append(edited.image)
                if opened.paths or not order.sheets:
                    path = opened.paths[index] if opened.paths else None
                    made.results.append(
                        _save(order, "edit", edited.image, path, [draft], opened, editor, edited.problem)
                    )
        for index, kind in enumerate(order.sheets if images else ()):
            if ending.is_set():
                return
            with made.going_on(f"{opened.source.name}, {kind}"):
                shown = images if kind == "grid" else [opened.picture.rgb.resize(images[0].size), *images]
                path = opened.sheets[index] if opened.sheets else None
                tiles = sheet(shown, columns=None if kind == "grid" else len(shown))
                made.results.append(_save(order, kind, tiles, path, drafts, opened, editor))


def _save(
    order: EditRequest,
    kind: ResultKind,
    image: Image,
    path: Path | None,
    drafts: Sequence[Draft],
    opened: OpenedInput,
    editor: Editor,
    problem: str | None = None,
) -> EditOutput:
    """Write one picture, to stdout where it has no path, with what is needed to make it again."""
    from earl_cli.generation.editing import provenance
    from earl_cli.images.image_file import save_picture
    from earl_cli.models.abilities import understand

    name = opened.source.name
    seeds = tuple(draft.seed for draft in drafts)
    shown = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    asked = understand(order.instruction, editor.model.abilities)
    metadata = provenance(editor.model.name, asked, shown, editor.settings)
    if path:
        wanted, path = path, opened.targets.still(path, opened.source)
        lost = save_picture(image, path, like=opened.picture, metadata=metadata)
        if path != wanted and opened.targets.chosen:
            what = f"something else was written there meanwhile; what was drawn is {path}"
            opened.made.note(name, OutputError(what, where=str(wanted)))
    else:
        encoded = io.BytesIO()
        form = opened.picture.format if opened.picture.format in EXTENSIONS else "PNG"
        lost = save_picture(image, encoded, like=opened.picture, format=form, metadata=metadata)
        _to_stdout(encoded.getbuffer())
    opened.made.tell(name, lost)
    output = str(path) if path else None
    console.say(f"{name} -> {output or 'stdout'}  ({image.width} x {image.height}, seed {shown})")
    if kind != "edit":
        return EditOutput(kind, name, output, seeds, image.width, image.height)
    if problem:
        console.warn(f"{name}: {problem}; try another --seed than {shown}")
    return EditOutput(kind, name, output, seeds, image.width, image.height, drafts[0].answer.thoughts, problem)


def _to_stdout(data: memoryview) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the picture can't be written: {error.strerror}", where="stdout") from error
