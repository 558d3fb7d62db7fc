"""A model with its engine, ready to edit, with everything that was left open chosen as the model itself would."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from earl_cli.config.sampling import SamplingParams
from earl_cli.console import console
from earl_cli.errors import UsageError
from earl_cli.generation.editing import EditSettings
from earl_cli.generation.engine import Engine
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.generation.vllm.environment import has_vllm, need_vllm
from earl_cli.models.bundle import EarlModel, load_model, open_base
from earl_cli.models.device import LARGE, choose_device
from earl_cli.tokens.layout import Mode

SMALL = 1_000_000_000  # bytes

EngineName = Literal["auto", "transformers", "vllm"]


@dataclass(frozen=True)
class Editor:
    """A loaded model with what all pictures share."""

    model: EarlModel
    engine: Engine
    settings: EditSettings
    engine_name: Literal["transformers", "vllm"] = "transformers"


def load_editor(
    spec: str | None,
    *,
    device: str = "auto",
    sampling: Mapping[str, float] | None = None,
    mode: Mode = "edit",
    image_area: int | None = None,
    engine: EngineName = "auto",
    engine_args: Mapping[str, Any] | None = None,
) -> Editor:
    """The model in a folder, at a Hub id, or (None, "embedded") the embedded one, as `load_model` finds it.

    ``sampling`` has some of `SamplingParams`' fields by name; the others are the model's own. ``engine_args`` are
    vLLM's. Raises UsageError for a value that isn't allowed, before the model is loaded,
    MissingExtraError if vLLM is asked for and missing, and what `load_model` raises.
    """
    given = sampling or {}
    SamplingParams.from_dict(given)
    if engine == "vllm":
        need_vllm()
    if takes_vllm(engine, device, lambda: open_base(spec).parameters):
        return _with_vllm(spec, device, given, mode, image_area, engine_args or {})
    if engine_args:
        raise UsageError("only the engine vllm takes arguments", where="--engine-arg", hint="--engine vllm")
    model = load_model(spec, device=device)
    _spare_threads(model)
    settings = _settings(model, given, mode, image_area)
    return Editor(model, TransformersEngine(model.language, model.layout), settings)


def takes_vllm(engine: EngineName, device: str, parameters: Callable[[], int]) -> bool:
    """Whether vLLM samples: where it is asked for, and by itself where it is installed for a large model on a GPU."""
    if engine != "auto":
        return engine == "vllm"
    return has_vllm() and choose_device(device).type == "cuda" and 4 * parameters() >= LARGE


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
    """What all pictures share; sizes that the model was never trained on are said aloud."""
    if image_area is not None and model.grids:
        known = f"{len(model.grids)} shapes of about {model.image_area} pixels"
        console.warn(f"image area {image_area}: {model.name} was trained on {known} only, so the results are guesses")
    return EditSettings(model.sampling.updated(sampling), mode, image_area)


def _spare_threads(model: EarlModel) -> None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise.

    Its matrices are too small to share, and threads that wait for each other take minutes on a busy machine. The sums
    are then the same on every number of cores, too.
    """
    if model.device.type == "cpu" and model.plan.needed < SMALL and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)
