"""Whole model folders: what loads, what goes into a trained one, and what is wrong with a broken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import DeviceError, ModelError
from earl_cli.models import bundle, device
from earl_cli.models.bundle import load_model, load_vision_of, open_base, save_trained
from earl_cli.models.checkpoint import load_language
from earl_cli.models.vision import load_vision, save_vision
from earl_cli.tokens.vocabulary import EMU3


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "tiny"))


def change(folder: Path, **entries: object) -> None:
    file = folder / "earl.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_a_folder_loads_whole(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    assert (model.name, model.image_area, model.device, model.dtype) == (
        "tiny",
        1024,
        torch.device("cpu"),
        torch.float32,
    )
    assert model.layout.vocabulary.size == model.language.config.vocab_size
    assert model.vision.config.codebook_size == model.layout.vocabulary.codes
    assert model.sampling == SamplingParams(1.0, 64, 1.0)
    assert model.abilities is not None
    assert set(model.abilities["kinds"]) == {"snow", "night"}
    assert str(model.plan).startswith("cpu · float32 · sdpa · needs 0.1 GB, ")
    assert not model.language.training


def test_fingerprints_name_the_weights(folder: Path) -> None:
    before, vision = load_model(str(folder)), load_vision_of(str(folder))
    assert load_model(str(folder)).fingerprint == before.fingerprint
    state = load_file(folder / "vision" / "model.safetensors")
    state["quantize.embedding.weight"][0, 0] += 1
    save_file(state, folder / "vision" / "model.safetensors")
    assert load_model(str(folder)).fingerprint != before.fingerprint
    assert load_vision_of(str(folder)).fingerprint != vision.fingerprint


def test_a_vision_tokenizer_loads_alone(tiny_model_dir: Path) -> None:
    of_model, alone = load_vision_of(str(tiny_model_dir)), load_vision_of(str(tiny_model_dir / "vision"))
    assert of_model.fingerprint == alone.fingerprint
    assert (of_model.image_area, alone.image_area) == (1024, bundle.EMU3_AREA)
    assert "float32" in str(of_model.plan)


def test_a_trained_model_is_a_whole_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = open_base(str(tiny_model_dir))
    language = load_language(tiny_model_dir)
    assert base.parameters == sum(weight.numel() for weight in language.parameters())
    assert base.config["hidden_size"] == 64
    with torch.no_grad():
        language.model.norm.weight.fill_(3)
    save_trained(base, language, tmp_path / "trained")
    save_trained(base, language, tmp_path / "trained")
    model = load_model(str(tmp_path / "trained"))
    assert model.language.model.norm.weight[0].item() == 3
    assert model.abilities is None  # what it can do now is unknown
    assert load_vision_of(str(tmp_path / "trained")).fingerprint == load_vision_of(str(tiny_model_dir)).fingerprint
    assert sorted(file.name for file in (tmp_path / "trained").rglob("*") if file.name.startswith(".")) == []


def test_parts_of_two_models_are_noticed(folder: Path) -> None:
    vocabulary = json.loads((folder / "earl.json").read_text())["vocabulary"]
    change(folder, vocabulary=vocabulary | {"codes": 500})
    with pytest.raises(ModelError, match="vocab_size is"):
        load_model(str(folder))
    change(folder, vocabulary=vocabulary | {"codes": 500.5})
    with pytest.raises(ModelError, match=r"earl\.json.*no integer"):
        load_model(str(folder))
    change(folder, vocabulary=vocabulary)
    tokenizer = load_vision(folder / "vision")
    tokenizer.config.codebook_size = 256
    save_vision(tokenizer, folder / "vision")
    with pytest.raises(ModelError, match="codebook_size is 256, but the vocabulary"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "entries",
    [
        {"image_area": "big"},
        {"image_area": 3},
        {"image_area": 10**18},
        {"image_area": True},
        {"vision": 4},
        {"grids": [[9]]},
        {"grids": [[0, 4]]},
        {"grids": [[4, 10**5]]},
        {"grids": [[4, float("inf")]]},
        {"grids": [["4", 4.5]]},
        {"grids": 9},
        {"sampling": {"top_p": "all"}},
        {"sampling": [0.5]},
        {"abilities": {"kinds": {"snow": {"example": "x", "effects": ["recolour"]}}}},
    ],
)
def test_entries_that_make_no_sense(folder: Path, entries: dict) -> None:
    change(folder, **entries)
    with pytest.raises(ModelError, match="must be"):
        load_model(str(folder))


def test_missing_pieces_are_named(folder: Path) -> None:
    shutil.move(folder / "vision", folder / "elsewhere")
    with pytest.raises(ModelError, match="no sub-folder vision"):
        load_model(str(folder))
    change(folder, vision="elsewhere")
    assert load_model(str(folder)).vision is not None
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no text tokenizer"):
        load_model(str(folder))
    (folder / "earl.json").unlink()
    with pytest.raises(ModelError, match=r"no earl\.json, and a vocabulary of 778 ids is not Emu3's"):
        load_model(str(folder))


def test_memory_is_checked_before_any_weight_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_memory", lambda _: 1000)
    with pytest.raises(DeviceError, match=r"needs 0\.1 GB in bfloat16, 0\.0 GB are free"):
        load_model(str(folder))


def test_a_folder_without_description_is_emu3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Emu3", "vocab_size": 184622}))
    described = bundle.describe(tmp_path)
    assert (described.vocabulary, described.image_area, described.vision) == (EMU3, 65536, "BAAI/Emu3-VisionTokenizer")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "emu3", "text_config": {"vocab_size": 184622}}))
    assert bundle.describe(tmp_path).vision == tmp_path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"BAAI/Emu3-Gen: .*HF_HUB_OFFLINE is set"):
        load_model(str(tmp_path))


def test_a_hub_model_brings_its_vision_folder(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_model_dir, repo / "snapshots" / ("c" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c" * 40)
    model = load_model("someone/tiny@main")
    assert model.name == "someone/tiny@main"
    assert model.fingerprint == load_model(str(tiny_model_dir)).fingerprint
