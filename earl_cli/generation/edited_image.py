"""Requests and results of the Python API: an image to be edited, and its edit with what is known of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from earl_cli.errors import EarlError, explain
from earl_cli.generation.editing import EditJob, EditSettings, OutputSize, SampledEdit, provenance, render_edit
from earl_cli.images.image_file import ImageFile, ImageInput, open_input, save_image
from earl_cli.models.abilities import out_of_range_message, understand
from earl_cli.models.bundle import EarlModel


@dataclass(frozen=True, eq=False)
class EditedImage:
    """One edit of one image, complete or not.

    ``source`` names the image: its path, else "image", or "image 3" for the third of several. ``instruction`` is the
    one that was given, ``understood`` the trained wording that the model read in its place; None where the model lists
    no such wording, and read the instruction itself. The same ``seed``, from 0 to 2**31 - 1, gives the same edit again.
    ``problem`` says what is known to be wrong with the image, ``thoughts`` is what the model reasoned before it, in the
    mode "reasoning", ``notes`` are remarks on the file and on the instruction. ``error`` says why there is no image.
    """

    source: str
    instruction: str
    seed: int
    understood: str | None = None
    problem: str | None = None
    thoughts: str | None = None
    notes: tuple[str, ...] = ()
    error: EarlError | None = None
    _image: Image | None = field(default=None, repr=False)
    _file: ImageFile | None = field(default=None, repr=False)
    _metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def image(self) -> Image:
        """A PIL image in RGB, or in RGBA where the source has transparent pixels. Raises ``error`` if there is none.

        It has the source's size, or with ``size="model"`` the model's. Colours are the source's: where that has an ICC
        profile, it is in ``image.info["icc_profile"]``, which Pillow writes into PNG and WebP, and `save` everywhere.
        """
        if self._image is None:
            raise self.error or EarlError("there is no image", where=self.source)
        return self._image

    def save(self, path: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write the image as ``earl edit`` does, whole or not at all: .png, .jpg or .webp, by the name.

        What came with the source stays as far as the format holds it: colour profile, EXIF, XMP. A PNG remembers
        instruction, seed and model. A file of that name is replaced. Gives back what was lost, in words. Raises
        UsageError for another ending, OutputError where nothing can be written, and ``error`` if there is no image.
        """
        return save_image(self.image, Path(path), like=self._file, texts=self._metadata)


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """One image to be edited, which is opened when its turn comes."""

    given: ImageInput
    name: str
    instruction: str
    seeds: tuple[int, ...]
    max_pixels: int

    @cached_property
    def file(self) -> ImageFile:
        """The opened image. Raises InputError."""
        return open_input(self.given, name=self.name, max_pixels=self.max_pixels)

    def job(self) -> EditJob:
        """The job to be sampled. Raises InputError for an image that can't be opened."""
        return EditJob(self.file.rgb, self.instruction, self.seeds)

    @property
    def source(self) -> str:
        """The image's name in results."""
        return os.fspath(self.given) if isinstance(self.given, str | os.PathLike) else self.name


def edited_image(
    model: EarlModel,
    request: ImageRequest,
    before: NDArray[np.float32],
    variant: SampledEdit,
    size: OutputSize,
    settings: EditSettings,
) -> EditedImage:
    """One variant of a request, rendered as in `earl_cli.generation.editing.render_edit`, or with its ``error``."""
    file = request.file
    found = understand(request.instruction, model.abilities)
    edited = EditedImage(
        source=request.source,
        instruction=request.instruction,
        seed=variant.seed,
        understood=found.text if found.kind else None,
        problem=variant.completion.problem,
        thoughts=variant.completion.thoughts or None,
        notes=(*file.notes, *([out_of_range_message(found)] if model.abilities and found.kind is None else ())),
    )
    try:
        rendered = render_edit(model, file.pixels, before, variant, size)
    except Exception as failure:  # the other variants may be complete
        return replace(edited, error=explain(failure))
    if file.metadata.icc:
        rendered.image.info["icc_profile"] = file.metadata.icc
    metadata = provenance(model.name, found, str(variant.seed), settings)
    came_along = replace(file, pixels=rendered.image)  # for `save`, without the source's pixels
    return replace(edited, problem=rendered.problem, _image=rendered.image, _file=came_along, _metadata=metadata)
