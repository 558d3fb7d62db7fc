"""What a training writes at most, by calculation, against what it writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainings import write_pairs

from earl_cli.app import run
from earl_cli.config.loader import load_config
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.errors import OutputError
from earl_cli.models.bundle import open_base
from earl_cli.training.common import memory
from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints
from earl_cli.training.common.memory import check_disk_space, rl_disk, sft_disk

EMU3: Any = SimpleNamespace(
    parameters=8_492_199_936,
    config={
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "vocab_size": 184622,
    },
    description=SimpleNamespace(vision="BAAI/Emu3-VisionTokenizer"),
)
NEEDED = {"data": ["a"], "output": "o"}


def test_fifty_checkpoints_of_the_paper_take_six_terabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000_000_000))
    published = load_config(SftConfig, "sft/simple", ["keep_checkpoints=50"], given=NEEDED)
    needed = sft_disk(published, EMU3, 10_000)
    assert 5.9e12 < needed.total < 6.2e12
    with pytest.raises(OutputError) as raised:
        check_disk_space(tmp_path, needed)
    assert "the run needs up to 6.08 TB: 51 complete checkpoints of 119 GB, 1 model of 17 GB; 1 TB are free" in str(
        raised.value
    )
    assert raised.value.hint == "--set keep_checkpoints=7 fits"
    assert check_disk_space(tmp_path, sft_disk(load_config(SftConfig, "sft/simple", given=NEEDED), EMU3, 10_000))
    few = sft_disk(published, EMU3, 300)
    assert (few.complete, few.models) == (3, 1)


@pytest.mark.parametrize("output", ["there", "not/yet/there"])
def test_what_is_there_of_the_run_counts_as_room(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there" / CHECKPOINTS / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "there" / CHECKPOINTS / "checkpoint-1" / "weights").write_bytes(bytes(600))
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: SimpleNamespace(free=500))
    needed = memory.Disk(checkpoint=400, complete=2, model=200, models=1, keep=1)
    if output == "there":
        assert check_disk_space(tmp_path / output, needed) == 1100
        return
    with pytest.raises(OutputError) as raised:
        check_disk_space(tmp_path / output, needed)
    assert raised.value.hint == "free some space, or choose another --output"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("lora_rank=4",)])
def test_checkpoints_take_what_was_calculated(more: tuple[str, ...], tiny_model_dir: Path, tmp_path: Path) -> None:
    store, base = write_pairs(tmp_path / "store", 12), open_base(str(tiny_model_dir))
    given = {"data": [store], "validation": [store], "device": "cpu"}
    common = ("precision=float32", "gradient_checkpointing=false", *more)
    small = (
        "max_steps=2",
        "batch_size=2",
        "accumulation=1",
        "warmup_steps=1",
        "checkpoint_every=1",
        "keep_checkpoints=2",
    )
    few = ("num_iterations=2", "episodes_per_iteration=4", "generations_per_sample=2", "max_response_tokens=64")
    few = (*few, "max_length=128", "reward=reference", "checkpoint_every=1")
    configs: dict[str, Any] = {
        "sft": load_config(SftConfig, None, [*common, *small], {**given, "output": tmp_path / "sft"}),
        "rl": load_config(RlConfig, None, [*common, *few], {**given, "output": tmp_path / "rl"}),
    }
    expected = {"sft": sft_disk(configs["sft"], base, 2), "rl": rl_disk(configs["rl"], base)}
    for command, settings in (("sft", small), ("rl", few)):
        sets = [part for value in (*common, *settings) for part in ("--set", value)]
        places = ["--data", str(store), "--validation", str(store), "-o", str(tmp_path / command), "--device", "cpu"]
        assert run([command, "--model", str(tiny_model_dir), *places, *sets]) == 0
        whole = checkpoints(tmp_path / command / CHECKPOINTS)
        assert len(whole) == 2
        for checkpoint in whole:
            assert size(checkpoint) == pytest.approx(expected[command].checkpoint, rel=0.05)
        model = tmp_path / command / "model.safetensors"
        assert model.stat().st_size + size(tmp_path / command / "vision") == pytest.approx(
            expected[command].model, rel=0.05
        )
