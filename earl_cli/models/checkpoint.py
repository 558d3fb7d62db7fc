"""Model folders: which network they hold and in which format; Emu3's language model loaded and saved in both formats.

No remote code is needed for either published format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from earl_cli.console import listed
from earl_cli.errors import ModelError, OutputError
from earl_cli.models import names
from earl_cli.models.hub import locate
from earl_cli.models.names import CheckpointFormat, ModelPart
from earl_cli.models.weights import (
    MAX_LISTED,
    MAX_SHARD_BYTES,
    open_weights,
    read_header,
    read_json,
    weight_files,
    write_json,
    write_weights,
)

if TYPE_CHECKING:
    from transformers import Emu3ForCausalLM


COUNT_FIELDS = ("num_hidden_layers", "num_labels", "num_res_blocks", "channel_multiplier")
"""Entries of a config that say how many of something there are; their product counts."""
MAX_LAYERS = 1000

_WANTED = {"language": "a language model", "vision": "a vision tokenizer"}
_KINDS: dict[str, tuple[tuple[ModelPart, ...], CheckpointFormat, str]] = {
    names.NATIVE_LANGUAGE: (("language",), "native", "a language model"),
    names.ORIGINAL_LANGUAGE: (("language",), "original", "a language model"),
    names.NATIVE_VISION: (("vision",), "native", "a vision tokenizer"),
    names.ORIGINAL_VISION: (("vision",), "original", "a vision tokenizer"),
    names.NATIVE_BOTH: (("language", "vision"), "native", "a combined model"),
}


@dataclass(frozen=True)
class Checkpoint:
    """One network in a folder: ``config`` as in the file, ``combined`` if the folder holds the other network too."""

    folder: Path
    config: Mapping[str, Any]
    part: ModelPart
    layout: CheckpointFormat
    combined: bool
    files: tuple[Path, ...]

    def native_name(self, name: str) -> str | None:
        """The name of a stored weight in the transformers class of the part, None if it has no place there."""
        if name.endswith("rotary_emb.inv_freq"):
            return None
        if self.combined:
            return names.name_in_part(name, self.part)
        return names.native_vision_name(name) if (self.part, self.layout) == ("vision", "original") else name


def open_checkpoint(folder: Path, part: ModelPart) -> Checkpoint:
    """Opens a folder without reading its weights.

    Raises ModelError naming what the folder is when it doesn't hold ``part``, or which file is missing or unreadable.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"this is {_without_config(folder)}, not {_WANTED[part]}", where=str(folder))
    config = read_json(file)
    kind = str(config.get("model_type"))
    parts, layout, _ = _KINDS.get(kind, ((), "native", ""))
    classes = config.get("architectures") or [names.LANGUAGE_CLASS]
    if kind == names.ORIGINAL_LANGUAGE and names.LANGUAGE_CLASS not in classes:
        parts = ()
    if part not in parts:
        hint = "its tokenizer is in the sub-folder vision" if (folder / "vision" / "config.json").is_file() else None
        raise ModelError(f"this is {_described(config)}, not {_WANTED[part]}", where=str(folder), hint=hint)
    return Checkpoint(folder, config, part, layout, len(parts) > 1, weight_files(folder))


def part_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Fields for `Emu3TextConfig` or `Emu3VQVAEConfig`; every dropout is 0."""
    config = dict(checkpoint.config)
    language = checkpoint.part == "language"
    if checkpoint.combined:
        config = dict(config.get("text_config" if language else "vq_config") or {})
    if checkpoint.layout == "original":
        config = names.native_language_config(config) if language else names.native_vision_config(config)
    for stale in ("torch_dtype", "dtype", "transformers_version", "_name_or_path"):
        config.pop(stale, None)
    return {**config, "attention_dropout": 0.0}


def build_empty_model(
    checkpoint: Checkpoint, config_class: Callable[..., Any], model_class: Callable[[Any], Any]
) -> Any:
    """A model without weights, on the meta device. Raises ModelError for an invalid config."""
    try:
        fields = part_config(checkpoint)
        _check_modules(fields)
        config = config_class(**fields)
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:  # transformers and torch raise many types
        reason = " ".join(str(error).split())
        where = str(checkpoint.folder / "config.json")
        raise ModelError(f"no model can be built from this config: {reason}", where=where) from error


def _check_modules(config: Mapping[str, Any]) -> None:
    """Raise ValueError for too many layers: building a thousand of them takes a second."""
    total = 1
    for name, value in config.items():
        count = len(value) if isinstance(value, list) else value
        if name in COUNT_FIELDS and isinstance(count, int):
            total *= max(count, 1)
    if total > MAX_LAYERS:
        raise ValueError(f"it has {total:,} layers, more than {MAX_LAYERS:,}")


def parameter_count(checkpoint: Checkpoint) -> int:
    """Number of weights of the part, from headers alone (of a `.bin`: half its bytes). Raises ModelError as they do."""
    total = 0
    for file in checkpoint.files:
        if file.suffix == ".safetensors":
            stored = read_header(file)
            total += sum(stored[name].count for name in stored if checkpoint.native_name(name))
        else:
            total += file.stat().st_size // 2
    return total


def load_weights(model: nn.Module, checkpoint: Checkpoint, device: torch.device | str, dtype: torch.dtype) -> None:
    """Fills a model built on the meta device, in ``dtype`` on ``device``, one file after the other.

    Raises ModelError listing the weights that are missing, unknown or of another shape, before any is read.
    """
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for file in checkpoint.files:
        with open_weights(file) as (stored, _):
            found |= {native: stored[name].shape for name in stored if (native := checkpoint.native_name(name))}
    tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
    _check_weights(
        checkpoint, {name: shape for name, shape in shapes.items() if name not in tied - found.keys()}, found
    )
    state: dict[str, Tensor] = {}
    for file in checkpoint.files:
        with open_weights(file, str(device)) as (stored, read):
            for name in stored:
                native = checkpoint.native_name(name)
                if native is not None:
                    weight = read(name).reshape(shapes[native])
                    state[native] = weight.to(device, dtype if weight.is_floating_point() else None)
    model.load_state_dict(state, strict=False, assign=True)
    if tied:
        model.tie_weights()  # type: ignore[operator]


def write_checkpoint(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], **options: int) -> None:
    """Writes weights, then config.json, and removes weight files of an earlier model; ``options`` as `write_weights`.

    Raises OutputError if the disk doesn't take it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = write_weights(folder, state, **options)
        write_json(folder / "config.json", config)
        for old in (*folder.glob("model*.safetensors"), *folder.glob("*.index.json"), *folder.glob("pytorch_model*")):
            if old.name not in written:
                old.unlink()
    except OSError as error:
        what = f"the model can't be written: {error.strerror or error}"
        raise OutputError(what, where=str(folder)) from error


