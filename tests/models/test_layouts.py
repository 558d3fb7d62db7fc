"""Both published layouts of both networks, in and out, against what transformers itself writes and computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Emu3Config,
    Emu3ForCausalLM,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Emu3VQVAE,
    Emu3VQVAEConfig,
)

from earl_cli.models import names, vision
from earl_cli.models.checkpoint import load_language, save_language
from earl_cli.models.vision import load_vision, save_vision

TEXT = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "codebook_size": 32,
    "temporal_downsample_factor": 2,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [1],
    "hidden_size": 64,
}


def language_model(**changes: object) -> Emu3ForCausalLM:
    torch.manual_seed(1)
    return Emu3ForCausalLM(Emu3TextConfig(**(TEXT | changes))).eval()


def vision_model() -> Emu3VQVAE:
    torch.manual_seed(2)
    return Emu3VQVAE(Emu3VQVAEConfig(**VISION)).eval()


def logits(model: Emu3ForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40).remainder(160)[None]).logits


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", ["native", "original"])
@pytest.mark.parametrize("shard", [5_000_000_000, 20_000])
def test_language_model_survives_a_round_trip(tmp_path: Path, layout: names.CheckpointFormat, shard: int) -> None:
    model = language_model()
    save_language(model, tmp_path, layout, max_shard_bytes=shard)
    loaded = load_language(tmp_path)
    assert same_weights(model, loaded)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.rope_parameters["rope_theta"] == 5000.0
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard < 100_000)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard < 100_000)


def test_original_config_reads_as_the_published_ones(tmp_path: Path) -> None:
    save_language(language_model(), tmp_path, "original")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "Emu3"
    assert config["architectures"] == ["Emu3ForCausalLM"]
    assert (config["rope_theta"], config["rope_scaling"]) == (5000.0, None)
    assert "auto_map" not in config


def test_published_config_gives_the_published_model() -> None:
    published = {
        "architectures": ["Emu3ForCausalLM"],
        "attention_dropout": 0.1,
        "auto_map": {"AutoConfig": "configuration_emu3.Emu3Config"},
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 9216,
        "model_type": "Emu3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "vocab_size": 184622,
    }
    config = Emu3TextConfig(**names.native_language_config(published))
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1000000.0}
    assert config.attention_dropout == 0.0
    with torch.device("meta"):
        assert sum(p.numel() for p in Emu3ForCausalLM(config).parameters()) == pytest.approx(8.5e9, rel=0.02)
    back = names.original_language_config(config.to_dict())
    assert {key: back[key] for key in published if key not in ("auto_map", "attention_dropout")}.items() <= back.items()
    assert back["img_token_id"] == 151851


def test_scaled_rope_survives_the_original_layout() -> None:
    config = {"vocab_size": 9, "rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    native = names.native_language_config(config)
    assert native["rope_parameters"] == {"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0}
    back = names.original_language_config(native)
    assert (back["rope_theta"], back["rope_scaling"]) == (7.0, {"type": "linear", "factor": 2.0})


def test_dropout_of_a_published_config_is_off(tmp_path: Path) -> None:
    language_model(attention_dropout=0.1).save_pretrained(tmp_path)
    loaded = load_language(tmp_path).train()
    assert torch.equal(logits(loaded), logits(loaded))


def test_what_transformers_saves_loads_here_and_back(tmp_path: Path) -> None:
    model = language_model()
    model.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert same_weights(load_language(tmp_path / "theirs"), model)
    save_language(model, tmp_path / "ours", max_shard_bytes=30_000)
    assert torch.equal(logits(Emu3ForCausalLM.from_pretrained(tmp_path / "ours").eval()), logits(model))
    vq = vision_model()
    vq.save_pretrained(tmp_path / "their-vq")
    assert same_weights(load_vision(tmp_path / "their-vq"), vq)
    save_vision(vq, tmp_path / "our-vq")
    assert same_weights(Emu3VQVAE.from_pretrained(tmp_path / "our-vq"), vq)


def test_tied_head_stays_tied(tmp_path: Path) -> None:
    model = language_model(tie_word_embeddings=True)
    save_language(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_language(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


def test_combined_model_gives_both_parts(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = Emu3ForConditionalGeneration(
        Emu3Config(text_config=TEXT, vq_config=VISION, vocabulary_map={"<image>": 5})
    ).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(30)[None] + 10
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(load_language(tmp_path)(ids).logits, expected)
    assert same_weights(load_vision(tmp_path), model.model.vqmodel)


def test_vision_tokenizer_survives_both_layouts(tmp_path: Path) -> None:
    model = vision_model()
    save_vision(model, tmp_path / "original", "original")
    stored = load_file(tmp_path / "original" / "model.safetensors")
    for name in (
        "encoder.down.1.attn.0.q.weight",
        "encoder.down.1.attn.0.norm.bias",
        "encoder.mid.attn_1.proj_out.weight",
        "encoder.mid.attn_1.norm.weight",
        "decoder.mid.attn_1.norm.norm_layer.weight",
        "decoder.up.1.attn.1.norm.conv_y.weight",
        "decoder.up.1.attn.1.v.bias",
        "decoder.up.1.upsample.conv.weight",
        "encoder.down.0.downsample.conv.bias",
        "decoder.time_conv.0.conv.conv.weight",
        "encoder.time_res_stack.0.norm1.running_mean",
        "quantize.embedding.weight",
        "post_quant_conv.conv.weight",
    ):
        assert name in stored
    assert stored["encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    assert (config["model_type"], config["ch"], config["ch_mult"], config["z_channels"]) == (
        "Emu3VisionVQ",
        32,
        [1, 2],
        4,
    )

    loaded = load_vision(tmp_path / "original")
    assert same_weights(loaded, model)
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    assert torch.equal(vision.encode(loaded, pixels), vision.encode(model, pixels))
    save_vision(loaded, tmp_path / "native")
    save_vision(load_vision(tmp_path / "native"), tmp_path / "again", "original")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_every_vision_name_goes_back_to_itself() -> None:
    with torch.device("meta"):
        native = list(Emu3VQVAE(Emu3VQVAEConfig()).state_dict())
    originals = [names.original_vision_name(name) for name in native]
    assert len(set(originals)) == len(native)
    assert [names.native_vision_name(name) for name in originals] == native
    assert not any("block.down" in name or "_proj" in name or "middle" in name for name in originals)


def test_bfloat16_keeps_its_type_and_halves_the_file(tmp_path: Path) -> None:
    model = language_model()
    save_language(model, tmp_path / "full")
    save_language(model.to(torch.bfloat16), tmp_path / "half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = load_language(tmp_path / "half", dtype=torch.float32)
    assert loaded.dtype == torch.float32
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
