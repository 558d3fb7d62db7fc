"""Configs and weight names of Emu3's two published checkpoint formats, as pure functions of dicts and strings.

The original format is read by BAAI's remote code (`model_type` "Emu3" and "Emu3VisionVQ"); the native one is
transformers'. The language models differ in their configs only, the vision tokenizers in most names, and there the
1x1 convolutions of the attention became linear layers. The combined native model holds both under prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

ModelPart = Literal["language", "vision"]
CheckpointFormat = Literal["original", "native"]
ConfigDict = Mapping[str, Any]

NATIVE_LANGUAGE, ORIGINAL_LANGUAGE = "emu3_text_model", "Emu3"
NATIVE_VISION, ORIGINAL_VISION = "emu3_vqgan", "Emu3VisionVQ"
NATIVE_BOTH = "emu3"
LANGUAGE_CLASS = "Emu3ForCausalLM"

_LANGUAGE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
_VISION_FIELDS = {
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
_EMU3_TOKENS = {
    "img_token_id": 151851,
    "boi_token_id": 151852,
    "eoi_token_id": 151853,
    "eol_token_id": 151846,
    "eof_token_id": 151847,
}

_TO_NATIVE = (
    (r"\.mid\.attn_1\.norm\.", ".middle_block.attn_norm."),
    (r"\.mid\.", ".middle_block."),
    (r"\.down\.", ".down_block.down."),
    (r"\.up\.", ".up_block.up."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"(\.attn(?:_1|\.\d+))\.([qkv])\.", r"\1.\2_proj."),
    (r"(\.attn(?:_1|\.\d+))\.proj_out\.", r"\1.out_proj."),
)
_TO_ORIGINAL = (
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"\.down_block\.down\.", ".down."),
    (r"\.up_block\.up\.", ".up."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"(\.attn(?:_1|\.\d+))\.([qkv])_proj\.", r"\1.\2."),
    (r"(\.attn(?:_1|\.\d+))\.out_proj\.", r"\1.proj_out."),
)
_PROJECTION = re.compile(r"\.attn(_1|\.\d+)\.([qkv]_proj|out_proj)\.weight$")

_PREFIXES = {
    "language": (("model.text_model.", "model."), ("text_model.model.", "model."), ("text_model.lm_head.", "lm_head.")),
    "vision": (("model.vqmodel.", ""), ("vqmodel.", "")),
}


def native_vision_name(name: str) -> str:
    """`encoder.down.3.attn.0.q.weight` to `encoder.down_block.down.3.attn.0.q_proj.weight`."""
    return _substitute(name, _TO_NATIVE)


def original_vision_name(name: str) -> str:
    """The inverse of `native_vision_name`."""
    return _substitute(name, _TO_ORIGINAL)


def is_projection(native_name: str) -> bool:
    """Whether this is a weight that the original keeps as a 1x1 convolution [out, in, 1, 1]."""
    return _PROJECTION.search(native_name) is not None


def name_in_part(name: str, part: ModelPart) -> str | None:
    """The name of a combined model's weight in one of its parts; None if it belongs to the other part."""
    for prefix, replacement in _PREFIXES[part]:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name if part == "language" and name.startswith("lm_head.") else None


def native_language_config(config: ConfigDict) -> dict[str, Any]:
    """Fields of `Emu3TextConfig` from an original config; every dropout is 0."""
    fields = {name: config[name] for name in _LANGUAGE_FIELDS if name in config}
    rope = dict(config.get("rope_scaling") or {})
    kind = rope.pop("type", None) or rope.pop("rope_type", None) or "default"
    parameters = {**rope, "rope_type": kind, "rope_theta": config.get("rope_theta", 1_000_000.0)}
    return {**fields, "rope_parameters": parameters, "attention_dropout": 0.0}


def original_language_config(config: ConfigDict) -> dict[str, Any]:
    """An original config.json from the fields of an `Emu3TextConfig`."""
    fields = {name: config[name] for name in _LANGUAGE_FIELDS if name in config}
    rope = dict(config.get("rope_parameters") or {})
    theta, kind = rope.pop("rope_theta", 1_000_000.0), rope.pop("rope_type", "default")
    fields["rope_theta"] = theta
    fields["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    if config["vocab_size"] == 184622:
        fields |= _EMU3_TOKENS
    return {**fields, "architectures": [LANGUAGE_CLASS], "attention_dropout": 0.0, "model_type": ORIGINAL_LANGUAGE}


def native_vision_config(config: ConfigDict) -> dict[str, Any]:
    """Fields of `Emu3VQVAEConfig` from an original config."""
    fields = {native: config[original] for original, native in _VISION_FIELDS.items() if original in config}
    channels, multiplier = fields.get("base_channels", 256), fields.get("channel_multiplier", (1, 2, 2, 4))
    return {**fields, "hidden_size": channels * multiplier[-1], "num_attention_heads": 1, "attention_dropout": 0.0}


def original_vision_config(config: ConfigDict) -> dict[str, Any]:
    """An original config.json from the fields of an `Emu3VQVAEConfig`."""
    fields = {original: config[native] for original, native in _VISION_FIELDS.items() if native in config}
    return {**fields, "architectures": ["Emu3VisionVQModel"], "dropout": 0.0, "model_type": ORIGINAL_VISION}


def _substitute(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
