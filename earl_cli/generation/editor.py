"""A loaded model with its engine, ready to edit: used by commands, and public as ``from earl_cli import load_editor``.

Settings that the caller leaves open are the model's own.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import repeat
from numbers import Integral
from threading import Event, RLock
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch

from earl_cli.config.sampling import SEEDS, SamplingParams
from earl_cli.console import log
from earl_cli.errors import UsageError, explain
from earl_cli.generation.edited_image import EditedImage, ImageRequest, edited_image
from earl_cli.generation.editing import EditJob, EditSettings, OutputSize, SampledEdit, decode_image, sample_edits
from earl_cli.generation.engine import Engine, OnProgress
from earl_cli.generation.pipeline import EditSteps, Item, OnSampled, Outcome, run_in_batches
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.generation.vllm.environment import has_vllm, require_vllm
from earl_cli.images.image_file import MAX_PIXELS, ImageInput
from earl_cli.models.abilities import MAX_INSTRUCTION, examples
from earl_cli.models.bundle import MAX_AREA, EarlModel, load_model, open_base
from earl_cli.models.device import LARGE_BYTES, choose_device
from earl_cli.tokens.layout import Mode

if TYPE_CHECKING:
    from types import TracebackType

Checked = TypeVar("Checked")
SINGLE_THREAD_BYTES = 1_000_000_000
LEAST_AREA = 64

EngineName = Literal["auto", "transformers", "vllm"]


@dataclass(frozen=True, eq=False, repr=False)
class Editor:
    """A loaded model, as `load_editor` gives it: `edit` one image, `variants` of one, or `edit_many`.

    Threads may share an editor: it samples one batch at a time, and an edit doesn't depend on its
    batch. Processes each load their own. With the engine vllm, `close` ends the engine, as does the end of a ``with``.
    """

    model: EarlModel
    engine: Engine
    settings: EditSettings
    engine_name: Literal["transformers", "vllm"] = "transformers"
    threads: int | None = None
    _turn: RLock = field(default_factory=RLock, init=False)

    def __repr__(self) -> str:
        return f"<Editor {self.name} on {self.device}, engine {self.engine_name}>"

    def __enter__(self) -> Editor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine vllm and free its memory; nothing happens with the engine transformers."""
        if self.engine_name == "vllm":
            from earl_cli.generation.vllm.engine import VllmEngine

            assert isinstance(self.engine, VllmEngine)
            self.engine.close()

    @property
    def name(self) -> str:
        """The model's name: "embedded", a Hub id, or a folder's."""
        return self.model.name

    @property
    def device(self) -> str:
        """Where the model is, such as "cpu" or "cuda:0"."""
        return str(self.model.device)

    @property
    def examples(self) -> tuple[str, ...]:
        """An instruction of each kind that the model was trained for; empty where it doesn't list them."""
        return examples(self.model.abilities) if self.model.abilities else ()

    @property
    def batch_size(self) -> int:
        """How many edits are sampled together: vLLM fills its batch by itself, so it gets many."""
        return 64 if self.engine_name == "vllm" else 8

    def edit(
        self,
        image: ImageInput,
        instruction: str,
        *,
        seed: int | None = None,
        size: OutputSize = "source",
        sampling: Mapping[str, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        on_progress: OnProgress | None = None,
    ) -> EditedImage:
        """Edit one image: the same pixels as ``earl edit IMAGE INSTRUCTION --seed SEED``.

        ``image`` is a path, bytes, a binary file, a PIL image, or an array uint8[h, w, 3] (RGB), [h, w, 4] (RGBA) or
        [h, w] (grey) in sRGB. ``seed`` is from 0 to 2**31 - 1; None takes a random one, which the result names.
        ``size`` "source" applies the edit at the image's own size, "model" gives the small image that the model wrote.
        ``sampling`` overrides the editor's parameters by name: temperature, top_k, top_p, min_p. ``on_progress`` is
        called with the tokens that are done and those expected; what it raises ends the edit and is raised.

        Raises InputError for an image that can't be read or has more than ``max_pixels``, UsageError for an argument
        that can't be used, ModelError if the model wrote no complete image: another seed may do.
        """
        (edited,) = self.variants(
            image,
            instruction,
            1,
            seed=seed,
            size=size,
            sampling=sampling,
            max_pixels=max_pixels,
            on_progress=on_progress,
        )
        if edited.error is not None:
            raise edited.error
        return edited

    def variants(
        self,
        image: ImageInput,
        instruction: str,
        count: int,
        *,
        seed: int | None = None,
        size: OutputSize = "source",
        sampling: Mapping[str, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        on_progress: OnProgress | None = None,
    ) -> list[EditedImage]:
        """Several edits of one image in one batch; their seeds count up from ``seed``. The rest is as in `edit`.

        A variant that the model didn't complete has its ``error``; the others are there. Raises what `edit` raises for
        the image and the arguments.
        """
        first = _seed(seed)
        seeds = tuple((first + index) % SEEDS for index in range(_whole(count, 1, SEEDS, "count")))
        limit = _whole(max_pixels, 1, sys.maxsize, "max_pixels")
        request = ImageRequest(image, "image", _instruction(instruction), seeds, limit)
        (edits,) = self._edits([request], _raised, size, sampling, on_progress)
        return edits

    def edit_many(
        self,
        images: Iterable[ImageInput],
        instruction: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        size: OutputSize = "source",
        sampling: Mapping[str, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        on_progress: OnProgress | None = None,
    ) -> Iterator[EditedImage]:
        """Edit many images, `batch_size` of them in a batch of the engine; results come in order, as they are ready.

        ``instruction`` and ``seed`` are one for all images, or a sequence with one for each. Images are opened batch by
        batch, so thousands of paths take no more memory than a few. One that can't be read or edited costs the others
        nothing: its result has an ``error``, which its ``image`` raises. ``on_progress`` counts the tokens of the
        current batch. The rest is as in `edit`. Raises UsageError, at once, for arguments that can't be used.
        """
        if isinstance(images, str | os.PathLike | bytes) or not isinstance(images, Iterable):
            raise UsageError("this is one image, not several", where="images", hint="a list of images; edit takes one")
        texts, seeds = _for_each(instruction, _instruction), _for_each(seed, _seed)
        lists = [each for each in (texts, seeds) if isinstance(each, list)]
        if lists:
            images = list(images)
            if any(len(each) != len(images) for each in lists):
                counts = " and ".join(str(len(each)) for each in lists)
                what = f"{len(images)} images, and instructions or seeds for {counts}"
                raise UsageError(what, where="edit_many", hint="one for all images, or one for each")
        limit = _whole(max_pixels, 1, sys.maxsize, "max_pixels")
        requests = (
            ImageRequest(image, f"image {number}", text, (chosen,), limit)
            for number, (image, text, chosen) in enumerate(zip(images, texts, seeds, strict=False), 1)
        )
        batches = self._edits(requests, _failed, size, sampling, on_progress)
        return (edit for edits in batches for edit in edits)

    def process(
        self,
        items: Iterable[Item],
        steps: EditSteps[Item, Outcome],
        *,
        at_once: int,
        settings: EditSettings | None = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Outcome]:
        """The outcomes of any items that are to be edited, as in `earl_cli.generation.pipeline.run_in_batches`.

        What ``on_progress`` raises ends all of it, and is raised here.
        """

        def report(done: int, expected: int) -> None:
            try:
                if on_progress is not None:
                    on_progress(done, expected)
            except Exception as error:
                raise _CallbackError from error

        def sample(jobs: Sequence[EditJob], take: OnSampled) -> None:
            with self.session():
                sample_edits(self.model, self.engine, jobs, settings or self.settings, report, take)

        try:
            yield from run_in_batches(items, steps, sample, at_once=at_once, threads=self.threads)
        except _CallbackError as stop:
            assert stop.__cause__ is not None
            raise stop.__cause__ from None

    @contextmanager
    def session(self) -> Iterator[None]:
        """The editor's turn: no other thread samples with it, and torch's threads and autocast are the editor's own."""
        with self._turn, torch.autocast(self.model.device.type, enabled=False):
            if self.threads is None:
                yield
                return
            usual = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                yield
            finally:
                torch.set_num_threads(usual)

    def _edits(
        self,
        requests: Iterable[ImageRequest],
        fail: Callable[[ImageRequest, Exception], list[EditedImage]],
        size: OutputSize,
        sampling: Mapping[str, float] | None,
        on_progress: OnProgress | None,
    ) -> Iterator[list[EditedImage]]:
        _check_choice(size, OutputSize, "size")
        settings = replace(self.settings, sampling=self.settings.sampling.updated(sampling or {}))

        def finish(request: ImageRequest, sampled: Sequence[SampledEdit], stopping: Event) -> list[EditedImage]:
            before = decode_image(self.model, sampled[0].source)
            variants = (each for each in sampled if not stopping.is_set())
            return [edited_image(self.model, request, before, each, size, settings) for each in variants]

        steps = EditSteps(ImageRequest.job, finish, fail)
        return self.process(requests, steps, at_once=self.batch_size, settings=settings, on_progress=on_progress)


class _CallbackError(BaseException):
    """Carries what a callback raised past all that treats an exception as the failure of one image."""


def _raised(_request: ImageRequest, failure: Exception) -> list[EditedImage]:
    raise explain(failure)


def _failed(request: ImageRequest, failure: Exception) -> list[EditedImage]:
    error = explain(failure)
    return [EditedImage(request.source, request.instruction, seed, error=error) for seed in request.seeds]


def _instruction(text: object) -> str:
    """The instruction without white space around it. Raises UsageError for one that can't be."""
    if not isinstance(text, str) or not text.strip():
        what = "the instruction is empty" if isinstance(text, str) else f"a {type(text).__name__} is no instruction"
        raise UsageError(what, where="instruction", hint='such as "make it snowy"')
    if len(text) > MAX_INSTRUCTION:
        what = f"the instruction has {len(text):,} characters, more than {MAX_INSTRUCTION:,}"
        raise UsageError(what, where="instruction", hint="a sentence is enough")
    return text.strip()


def _seed(seed: object) -> int:
    """The seed, or a random one for None. Raises UsageError."""
    if seed is None:
        return secrets.randbelow(SEEDS)
    return _whole(seed, 0, SEEDS - 1, "seed")


def _whole(value: object, least: int, most: int, name: str) -> int:
    if not isinstance(value, Integral) or not least <= int(value) <= most:
        raise UsageError(f"{value!r}", where=name, hint=f"a whole number from {least} to {most}")
    return int(value)


def _for_each(given: object, checked: Callable[[object], Checked]) -> list[Checked] | repeat[Checked]:
    """The checked entries of a sequence, or one checked value repeated."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [checked(each) for each in given]
    return repeat(checked(given))


def _check_choice(value: object, choices: object, name: str) -> None:
    if value not in get_args(choices):
        raise UsageError(f"{value!r} is no {name}", where=name, hint=f"one of {', '.join(get_args(choices))}")


def load_editor(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    sampling: Mapping[str, float] | None = None,
    mode: Mode = "edit",
    image_area: int | None = None,
    engine: EngineName = "auto",
    engine_args: Mapping[str, Any] | None = None,
) -> Editor:
    """Load the model in a folder, at a Hub id ``org/name[@revision]``, or (None, "embedded") the one that ships.

    ``device`` is auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps. ``sampling`` has some of the parameters
    by name (temperature, top_k, top_p, min_p); the others are the model's own, else the published values. ``mode``
    "reasoning" lets a model that was trained to reason do so first. ``image_area`` is the number of pixels at which the
    model sees an image, its own by default. ``engine`` auto is vllm for a large model on a GPU, if vLLM is installed,
    else transformers; ``engine_args`` are vLLM's. Warnings go to the logger ``earl_cli``.

    Raises UsageError for a value that can't be used, before the model is loaded, ModelError for a model that can't be
    loaded, DeviceError for a device that isn't there or too small, MissingExtraError where vLLM is wanted and missing.
    """
    spec = None if model is None else os.fspath(model)
    given = sampling or {}
    SamplingParams.from_dict(given)
    _check_choice(engine, EngineName, "engine")
    _check_choice(mode, Mode, "mode")
    if image_area is not None:
        _whole(image_area, LEAST_AREA, MAX_AREA, "image_area")
    if engine == "vllm":
        require_vllm()
    if uses_vllm(engine, device, lambda: open_base(spec).parameters):
        return _with_vllm(spec, device, given, mode, image_area, engine_args or {})
    if engine_args:
        raise UsageError("only the engine vllm takes arguments", where="--engine-arg", hint="--engine vllm")
    loaded = load_model(spec, device=device)
    settings = _settings(loaded, given, mode, image_area)
    return Editor(loaded, TransformersEngine(loaded.language, loaded.layout), settings, threads=_threads(loaded))


def uses_vllm(engine: EngineName, device: str, parameters: Callable[[], int]) -> bool:
    """Whether vLLM is the engine: where it is chosen, or with "auto" for a large model on a GPU if it is installed."""
    if engine != "auto":
        return engine == "vllm"
    return has_vllm() and choose_device(device).type == "cuda" and 4 * parameters() >= LARGE_BYTES


def _with_vllm(
    spec: str | None,
    device: str,
    sampling: Mapping[str, float],
    mode: Mode,
    image_area: int | None,
    engine_args: Mapping[str, Any],
) -> Editor:
    from earl_cli.generation.vllm.engine import VllmEngine

    model = load_model(spec, device=device, language_elsewhere=True)
    settings = _settings(model, sampling, mode, image_area)
    engine = VllmEngine(model.folder, model.layout, device=model.device, dtype=model.dtype, engine_args=engine_args)
    return Editor(model, engine, settings, "vllm")


def _settings(model: EarlModel, sampling: Mapping[str, float], mode: Mode, image_area: int | None) -> EditSettings:
    """The settings of all edits; warns about an image area that the model was not trained on."""
    if image_area is not None and model.grids:
        known = f"{len(model.grids)} shapes of about {model.image_area} pixels"
        log.warning(f"image area {image_area}: {model.name} was trained on {known} only, so the results are guesses")
    return EditSettings(model.sampling.updated(sampling), mode, image_area)


def _threads(model: EarlModel) -> int | None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise; None leaves it to torch.

    Its matrices are too small to be split, and on a busy machine waiting for several threads can take minutes. With one
    thread, sums are also the same on every number of cores.
    """
    is_small = (
        model.device.type == "cpu" and model.plan.needed < SINGLE_THREAD_BYTES and "OMP_NUM_THREADS" not in os.environ
    )
    return 1 if is_small else None
