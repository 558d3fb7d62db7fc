"""The published baselines through diffusers: InstructPix2Pix, MagicBrush, AURORA and OmniGen, a declaration each.

Nothing heavy is loaded before the first edit. Every edit is a call of its own, so that none depends on another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from earl_cli.errors import DeviceError, MissingExtraError, ModelError, UsageError
from earl_cli.evaluation.editors import BenchmarkEditor, EditorOutput, EditTask, OnFraction
from earl_cli.files import loads
from earl_cli.images.resize import resize_to_area

PIX2PIX, OMNIGEN = "StableDiffusionInstructPix2PixPipeline", "OmniGenPipeline"
PARTS: Mapping[str, tuple[str, ...]] = {
    PIX2PIX: ("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
    OMNIGEN: ("transformer", "scheduler", "vae", "tokenizer"),
}
_INDEX = "model_index.json"
_SETTINGS = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("model", "diffusion_pytorch_model")
_SAFE = tuple(f"{stem}{end}" for stem in _WEIGHTS for end in (".safetensors", "-?????-of-?????.safetensors"))
_OLD = ("pytorch_model.bin", "diffusion_pytorch_model.bin")
_TAG = r"<\|image_\d+\|>"
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_EXTRAS = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@dataclass(frozen=True)
class Baseline:
    """A model on the Hub with its pipeline of diffusers and its settings; ``dtype`` is that on CUDA.

    An image is brought to about ``area`` pixels: "kept" keeps its shape, "square" is a square whatever it was. Both
    sides are multiples of 16 for OmniGen, of 8 for the others. ``scheduler`` None is the model's own.
    """

    model: str
    pipeline: str = PIX2PIX
    dtype: str = "float16"
    scheduler: str | None = "EulerAncestralDiscreteScheduler"
    steps: int = 100
    guidance: float = 7.5
    image_guidance: float = 1.5
    area: int = 512 * 512
    shape: Literal["kept", "square"] = "kept"


BASELINES: Mapping[str, Baseline] = {
    "instruct-pix2pix": Baseline("timbrooks/instruct-pix2pix"),
    "magicbrush": Baseline("vinesmsuic/magicbrush-paper"),
    "aurora": Baseline("McGill-NLP/AURORA"),
    "omnigen": Baseline(
        "Shitao/Omnigen-v1-diffusers", OMNIGEN, "bfloat16", None, 50, guidance=2.0, image_guidance=1.6, shape="square"
    ),
}
"""Number types, schedulers, OmniGen's size and guidance are as published with EARL; the rest (steps, guidance of the
others) is their pipelines' own default. Published OmniGen results have the seed 222 for each edit.
"""


def open_baseline(
    name: str, place: str | None = None, device: str = "auto", revision: str | None = None
) -> BenchmarkEditor:
    """The baseline of that name; ``place``, a folder or a Hub id, has other weights for its pipeline.

    Edits keep the model's output size: the image's shape, sides multiples of 8, about 512 x 512 pixels in
    all; 512 x 512 for OmniGen. Raises UsageError for an unknown name, MissingExtraError without diffusers, ModelError
    for a folder that isn't there or holds another pipeline; a Hub id is first looked at by `describe` and `edit`.
    """
    from earl_cli.models.hub import HUB_ID, locate

    if name not in BASELINES:
        raise UsageError(f"{name!r} is no baseline", hint=f"one of {', '.join(BASELINES)}")
    if find_spec("diffusers") is None:
        what = f"the baseline {name} needs the package diffusers"
        raise MissingExtraError(what, hint='pip install "earl-cli[baselines]"')
    editor = _Diffusers(name, BASELINES[name], place or BASELINES[name].model, device, revision)
    if Path(editor.place).expanduser().exists() or not HUB_ID.fullmatch(editor.place):
        _check(locate(editor.place), editor.place, editor.baseline)
    return editor


def dtype_on(baseline: Baseline, device: str) -> str:
    """The published number type on CUDA, float32 elsewhere. Raises as `choose_device`."""
    from earl_cli.models.device import choose_device

    return baseline.dtype if choose_device(device).type == "cuda" else "float32"


@dataclass(frozen=True, eq=False)
class _Diffusers:
    name: str
    baseline: Baseline
    place: str
    device: str
    revision: str | None
    batch_size: int = 1

    def describe(self) -> Mapping[str, Any]:
        baseline = self.baseline
        return {
            "name": self.name,
            "kind": "diffusers",
            "pipeline": baseline.pipeline,
            "model": self.place,
            **self._version,
            "scheduler": baseline.scheduler,
            "steps": baseline.steps,
            "guidance": baseline.guidance,
            "image_guidance": baseline.image_guidance,
            "area": baseline.area,
            "shape": baseline.shape,
            "dtype": dtype_on(self.baseline, self.device),
            "diffusers": metadata.version("diffusers"),
        }

    def edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None = None) -> list[EditorOutput]:
        outputs = []
        for task in tasks:
            outputs.append(self._edit_one(task))
            if on_progress is not None:
                on_progress(len(outputs) / len(tasks))
        return outputs

    def _edit_one(self, task: EditTask) -> EditorOutput:
        import torch

        baseline, pipeline = self.baseline, self._pipeline
        common = {
            "num_inference_steps": baseline.steps,
            "guidance_scale": baseline.guidance,
            "generator": torch.Generator("cpu").manual_seed(task.seed),
        }
        source = _sized(task.image, baseline)
        if baseline.pipeline == PIX2PIX:
            own = {
                "prompt": task.instruction,
                "image": source,
                "image_guidance_scale": baseline.image_guidance,
            }
        else:
            own = {
                "prompt": f"<img><|image_1|></img> {re.sub(_TAG, ' ', task.instruction)}",
                "input_images": [source],
                "width": source.width,
                "height": source.height,
                "img_guidance_scale": baseline.image_guidance,
            }
        devices = [pipeline.device] if pipeline.device.type == "cuda" else []
        with _quiet(), torch.random.fork_rng(devices):
            torch.manual_seed(task.seed + 1)  # OmniGen encodes the image with noise of torch's global generator
            image: Image.Image = pipeline(**common, **own).images[0]
        return EditorOutput(image.convert("RGB"), seen=source.size)

    # -- the model -----------------------------------------------------------------------------------------------

    @cached_property
    def _folder(self) -> Path:
        """The model's folder, of a Hub model only the list of its parts."""
        from earl_cli.models.hub import locate

        return _check(locate(self.place, self.revision, allow=(_INDEX,)), self.place, self.baseline)

    @cached_property
    def _version(self) -> Mapping[str, str]:
        """Of a folder the fingerprint of its files, of a Hub model the commit."""
        from earl_cli.models.weights import fingerprint

        if not self._is_local:
            return {"revision": self._folder.name}
        files = [file for part in PARTS[self.baseline.pipeline] for file in sorted((self._folder / part).glob("*"))]
        files = [self._folder / _INDEX, *(file for file in files if file.is_file())]
        names = [str(file.relative_to(self._folder)) for file in files]
        return {"fingerprint": fingerprint(files, extra=names)}

    @property
    def _is_local(self) -> bool:
        return Path(self.place).expanduser().is_dir()

    @cached_property
    def _pipeline(self) -> Any:
        import torch

        from earl_cli.models.device import choose_device

        device, dtype, folder = choose_device(self.device), dtype_on(self.baseline, self.device), self._folder
        if not self._is_local:
            for part in PARTS[self.baseline.pipeline]:
                _fetch(self.place, folder.name, part)
        _check_parts(folder, self.place, self.baseline)
        try:
            with _quiet():
                pipeline = _load(folder, self.baseline, getattr(torch, dtype)).to(device)
        except torch.OutOfMemoryError:
            what = f"the baseline {self.name} doesn't fit into the memory"
            raise DeviceError(what, where=str(device), hint="free memory on it, or use another --device") from None
        except Exception as error:  # diffusers, transformers and safetensors raise all kinds for damaged files
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            what = f"this {self.baseline.pipeline} can't be loaded: {reason}"
            raise ModelError(what, where=self.place, hint="copy or download it again") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _sized(image: Image.Image, baseline: Baseline) -> Image.Image:
    if baseline.shape == "square":
        side = math.isqrt(baseline.area)
        return image.resize((side, side), Image.Resampling.BICUBIC)
    return resize_to_area(image, baseline.area, 16 if baseline.pipeline == OMNIGEN else 8)


