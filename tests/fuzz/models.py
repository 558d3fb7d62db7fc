"""Model folders: one of their files, and what loading makes of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from fuzzing import Room
from transformers.models.emu3.configuration_emu3 import Emu3TextConfig, Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM, Emu3VQVAE

from earl_cli.errors import EarlError
from earl_cli.models.bundle import load_model, open_base
from earl_cli.models.checkpoint import parameter_count, save_language
from earl_cli.tokens.text import train_byte_bpe
from earl_cli.tokens.vocabulary import small_vocabulary

WEIGHTS = "model.safetensors"


def _model(folder: Path) -> None:
    """A whole model folder, of a few kilobytes."""
    text = train_byte_bpe(["make it snowy"], size=260)
    vocabulary = small_vocabulary(text.size, codes=16)
    text.save(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ids = {"pad_token_id": vocabulary.pad, "bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos}
    config = Emu3TextConfig(vocab_size=vocabulary.size, num_key_value_heads=1, attention_dropout=0.0, **sizes, **ids)
    save_language(Emu3ForCausalLM(config), folder)
    Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=16, embed_dim=4, latent_channels=4, temporal_downsample_factor=1, base_channels=32,
            channel_multiplier=[1], num_res_blocks=1, hidden_size=32, attn_resolutions=[], num_attention_heads=1,
        )
    ).save_pretrained(folder / "vision")  # fmt: skip
    about = {
        "vocabulary": vocabulary.to_dict(),
        "image_area": 1024,
        "vision": "vision",
        "grids": [[4, 4]],
        "sampling": {"temperature": 1.0, "top_k": 64, "top_p": 1.0},
        "abilities": {"kinds": {"snow": {"phrases": ["make it {snowy|white}"], "example": "make it snowy"}}},
    }
    (folder / "earl.json").write_text(json.dumps(about, indent=1))


_KEPT = tempfile.TemporaryDirectory(prefix="fuzz-model-")
FOLDER = Path(_KEPT.name)
_model(FOLDER)
NAMES = ("config.json", "earl.json", "tokenizer.json", "vision/config.json", "vision/model.safetensors")
GOOD = {
    **{name: (FOLDER / name).read_bytes() for name in NAMES},
    WEIGHTS: (FOLDER / WEIGHTS).read_bytes(),
    "header": (FOLDER / WEIGHTS).read_bytes()[8 : 8 + int.from_bytes((FOLDER / WEIGHTS).read_bytes()[:8], "little")],
    "model.safetensors.index.json": json.dumps({"weight_map": {"lm_head.weight": WEIGHTS}}).encode(),
}
SNIPPETS = (
    b"[" * 5000, b"9" * 6000, b"-1", b"null", b"NaN", b"1e999", b"{}", b"[]", b'""', b"\0", b"\xff", b'"\\ud800"',
    b"true", b"1000000000000", b"99999999", b"0.5", b'"../x"', b'"/etc"', b'"org/name"', b'"data_offsets":[0,0]',
    b'"dtype":"F64"', b'"auto_map": {"AutoModel": "x.py"}, ', b'"_attn_implementation": "x", ',
    b'"rope_scaling": {"type": "x"}, ', b"(?=(a+)+)$", b'"num_hidden_layers": 100000000,',
    b'"num_res_blocks": 100000000,', b'"hidden_size": 1000000000,', b'"quantization_config": {},', b"{" * 500,
    b"|" * 500, b"{a|b}" * 40, b'"Regex": "(a+)+$"', b'"type": "BPE"', b'"type": "Split"', b'"\\u0000"',
)  # fmt: skip
HOSTILE = (
    [
        ("config.json", json.dumps(json.loads(GOOD["config.json"]) | {key: value}).encode())
        for key in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "max_position_embeddings")
        for value in (10**8, 10**15, 10**30, -1, 0, "a", 1.5, None, [1], {"a": 1}, True)
    ]
    + [
        ("vision/config.json", json.dumps(json.loads(GOOD["vision/config.json"]) | {key: value}).encode())
        for key in ("num_res_blocks", "base_channels", "codebook_size", "embed_dim", "temporal_downsample_factor")
        for value in (10**8, 10**15, -1, 0, "a", None)
    ]
    + [
        (
            "vision/config.json",
            json.dumps(json.loads(GOOD["vision/config.json"]) | {"channel_multiplier": [1] * 10_000}).encode(),
        ),
        ("earl.json", json.dumps(json.loads(GOOD["earl.json"]) | {"grids": [[1, 1]] * 100_000}).encode()),
        ("earl.json", json.dumps(json.loads(GOOD["earl.json"]) | {"image_area": 10**18}).encode()),
        ("earl.json", json.dumps(json.loads(GOOD["earl.json"]) | {"vision": "../../../etc"}).encode()),
    ]
)


def read(name: str, content: bytes, folder: Path) -> str:
    for file in (*NAMES, WEIGHTS):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(FOLDER / file, folder / file)
    if name == "header":
        _, size = GOOD[name], int.from_bytes(GOOD[WEIGHTS][:8], "little")
        name, content = WEIGHTS, len(content).to_bytes(8, "little") + content + GOOD[WEIGHTS][8 + size :]
    (folder / name).write_bytes(content)
    base = open_base(str(folder))
    parameter_count(base.language)
    model = load_model(str(folder), device="cpu")
    model.layout.text.decode(model.layout.text.encode("make it snowy"))
    return "loaded"


ROOM = Room("models", GOOD, read, (EarlError,), SNIPPETS, HOSTILE, 150)
