"""Emu3's language model, loaded from and saved in both published layouts, without remote code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from earl_cli.models import names
from earl_cli.models.checkpoint import build, load_weights, open_checkpoint, write_checkpoint
from earl_cli.models.hub import locate
from earl_cli.models.names import Layout
from earl_cli.models.weights import MAX_SHARD_BYTES

if TYPE_CHECKING:
    from transformers import Emu3ForCausalLM


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

    model = build(checkpoint, with_attention, kind or Emu3ForCausalLM)
    load_weights(model, checkpoint, device, dtype)
    model.model.rotary_emb = Emu3RotaryEmbedding(config=model.config).to(device)
    model.config.dtype = dtype
    return model.eval()


def empty_language(folder: Path) -> Emu3ForCausalLM:
    """The language model in a folder without its weights, on the meta device. Raises ModelError as `load_language`."""
    from transformers.models.emu3.configuration_emu3 import Emu3TextConfig
    from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM

    model: Emu3ForCausalLM = build(open_checkpoint(folder, "language"), Emu3TextConfig, Emu3ForCausalLM)
    return model.eval()


def save_language(
    model: Emu3ForCausalLM,
    folder: Path,
    layout: Layout = "native",
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