def _check(folder: Path, place: str, baseline: Baseline) -> Path:
    """``folder``. Raises ModelError unless it lists the parts of the baseline's pipeline."""
    if not (folder / _INDEX).is_file():
        what = f"this is no pipeline of diffusers: there is no {_INDEX}"
        raise ModelError(what, where=place, hint=f"published weights are {baseline.model}")
    index = _settings(folder / _INDEX)
    if missing := [part for part in PARTS[baseline.pipeline] if not index.get(part)]:
        what = f"this pipeline is {index.get('_class_name')}, not {baseline.pipeline}: it has no {missing[0]}"
        raise ModelError(what, where=place, hint=f"published weights are {baseline.model}")
    return folder


def _check_parts(folder: Path, place: str, baseline: Baseline) -> None:
    """Raise ModelError for a missing part, or a text-to-image model, which has the same parts."""
    tokenizer = [folder / "tokenizer" / name for name in _VOCABULARIES]
    missing = [part for part in PARTS[baseline.pipeline] if not (folder / part).is_dir()]
    if missing or not any(file.is_file() for file in tokenizer):
        what = f"the pipeline has no {(missing or ['tokenizer'])[0]}"
        raise ModelError(what, where=place, hint="copy or download it again")
    if baseline.pipeline == PIX2PIX:
        config = _settings(folder / "unet" / "config.json")
        if config.get("in_channels") == config.get("out_channels"):
            what = "this is a text-to-image model, not an editor: its UNet takes no source image"
            raise ModelError(what, where=place, hint=f"published weights are {baseline.model}")


