"""The editor protocol of the evaluation, EARL's own models behind it, finished images, and the unchanged source."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL.Image import Image

from earl_cli.errors import InputError
from earl_cli.images.image_file import open_image
from earl_cli.images.resize import describe_shapes

if TYPE_CHECKING:
    from earl_cli.generation.editing import SampledEdit
    from earl_cli.generation.editor import Editor
    from earl_cli.tokens.layout import Mode

OnFraction = Callable[[float], None]
"""Called with the share of the tasks that is done, 0 to 1."""
BATCH_SIZE, VLLM_BATCH_SIZE = 8, 128
FILES_BATCH_SIZE = 16
HASHED_BYTES = 256_000_000
EXTENSIONS = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".avif")
"""Of several images with one name the first in this order is used."""
_ODD = re.compile(r"[^\w.-]")


@dataclass(frozen=True, eq=False)
class EditTask:
    """An edit of an upright RGB ``image``; ``seed`` is the only source of its randomness.

    ``id`` is the sample's own name in its benchmark.
    """

    id: str
    image: Image
    instruction: str
    seed: int


@dataclass(frozen=True, eq=False)
class EditorOutput:
    """The result of a task: an RGB image of any size, or None with the reason in ``problem``.

    ``reasoning`` is the text before the edit; coordinates in it are pixels of an image of the size ``seen``
    (width, height), None if that isn't known.
    """

    image: Image | None
    reasoning: str = ""
    problem: str = ""
    seen: tuple[int, int] | None = None


class BenchmarkEditor(Protocol):
    """Makes edits, best ``batch_size`` at a time. The result of a task doesn't depend on the others in its batch.

    Nothing heavy is loaded before the first `edit`.
    """

    @property
    def name(self) -> str:
        """The name in tables."""
        ...

    @property
    def batch_size(self) -> int: ...

    def describe(self) -> Mapping[str, Any]:
        """Everything its edits depend on, as JSON: model, fingerprint or revision, settings, versions.

        Results of two descriptions are never mixed.
        """
        ...

    def edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None = None) -> list[EditorOutput]:
        """One `EditorOutput` for each task, in order; a task that fails alone comes back with its problem.

        Raises EarlError where every task would fail, for instance with a server that is down.
        """
        ...


@dataclass(frozen=True)
class EarlEditor:
    """``spec`` None is the embedded model; ``sampling`` overrides the model's own sampling parameters.

    ``size`` "model" gives the model's own output, "source" what ``earl edit`` composes from it. ``load`` gives the
    same loaded model whenever it is called.
    """

    name: str
    spec: str | None
    size: Literal["source", "model"]
    load: Callable[[], Editor]
    mode: Mode = "edit"
    sampling: Mapping[str, float] = field(default_factory=dict)
    image_area: int | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    on_load: Callable[[str], None] = lambda _: None

    @property
    def batch_size(self) -> int:
        """As `BenchmarkEditor.batch_size`; vLLM batches by itself, so it gets many."""
        loaded = self.__dict__.get("_loaded")
        return VLLM_BATCH_SIZE if loaded is not None and loaded.engine_name == "vllm" else BATCH_SIZE

    def describe(self) -> Mapping[str, Any]:
        """As `BenchmarkEditor.describe`, without the device, on which images don't depend."""
        from earl_cli.models.abilities import fingerprint as abilities_digest
        from earl_cli.models.bundle import identify
        from earl_cli.models.hub import display_name

        description, fingerprint = identify(self.spec)
        abilities = description.content.get("abilities")
        return {
            "name": self.name,
            "kind": "earl",
            "model": display_name(self.spec),
            "fingerprint": fingerprint,
            "sampling": description.sampling.updated(self.sampling).to_dict(),
            "mode": self.mode,
            "image_area": self.image_area or description.image_area,
            "shapes": describe_shapes(() if self.image_area else description.grids),
            "size": self.size,
            **({"abilities": abilities_digest(abilities)} if abilities else {}),
            **({"engine_args": dict(self.engine_args)} if self.engine_args else {}),
        }

    def edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None = None) -> list[EditorOutput]:
        """As `BenchmarkEditor.edit`: one batch, whose first images are decoded while the last ones are sampled."""
        from earl_cli.generation.editing import EditJob, sample_edits
        from earl_cli.generation.pipeline import PostprocessThread

        def progress(done: int, expected: int) -> None:
            if on_progress and expected:
                on_progress(done / expected)

        jobs = [EditJob(task.image, task.instruction, (task.seed,)) for task in tasks]
        outputs: dict[int, Future[EditorOutput]] = {}
        loaded = self._loaded
        with loaded.session(), PostprocessThread() as thread:

            def take(number: int, drafts: Sequence[SampledEdit]) -> None:
                outputs[number] = thread.submit(self._output, tasks[number], drafts[0])

            sample_edits(loaded.model, loaded.engine, jobs, loaded.settings, progress, take)
            return [outputs[number].result() for number in range(len(tasks))]

    def _output(self, task: EditTask, draft: SampledEdit) -> EditorOutput:
        from earl_cli.generation.editing import decode_image, render_edit
        from earl_cli.models.vision import spatial_factor

        answer, model = draft.completion, self._loaded.model
        height, width = (spatial_factor(model.vision) * side for side in draft.source.shape)
        reasoning, seen = answer.thoughts or "", (width, height)
        if answer.codes is None:
            return EditorOutput(None, reasoning, answer.problem or "the completion holds no image", seen)
        edited = render_edit(model, task.image, decode_image(model, draft.source), draft, self.size)
        return EditorOutput(edited.image, reasoning, edited.problem or "", seen)

    @cached_property
    def _loaded(self) -> Editor:
        loaded = self.load()
        self.on_load(f"{self.name}: {loaded.model.plan} · {loaded.engine_name}")
        return loaded


