"""Folders that are no such model, or are damaged: each is named for what it is."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from published_data import rezip, saved
from safetensors.torch import load_file, save_file
from transformers import Emu3ForCausalLM, Emu3TextConfig, Emu3VQVAE, Emu3VQVAEConfig

from earl_cli.errors import ModelError, OutputError
from earl_cli.models.checkpoint import load_language, open_checkpoint, parameter_count, save_language
from earl_cli.models.hub import locate
from earl_cli.models.vision import load_vision, save_vision
from earl_cli.models.weights import fingerprint, weight_files, write_weights

TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "codebook_size": 8,
    "temporal_downsample_factor": 1,
    "base_channels": 32,
    "channel_multiplier": [1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "hidden_size": 32,
}


@pytest.fixture
def language(tmp_path: Path) -> Path:
    save_language(Emu3ForCausalLM(Emu3TextConfig(**TEXT)), tmp_path / "language")
    return tmp_path / "language"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    save_vision(Emu3VQVAE(Emu3VQVAEConfig(**VISION)), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def folder_with(folder: Path, **files: object) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_other_network_is_named(language: Path, tokenizer: Path) -> None:
    with pytest.raises(ModelError, match=r"this is a vision tokenizer \(emu3_vqgan\), not a language model"):
        load_language(tokenizer)
    with pytest.raises(ModelError, match=r"this is a language model \(emu3_text_model\), not a vision tokenizer"):
        load_vision(language)
    tokenizer.rename(language / "vision")
    with pytest.raises(ModelError, match="sub-folder vision"):
        load_vision(language)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "this is a LlamaForCausalLM"),
        ({"model_type": "Emu3", "architectures": ["Emu3MoE"]}, "this is an Emu3MoE"),
        ({"model_type": "bert"}, "a model of the type bert"),
        ({"hidden_size": 4}, "names no model"),
    ],
)
def test_a_foreign_model_is_named(tmp_path: Path, config: dict, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        load_language(folder_with(tmp_path / "model", config=config))


def test_folders_without_config_are_named(tmp_path: Path, language: Path) -> None:
    adapter = folder_with(tmp_path / "adapter", adapter_config={"base_model_name_or_path": "BAAI/Emu3-Stage1"})
    with pytest.raises(ModelError, match="a LoRA adapter of BAAI/Emu3-Stage1"):
        load_language(adapter)
    pipeline = folder_with(tmp_path / "pipeline", model_index={"_class_name": "OmniGenPipeline"})
    with pytest.raises(ModelError, match="diffusers pipeline"):
        load_language(pipeline)
    with pytest.raises(ModelError, match="an empty folder"):
        load_language(folder_with(tmp_path / "empty"))
    with pytest.raises(ModelError, match="but with language"):
        load_language(tmp_path)
    with pytest.raises(ModelError, match="this is a file"):
        load_language(language / "config.json")
    with pytest.raises(ModelError, match="no such folder"):
        load_language(tmp_path / "nowhere")


def test_damaged_config_is_named(language: Path) -> None:
    (language / "config.json").write_text('{"model_type": "emu3_t')
    with pytest.raises(ModelError, match="JSON can't be read"):
        load_language(language)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**8}, {"num_labels": 10**8}, {"num_hidden_layers": 10**30}])
def test_a_config_of_millions_of_layers_is_refused(language: Path, change: dict) -> None:
    config = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=r"it has 10*(,000)+ layers, more than 1,000"):
        load_language(language)


def test_nor_for_thousands_of_blocks(tokenizer: Path) -> None:
    config = json.loads((tokenizer / "config.json").read_text())
    for change in ({"num_res_blocks": 2000}, {"channel_multiplier": [1] * 40, "num_res_blocks": 40}):
        (tokenizer / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match="layers, more than 1,000"):
            load_vision(tokenizer)


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"hidden_size": "wide"}, {"hidden_act": "swoosh"}, {"pad_token_id": 99}]
)
def test_a_config_that_makes_no_model(language: Path, change: dict) -> None:
    config = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match="no model can be built from this config"):
        load_language(language)


def test_missing_unknown_and_misshapen_weights_are_listed(language: Path) -> None:
    state = load_file(language / "model.safetensors")
    state["extra.bias"] = state.pop("model.norm.weight")
    state["lm_head.weight"] = torch.zeros(60, 16)
    save_file(state, language / "model.safetensors")
    with pytest.raises(ModelError) as error:
        load_language(language)
    assert "1 missing: model.norm.weight" in error.value.what
    assert "1 unknown: extra.bias" in error.value.what
    assert "lm_head.weight is [60, 16] instead of [64, 16]" in error.value.what


def test_truncated_weights_are_named(language: Path) -> None:
    file = language / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    with pytest.raises(ModelError, match=f"cut short: {len(whole) - 1000:,} of {len(whole):,} bytes"):
        load_language(language)
    file.write_bytes(whole[:50])
    with pytest.raises(ModelError, match="no complete safetensors file"):
        load_language(language)
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="no complete safetensors file"):
        load_language(language)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(ModelError, match="Git LFS pointer"):
        load_language(language)
    file.write_bytes((20).to_bytes(8, "little") + b'{"a": {"shape": 4 } }')
    with pytest.raises(ModelError, match="header of this safetensors file"):
        load_language(language)


def test_missing_shards_are_named(language: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    save_language(load_language(language), sharded, max_shard_bytes=3000)
    files = [file for file in weight_files(sharded) if file.suffix == ".safetensors"]
    files[1].unlink()
    with pytest.raises(ModelError, match=f"1 of {len(files)} weight files are missing: {files[1].name}"):
        load_language(sharded)
    for file in sharded.glob("model*"):
        file.unlink()
    with pytest.raises(ModelError, match="there are no weights"):
        load_language(sharded)


def test_shards_are_of_the_size_that_was_set_whatever_memory_their_weights_share(tmp_path: Path) -> None:
    buffer = torch.arange(4096.0)
    state = {f"w{i}": part for i, part in enumerate(buffer.chunk(8))} | {"tied": buffer[:512]}
    files = write_weights(tmp_path, state, max_shard_bytes=4096)
    assert files == (*(f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)), "model.safetensors.index.json")
    found = [load_file(file) for file in weight_files(tmp_path)]
    assert [list(shard) for shard in found] == [["w0", "w1"], ["w2", "w3"], ["w4", "w5"], ["w6", "w7"], ["tied"]]
    assert all(torch.equal(weight, state[name]) for shard in found for name, weight in shard.items())
    index = json.loads((tmp_path / files[-1]).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == 9 * 512 * 4


def test_an_index_can_not_point_out_of_the_folder(language: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "../../model.safetensors"}}
    (language / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="index doesn't list weight files"):
        load_language(language)
    for name in ("x" * 5000, "\ud800", "a\0b"):
        (language / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
        with pytest.raises(ModelError, match="1 of 1 weight files are missing"):
            load_language(language)


def test_bin_weights_load_without_running_code(language: Path) -> None:
    expected = load_language(language).state_dict()
    (language / "model.safetensors").unlink()
    torch.save(expected, language / "pytorch_model.bin")
    loaded = load_language(language).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)

    marker = language / "ran"

    class Hostile:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(marker),)

    for save in (torch.save, lambda content, file: Path(file).write_bytes(pickle.dumps(content))):
        save({"lm_head.weight": Hostile()}, language / "pytorch_model.bin")
        with pytest.raises(ModelError):
            load_language(language)
        assert not marker.exists()


def test_a_bin_is_looked_through_before_torch_reads_it(language: Path) -> None:
    """What hangs, crashes or fills the machine when it is unpickled; each is a few bytes or kilobytes."""
    state = load_language(language).state_dict()
    (language / "model.safetensors").unlink()
    file = language / "pytorch_model.bin"

    def reason(content: bytes) -> str:
        file.write_bytes(content)
        with pytest.raises(ModelError) as error:
            load_language(language)
        assert "weights_only" not in str(error.value)
        return str(error.value)

    good = saved(state)
    doubling = b"}K\1q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)) + b"Ns."
    for damaged, words in (
        (rezip(good, lambda _content: b"\x80\x02" + doubling), "can't be read: "),
        (rezip(good, lambda _content: b"\x80\x02)" + b"\x85" * 300_000 + b"."), "nested more than 100 deep"),
        (rezip(good, lambda content: content, zipfile.ZIP_DEFLATED), "compressed, as torch.save never does"),
        (saved({**state, "x": torch.zeros(1).expand(9000, 9000)}), r"9000*9000 elements, of which 1 are stored"),
        (saved({**state, "x": 7}), "no state dict of tensors"),
        (saved([1]), "no state dict of tensors"),
        (saved(state, _use_new_zipfile_serialization=False)[:-1000], "cut short"),
        (good[:-1000], "its archive is damaged"),
        (b"", "can't be read"),
    ):
        assert words in reason(damaged)
    file.write_bytes(saved(state, _use_new_zipfile_serialization=False))
    assert torch.equal(load_language(language).lm_head.weight, state["lm_head.weight"])
    parameters = {name: torch.nn.Parameter(weight.bfloat16()) for name, weight in state.items()}
    file.write_bytes(saved(parameters))
    assert load_language(language).lm_head.weight.shape == state["lm_head.weight"].shape


def test_an_archive_that_two_programs_read_differently_is_refused(language: Path) -> None:
    """Two directories of members: Python takes the last one, and so does torch, or it is refused."""
    (language / "model.safetensors").unlink()
    state = {"lm_head.weight": torch.zeros(64, 16)}
    other = rezip(saved(state), lambda _content: b"\x80\x02)" + b"\x85" * 300_000 + b".")
    for content in (other + saved(state), saved(state) + other):
        (language / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError):
            load_language(language)


HEADER = {"dtype": "F32", "shape": [64, 16], "data_offsets": [0, 4096]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": {**HEADER, "shape": [64, -16]}}, "can't be read"),
        ({"a": {**HEADER, "shape": [64.0, 16]}}, "can't be read"),
        ({"a": {**HEADER, "shape": ["64", 16]}}, "can't be read"),
        ({"a": {**HEADER, "dtype": "F31"}}, "can't be read"),
        ({"a": {**HEADER, "dtype": ["F32"]}}, "can't be read"),
        ({"a": {**HEADER, "data_offsets": [0, 10**30]}}, "contradicts itself: 'a' is of another size"),
        ({"a": {**HEADER, "shape": [10**9, 10**9]}}, "contradicts itself"),
        ({"a": HEADER, "b": HEADER}, "contradicts itself"),
        ({"a": HEADER, "b": {**HEADER, "data_offsets": [4000, 8096]}}, "contradicts itself"),
        ({"a": {**HEADER, "shape": [10**6], "data_offsets": [0, 4 * 10**6]}}, "cut short"),
        ([1], "can't be read"),
        (["["] * 10, "can't be read"),
    ],
)
def test_a_header_of_safetensors_that_lies_is_named(language: Path, header: object, words: str) -> None:
    text = json.dumps(header).encode()
    (language / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4096))
    with pytest.raises(ModelError, match=words):
        load_language(language)
    with pytest.raises(ModelError, match=words):
        parameter_count(open_checkpoint(language, "language"))


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a": ' + b"9" * 6000 + b"}"])
def test_json_of_a_model_is_bounded(language: Path, text: bytes) -> None:
    (language / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ModelError, match="can't be read"):
        load_language(language)
    (language / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"this JSON can't be read: (it is nested|a number)"):
        load_language(language)


def test_parameters_are_counted_from_headers(language: Path, tokenizer: Path) -> None:
    model = load_language(language)
    assert parameter_count(open_checkpoint(language, "language")) == sum(p.numel() for p in model.parameters())
    stored = load_file(tokenizer / "model.safetensors")
    assert parameter_count(open_checkpoint(tokenizer, "vision")) == sum(weight.numel() for weight in stored.values())


def test_saving_over_an_older_model_leaves_nothing_of_it(language: Path) -> None:
    model = load_language(language)
    save_language(model, language, max_shard_bytes=3000)
    assert not (language / "model.safetensors").exists()
    load_language(language)
    save_language(model, language)
    assert sorted(file.name for file in language.iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_can_not_be_written_is_named(language: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        save_language(load_language(language), tmp_path / "taken")


def test_fingerprint_changes_with_a_single_weight(language: Path) -> None:
    files = (language / "config.json", *weight_files(language))
    before = fingerprint(files)
    assert before == fingerprint(files)
    assert before != fingerprint(files, extra=["other tokenizer"])
    state = load_file(language / "model.safetensors")
    state["model.norm.weight"][3] += 1e-3
    save_file(state, language / "model.safetensors")
    assert fingerprint(files) != before


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, holding two revisions of one model, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--someone--earl"
    for commit, ref, scale in (("a" * 40, "main", 1.0), ("b" * 40, "ckpt_001999", 2.0)):
        torch.manual_seed(0)
        model = Emu3ForCausalLM(Emu3TextConfig(**TEXT))
        torch.nn.init.constant_(model.model.norm.weight, scale)
        save_language(model, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    return repo


def test_hub_ids_come_from_the_cache_while_offline(offline_cache: Path) -> None:
    assert load_language("someone/earl").model.norm.weight[0] == 1.0
    assert load_language("someone/earl@ckpt_001999").model.norm.weight[0] == 2.0
    assert load_language("someone/earl", revision="ckpt_001999").model.norm.weight[0] == 2.0
    assert locate("someone/earl@main") == offline_cache / "snapshots" / ("a" * 40)


@pytest.mark.parametrize("source", ["someone/else", "someone/earl@ckpt_000001"])
def test_offline_says_so(offline_cache: Path, source: str) -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set") as error:
        load_language(source)
    assert error.value.where == source


@pytest.mark.parametrize("source", ["no-such-model", "./someone/earl", "a/b/c", "someone/earl@", ""])
def test_what_is_no_hub_id_is_a_missing_folder(offline_cache: Path, source: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        locate(source or "no folder")