def _settings(file: Path) -> dict[str, Any]:
    try:
        return dict(loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        what = f"these settings can't be read: {error}"
        raise ModelError(what, where=str(file), hint="copy or download it again") from None


def _fetch(repo: str, commit: str, part: str) -> None:
    """Bring a part of a Hub model into the cache, with one copy of its weights."""
    from earl_cli.models.hub import locate

    folder = locate(repo, commit, allow=(*_SETTINGS, *_SAFE), subfolder=part) / part
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        locate(repo, commit, allow=_OLD, subfolder=part)


def _load(folder: Path, baseline: Baseline, dtype: Any) -> Any:
    import diffusers

    if baseline.pipeline == OMNIGEN:
        return _omnigen().from_pretrained(folder, dtype=dtype, local_files_only=True)
    kind = getattr(diffusers, baseline.pipeline)
    pipeline = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, **_EXTRAS)
    if baseline.scheduler is not None:
        pipeline.scheduler = getattr(diffusers, baseline.scheduler).from_config(pipeline.scheduler.config)
    return pipeline


def _omnigen() -> Any:
    """The pipeline's class; where torchvision is missing, which it has for pixels to values only, with our own ones."""
    from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

    def processor(tokenizer: Any, max_image_size: int) -> Any:
        instance = object.__new__(processor_omnigen.OmniGenMultiModalProcessor)
        instance.text_tokenizer, instance.max_image_size = tokenizer, max_image_size
        instance.image_transform, instance.collator = _values, processor_omnigen.OmniGenCollator()
        return instance

    if not hasattr(pipeline_omnigen, "OmniGenMultiModalProcessor"):
        pipeline_omnigen.OmniGenMultiModalProcessor = processor
    return pipeline_omnigen.OmniGenPipeline


def _values(image: Image.Image) -> Any:
    """float32[3, h, w] in [-1, 1] of an image that has its size already."""
    import torch

    return (torch.from_numpy(np.array(image, np.float32)) / 255 - 0.5).div(0.5).permute(2, 0, 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice and the progress bars of the two libraries."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    states = [(each, each.get_verbosity(), each.is_progress_bar_enabled()) for each in (ours, theirs)]
    for library, _, _ in states:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, has_bar in states:
            library.set_verbosity(verbosity)
            if has_bar:
                library.enable_progress_bar()