def open_finished(folder: Path) -> BenchmarkEditor:
    """The images in ``folder`` as an editor of the folder's name. Raises InputError if there is no such folder.

    A sample's image is `<id>.<seed>.png`, or `<id>.png` for every seed; any of `EXTENSIONS` will do. In a file's
    name each character of the id that is no letter, digit, underscore, dot or hyphen may be an underscore instead,
    and a slash has to be: `a/b c` is `a_b_c.png` or `a_b c.png`. Folders within aren't looked into, nor links to
    another place.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.is_file())
        place = folder.resolve()
    except OSError as error:
        what = f"this folder of images can't be read: {error.strerror or error}"
        raise InputError(what, where=str(folder), hint="an image's name is the sample's id, such as 17.png") from None
    inside = [file for file in files if file.resolve().parent.is_relative_to(place)]
    preferred = sorted(inside, key=lambda file: EXTENSIONS.index(file.suffix.lower()), reverse=True)
    return _Finished(place.name, tuple(inside), {_normal(file.stem): file for file in preferred})


def copy_editor() -> BenchmarkEditor:
    """The editor named `copy`, which returns each source unchanged."""
    return _Copy()


@dataclass(frozen=True, eq=False)
class _Finished:
    """``by_stem`` has the files by their names without the extension."""

    name: str
    files: tuple[Path, ...]
    by_stem: Mapping[str, Path]
    batch_size: int = FILES_BATCH_SIZE

    def describe(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "kind": "finished",
            "pictures": len(self.files),  # part of the name of the results' folder
            "fingerprint": _fingerprint(self.files),
        }

    def edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None = None) -> list[EditorOutput]:
        return _each(self._found, tasks, on_progress)

    def _found(self, task: EditTask) -> EditorOutput:
        file = next((self.by_stem[stem] for stem in _stems(task) if stem in self.by_stem), None)
        if file is None:
            return EditorOutput(None, problem=f"there is no {task.id}.png, nor under another extension, in {self.name}")
        try:
            return EditorOutput(open_image(file, name=file.name).rgb)
        except InputError as error:
            return EditorOutput(None, problem=str(error))


@dataclass(frozen=True, eq=False)
class _Copy:
    name: str = "copy"
    batch_size: int = FILES_BATCH_SIZE

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "kind": "copy"}

    def edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None = None) -> list[EditorOutput]:
        return _each(lambda task: EditorOutput(task.image), tasks, on_progress)


def _each(
    edit: Callable[[EditTask], EditorOutput], tasks: Sequence[EditTask], on_progress: OnFraction | None
) -> list[EditorOutput]:
    outputs = []
    for task in tasks:
        outputs.append(edit(task))
        if on_progress is not None:
            on_progress(len(outputs) / len(tasks))
    return outputs


def _stems(task: EditTask) -> Iterator[str]:
    """Names that a task's image may have, without the extension, best first."""
    name = _normal(task.id)
    names = (name, name.replace("/", "_"), _ODD.sub("_", name))
    yield from (f"{each}.{task.seed}" for each in names)
    yield from names


def _normal(name: str) -> str:
    """File systems store an accented letter as one character or as two."""
    return unicodedata.normalize("NFC", name)


def _fingerprint(files: Sequence[Path]) -> str:
    """16 hexadecimal digits of all names and contents; above 256 MB in all, of sizes and times of change instead."""
    digest = hashlib.sha256()
    states = [file.stat() for file in files]
    whole = sum(state.st_size for state in states) < HASHED_BYTES
    for file, state in zip(files, states, strict=True):
        digest.update(f"{file.name}\0{state.st_size}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest() if whole else str(state.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