def _check_weights(
    checkpoint: Checkpoint, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    reshaped = [
        f"{name} is {list(found[name])} instead of {list(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] not in (wanted[name], (*wanted[name], 1, 1))
    ]
    problems = [
        f"{len(rows)} {label}: {listed(rows, MAX_LISTED)}"
        for rows, label in ((missing, "missing"), (unknown, "unknown"), (reshaped, "of another shape"))
        if rows
    ]
    if problems:
        what = f"the weights don't fit the config: {'; '.join(problems)}"
        raise ModelError(what, where=str(checkpoint.folder))


def _described(config: Mapping[str, Any]) -> str:
    kind = str(config.get("model_type") or "")
    classes = ", ".join(map(str, config.get("architectures") or ()))
    if kind in _KINDS and not (kind == names.ORIGINAL_LANGUAGE and classes and names.LANGUAGE_CLASS not in classes):
        return f"{_KINDS[kind][2]} ({kind})"
    if classes:
        return f"{'an' if classes[0] in 'AEIOU' else 'a'} {classes}"
    return f"a model of the type {kind}" if kind else "a folder whose config.json names no model"


def _without_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "a model it doesn't name"
        return f"a LoRA adapter of {base}, to be merged into that model first"
    if (folder / "model_index.json").is_file():
        return f"a diffusers pipeline ({read_json(folder / 'model_index.json').get('_class_name')})"
    if any(folder.glob("*.gguf")):
        return "a GGUF model"
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inner:
        return f"a folder without config.json, but with {listed((f'{name}/config.json' for name in inner), MAX_LISTED)}"
    return "a folder without config.json" if any(folder.iterdir()) else "an empty folder"


def load_language(
    source: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    kind: type[Emu3ForCausalLM] | None = None,
) -> Emu3ForCausalLM:
    """The language model in a folder or at a Hub id ``org/name[@revision]``, in eval mode, every dropout 0.

    Reads the original layout, the native one, and the language half of a combined native model. ``attention`` is
    transformers' name for the implementation, ``kind`` a class of the same weights. Raises ModelError if the folder
    holds something else or is damaged.
    """
    checkpoint = open_checkpoint(locate(source, revision), "language")
    from transformers.models.emu3.configuration_emu3 import Emu3TextConfig
    from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM, Emu3RotaryEmbedding

    def with_attention(**fields: Any) -> Any:
        return Emu3TextConfig(**fields, attn_implementation=attention)

    model = build_empty_model(checkpoint, with_attention, kind or Emu3ForCausalLM)
    load_weights(model, checkpoint, device, dtype)
    model.model.rotary_emb = Emu3RotaryEmbedding(config=model.config).to(device)
    model.config.dtype = dtype
    return model.eval()


def empty_language(folder: Path) -> Emu3ForCausalLM:
    """The language model in a folder without its weights, on the meta device. Raises ModelError as `load_language`."""
    from transformers.models.emu3.configuration_emu3 import Emu3TextConfig
    from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM

    model: Emu3ForCausalLM = build_empty_model(open_checkpoint(folder, "language"), Emu3TextConfig, Emu3ForCausalLM)
    return model.eval()


def save_language(
    model: Emu3ForCausalLM,
    folder: Path,
    layout: CheckpointFormat = "native",
    *,
    state: Mapping[str, Tensor] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config.json and safetensors shards; ``state`` replaces the model's own weights where they are partitioned.

    Raises OutputError if the disk doesn't take it.
    """
    weights = dict(state if state is not None else model.state_dict())
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    config = {**model.config.to_dict(), "architectures": [names.LANGUAGE_CLASS]}
    if layout == "original":
        config = names.original_language_config(config)
    config["dtype" if layout == "native" else "torch_dtype"] = _common_dtype(weights)
    write_checkpoint(folder, config, weights, max_shard_bytes=max_shard_bytes)


def _common_dtype(weights: Mapping[str, Tensor]) -> str:
    return str(next(weight.dtype for weight in weights.values() if weight.is_floating_point())).removeprefix("torch.")
