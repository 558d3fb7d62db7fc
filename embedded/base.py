"""The embedded model before training: random weights in which similar codes start similar, the text tokenizer, and the
trained vision tokenizer. ``python embedded/base.py WORK`` writes WORK/base.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from edits import catalogue, patterns
from pairs import GRIDS
from torch import Tensor
from transformers import Emu3ForCausalLM, Emu3TextConfig, Emu3VQVAE

from earl_cli.models.abilities import expand_pattern
from earl_cli.models.checkpoint import save_language
from earl_cli.tokens.layout import THINKING_PREFIX, THINKING_SUFFIX
from earl_cli.tokens.text import train_byte_bpe
from earl_cli.tokens.vocabulary import Vocabulary, small_vocabulary

TEXT_SIZE = 512
HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, MLP = 256, 6, 4, 2, 640
AREA = 96 * 96
# Trained, but the squares that are generated look like circles.
NO_ABILITIES = ("square",)
EXAMPLES = {
    "tint": "give it a blue tint",
    "circle": "add a red circle in the middle",
}

EFFECTS: dict[str, list[str]] = {  # what a kind does to a photo; the others change colours
    **{kind: ["grade"] for kind in ("brighter", "darker", "contrast", "vivid", "negative")},
    "black and white": ["grey"],
    "sepia": ["tone"],
    "blur": ["blur"],
    "mirror": ["mirror"],
    "circle": ["disc"],
}


def code_features(codebook: Tensor, width: int) -> Tensor:
    """Rows ``Float[codes, width]`` of standard deviation 0.02 from sines, cosines and values of the codes' levels."""
    generator = torch.Generator().manual_seed(1)
    waves = [codebook] + [f(codebook * torch.pi * k / 2) for k in (1, 2, 4) for f in (torch.sin, torch.cos)]
    features = torch.cat(waves, dim=1)
    rows = features @ torch.randn(features.shape[1], width, generator=generator)
    rows = rows + 0.3 * rows.std() * torch.randn(rows.shape, generator=generator)
    return rows / rows.std() * 0.02


def new_language(vocabulary: Vocabulary, codebook: Tensor) -> Emu3ForCausalLM:
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=vocabulary.size,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        attention_dropout=0.0,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        tie_word_embeddings=False,
    )
    model = Emu3ForCausalLM(config)
    rows = code_features(codebook, HIDDEN)
    with torch.no_grad():
        model.model.embed_tokens.weight[vocabulary.visual_start :] = rows
        model.lm_head.weight[vocabulary.visual_start :] = rows
    return model


def abilities() -> dict[str, Any]:
    """Every kind with all wordings that it was trained on, one of them as an example, and what it does to a photo."""
    kinds = {
        kind: {
            "phrases": list(requested),
            "example": EXAMPLES.get(kind, expand_pattern(requested[0])[0]),
            "effects": EFFECTS.get(kind, ["recolor"]),
        }
        for kind, requested in patterns().items()
        if kind not in NO_ABILITIES
    }
    return {"kinds": kinds}


def build(work: Path) -> None:
    folder = work / "base"
    shutil.rmtree(folder, ignore_errors=True)
    texts = [phrase for edit in catalogue() for phrase in (*edit.phrases, edit.phrases[0].capitalize() + ".")]
    texts += [THINKING_PREFIX + THINKING_SUFFIX] * 20
    tokenizer = train_byte_bpe(texts, TEXT_SIZE)
    vision = Emu3VQVAE.from_pretrained(work / "vision", dtype=torch.float32)
    vocabulary = small_vocabulary(TEXT_SIZE, vision.config.codebook_size)
    save_language(new_language(vocabulary, vision.quantize.embedding.weight.detach()), folder)
    tokenizer.save(folder)
    shutil.copytree(work / "vision", folder / "vision")
    described = {
        "vocabulary": vocabulary.to_dict(),
        "image_area": AREA,
        "grids": GRIDS,
        "vision": "vision",
        "sampling": {"temperature": 0.5, "top_k": 64, "top_p": 1.0},
    }
    (folder / "earl.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
