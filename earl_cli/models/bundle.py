"""A whole model folder: language model, vision tokenizer, sequence layout, abilities and defaults.

A model folder holds config.json and model*.safetensors (the language model), tokenizer.json or emu3.tiktoken, vision/
(the tokenizer's config.json and model.safetensors) and earl.json, which only models with Emu3's vocabulary may lack.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import ModelError, OutputError, UsageError
from earl_cli.files import atomic_write
from earl_cli.images.resize import Grids
from earl_cli.models import names
from earl_cli.models.abilities import abilities_problem
from earl_cli.models.checkpoint import (
    Checkpoint,
    empty_language,
    load_language,
    open_checkpoint,
    parameter_count,
    part_config,
    save_language,
)
from earl_cli.models.device import DevicePlan, device_plan, preferred_dtype
from earl_cli.models.hub import CONFIGS_AND_WEIGHTS, TOKENIZER_FILES, display_name, locate
from earl_cli.models.vision import load_vision
from earl_cli.models.weights import fingerprint, read_json, write_json
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.tokens.text import TextTokenizer, load_text_tokenizer
from earl_cli.tokens.vocabulary import EMU3, Vocabulary

if TYPE_CHECKING:
    from transformers import Emu3ForCausalLM, Emu3VQVAE

DESCRIPTION = "earl.json"
EMU3_AREA = 65536
EMU3_VISION, EMU3_TEXT = "BAAI/Emu3-VisionTokenizer", "BAAI/Emu3-Gen"
WORKING_BYTES = 64_000_000
MAX_AREA, MAX_GRID_SIDE = 2**28, 9999


@dataclass(frozen=True)
class Description:
    """The contents of a model folder's earl.json; ``vision`` is the folder or Hub id of the vision tokenizer.

    ``sampling`` are the model's default sampling parameters, with the published values for those that it doesn't set.
    ``grids`` are the only grids that it was trained on, (rows, columns) of codes; empty: any of about ``image_area``.
    """

    folder: Path
    vocabulary: Vocabulary
    image_area: int
    grids: Grids
    sampling: SamplingParams
    vision: Path | str
    content: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class EarlModel:
    """A model ready to edit: ``abilities`` is that entry of earl.json, None where it has none.

    ``fingerprint`` names the exact weights and tokenizers, ``image_area`` is in pixels, ``grids`` and ``sampling`` are
    as in `Description`, ``folder`` holds the language model.
    """

    language: Emu3ForCausalLM
    vision: Emu3VQVAE
    layout: SequenceLayout
    image_area: int
    grids: Grids
    abilities: Mapping[str, Any] | None
    sampling: SamplingParams
    name: str
    fingerprint: str
    plan: DevicePlan
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where both networks are."""
        return self.plan.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the language model; the vision tokenizer stays in float32."""
        return self.plan.dtype


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A vision tokenizer alone, with its model's image area and grids, and the fingerprint of its weights."""

    model: Emu3VQVAE
    image_area: int
    grids: Grids
    fingerprint: str
    plan: DevicePlan


@dataclass(frozen=True, eq=False)
class Base:
    """A model to start a training from, before its weights are read."""

    description: Description
    language: Checkpoint
    layout: SequenceLayout

    @property
    def parameters(self) -> int:
        """The language model's number of weights."""
        return parameter_count(self.language)

    @property
    def config(self) -> Mapping[str, Any]:
        """The language model's config."""
        return part_config(self.language)


def load_model(
    spec: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    revision: str | None = None,
    language_elsewhere: bool = False,
) -> EarlModel:
    """Loads the model in a folder, at a Hub id ``org/name[@revision]``, or (None, "embedded") the embedded one.

    With ``language_elsewhere`` the language model stays on the meta device, for an engine that reads its weights itself
    in the planned dtype. The memory is checked before any weight is read. Raises ModelError if something is
    missing or of the wrong kind, DeviceError if the device isn't there or too small.
    """
    folder = locate(spec, revision)
    language = open_checkpoint(folder, "language")
    description = describe(folder, spec, revision)
    layout = SequenceLayout(description.vocabulary, _text(description))
    vision = open_checkpoint(locate(description.vision), "vision")
    _check_sizes(description, language, vision)
    needed = 4 * parameter_count(language) * 11 // 10
    if language_elsewhere and dtype == "auto":
        dtype = preferred_dtype(device, needed)
    chosen = device_plan(
        device,
        0 if language_elsewhere else needed,
        fixed_bytes=4 * parameter_count(vision) + WORKING_BYTES,
        dtype=dtype,
        attention=attention,
    )
    return EarlModel(
        empty_language(folder)
        if language_elsewhere
        else load_language(folder, device=chosen.device, dtype=chosen.dtype, attention=chosen.attention),
        load_vision(vision.folder, device=chosen.device),
        layout,
        description.image_area,
        description.grids,
        description.content.get("abilities"),
        description.sampling,
        display_name(spec),
        _fingerprint(language, vision, layout.text),
        chosen,
        folder,
    )


def identify(spec: str | None = None, *, revision: str | None = None) -> tuple[Description, str]:
    """A model's description and fingerprint, as in `load_model`, without loading its weights."""
    folder = locate(spec, revision)
    language = open_checkpoint(folder, "language")
    description = describe(folder, spec, revision)
    vision = open_checkpoint(locate(description.vision), "vision")
    return description, _fingerprint(language, vision, _text(description))


def load_vision_of(spec: str | None = None, *, device: str = "auto", revision: str | None = None) -> VisionModel:
    """Loads only the vision tokenizer: a model's (None: the embedded one's), or the one in its own folder or Hub id."""
    folder = locate(spec, revision, allow=("*.json",))
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    source: Path | str = folder
    area, grids = EMU3_AREA, Grids()
    if config.get("model_type") in (names.NATIVE_VISION, names.ORIGINAL_VISION):
        source = locate(spec or folder, revision)
    else:
        description = describe(folder, spec, revision)
        source, area, grids = description.vision, description.image_area, description.grids
    vision = open_checkpoint(locate(source), "vision")
    chosen = device_plan(
        device, fixed_bytes=4 * parameter_count(vision) + WORKING_BYTES, dtype="float32", attention="sdpa"
    )
    model = load_vision(vision.folder, device=chosen.device)
    return VisionModel(model, area, grids, fingerprint(vision.files, extra=_identity(vision)), chosen)


def open_base(spec: str | None = None, *, revision: str | None = None, tokenizer: str | None = None) -> Base:
    """The model to start a training from, as `load_model` finds it.

    ``tokenizer`` is a folder or Hub id of a text tokenizer to be used in place of the model's own. Raises ModelError if
    something is missing or of the wrong kind.
    """
    folder = locate(spec, revision)
    language = open_checkpoint(folder, "language")
    description = describe(folder, spec, revision)
    if tokenizer is None:
        text = _text(description)
    else:
        text = load_text_tokenizer(locate(tokenizer, allow=TOKENIZER_FILES), description.vocabulary)
    return Base(description, language, SequenceLayout(description.vocabulary, text))


def save_trained(
    base: Base, language: Emu3ForCausalLM, output: Path, layout: names.CheckpointFormat = "native", **how: Any
) -> None:
    """Writes a folder that `load_model` takes: the language model, and the base model's tokenizers and description.

    The abilities aren't copied, since training may have added or removed some. ``layout`` and
    ``how`` are as in `save_language`. A vision tokenizer from the Hub is named, one from a folder copied. Raises
    OutputError if the disk doesn't take it.
    """
    save_language(language, output, layout, **how)
    description = base.description
    vision: str = "vision" if isinstance(description.vision, Path) else description.vision
    content = {
        **{key: entry for key, entry in description.content.items() if key != "abilities"},
        "vocabulary": description.vocabulary.to_dict(),
        "image_area": description.image_area,
        "vision": vision,
    }
    try:
        base.layout.text.save(output)
        if isinstance(description.vision, Path) and description.vision.resolve() != (output / "vision").resolve():
            _copy_vision(open_checkpoint(description.vision, "vision"), output / "vision")
        write_json(output / DESCRIPTION, content)
    except OSError as error:
        raise OutputError(f"the model can't be written: {error.strerror or error}", where=str(output)) from error


def describe(folder: Path, spec: str | None = None, revision: str | None = None) -> Description:
    """Reads a model folder's earl.json; without one, the defaults for Emu3's own vocabulary.

    ``spec`` is the name by which the folder was located, to fetch its vision sub-folder too. Raises ModelError for
    invalid entries, and if there is no earl.json and the vocabulary isn't Emu3's.
    """
    content = read_json(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    where = str(folder / DESCRIPTION)
    if not content and size != EMU3.size:
        hint = "only Emu3's own models and folders that earl wrote can edit"
        what = f"there is no {DESCRIPTION}, and a vocabulary of {size} ids is not Emu3's"
        raise ModelError(what if config else "this folder holds no model", where=str(folder), hint=hint)
    try:
        vocabulary = Vocabulary.from_dict(content["vocabulary"]) if "vocabulary" in content else EMU3
    except ModelError as error:
        raise ModelError(error.what, where=where, hint=error.hint) from None
    area, vision = content.get("image_area", EMU3_AREA), content.get("vision", "vision")
    if type(area) is not int or not 64 <= area <= MAX_AREA or not isinstance(vision, str):
        raise ModelError("image_area must be a number of pixels, vision a sub-folder or a Hub id", where=where)
    grids = content.get("grids", [])
    try:
        checked = tuple((rows, columns) for rows, columns in grids)
    except (TypeError, ValueError):
        checked = ((0, 0),)
    if not all(type(side) is int and 1 <= side <= MAX_GRID_SIDE for grid in checked for side in grid):
        raise ModelError("grids must be [rows, columns] of codes", where=where)
    wrong = abilities_problem(content.get("abilities"))
    if wrong:
        raise ModelError(wrong, where=where)
    try:
        sampling = SamplingParams.from_dict({} if content.get("sampling") is None else content["sampling"])
    except UsageError as error:
        what = f"sampling: {error.where} {error.what}" if error.where else f"sampling: {error.what}"
        raise ModelError(what, where=where, hint=error.hint) from None
    source = _vision_source(folder, vision, spec, revision, bool(content))
    return Description(folder, vocabulary, area, checked, sampling, source, content)


def _vision_source(folder: Path, vision: str, spec: str | None, revision: str | None, described: bool) -> Path | str:
    if described and "/" not in vision and spec is not None and not Path(spec).is_dir():
        locate(spec, revision, allow=CONFIGS_AND_WEIGHTS, subfolder=vision)
    if os.path.isdir(folder / vision):  # noqa: PTH112  # no error for names of any length
        return folder / vision
    if described and "/" not in vision:
        raise ModelError(f"the vision tokenizer is missing: there is no sub-folder {vision}", where=str(folder))
    if described:
        return vision
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return folder if config.get("model_type") == names.NATIVE_BOTH else EMU3_VISION


def _text(description: Description) -> TextTokenizer:
    folder, vocabulary = description.folder, description.vocabulary
    if vocabulary == EMU3 and not any((folder / file).is_file() for file in ("emu3.tiktoken", "tokenizer.json")):
        folder = locate(EMU3_TEXT, allow=TOKENIZER_FILES)
    return load_text_tokenizer(folder, vocabulary)


def _check_sizes(description: Description, language: Checkpoint, vision: Checkpoint) -> None:
    """Raises ModelError if language model, vision tokenizer and vocabulary have different sizes."""
    vocabulary = description.vocabulary
    for checkpoint, entry, size in (
        (language, "vocab_size", vocabulary.size),
        (vision, "codebook_size", vocabulary.codes),
    ):
        found = part_config(checkpoint).get(entry, size)
        if found != size:
            what = f"{entry} is {found}, but the vocabulary in {DESCRIPTION} has {size}"
            raise ModelError(
                what, where=str(checkpoint.folder / "config.json"), hint="the parts are of different models"
            )


def _fingerprint(language: Checkpoint, vision: Checkpoint, text: TextTokenizer) -> str:
    return fingerprint((*language.files, *vision.files), extra=_identity(language, vision, text=text))


def _identity(*checkpoints: Checkpoint, text: TextTokenizer | None = None) -> list[str]:
    configs = [repr(sorted(part_config(checkpoint).items())) for checkpoint in checkpoints]
    return configs + ([text.fingerprint] if text else [])


def _copy_vision(checkpoint: Checkpoint, output: Path) -> None:
    if checkpoint.combined:
        from earl_cli.models.vision import save_vision

        return save_vision(load_vision(checkpoint.folder), output)
    output.mkdir(parents=True, exist_ok=True)
    for file in (checkpoint.folder / "config.json", *checkpoint.files, *checkpoint.folder.glob("*.index.json")):
        with atomic_write(output / file.name) as aside:
            shutil.copyfile(file, aside)
    return None
