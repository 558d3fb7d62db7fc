"""The memory of a training by calculation, against tensors that are counted and a model that is known to fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from trainings import write_pairs

from earl_cli.config.loader import load_config
from earl_cli.config.sft import SftConfig
from earl_cli.data.batches import collate, load_rows
from earl_cli.models.bundle import open_base
from earl_cli.training.common.memory import Memory, ModelShape, estimate
from earl_cli.training.sft.loss import whole_vocabulary
from earl_cli.training.sft.model import load_trainable, with_adapters

EMU3 = ModelShape(parameters=8_492_011_520, hidden=4096, layers=32, mlp=14336, kv_width=8 * 128, vocabulary=184622)
GB = 1_000_000_000


def config(name: str | None = None, **values: object) -> SftConfig:
    return load_config(SftConfig, name, given={"data": ["d"], "output": "o", **values})


def emu3(devices: int, name: str = "sft/simple", **values: object) -> Memory:
    return estimate(EMU3, config(name, **values), processes=devices, bfloat16=True, longest=3000)


def size(tensors: Iterable[Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@pytest.mark.parametrize("embedded", [False, True])
def test_weights_gradients_and_optimizer_are_what_is_allocated(
    embedded: bool, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = open_base(None if embedded else str(tiny_model_dir))
    settings = config(precision="float32", device="cpu", gradient_checkpointing=False)
    rows = load_rows([write_pairs(tmp_path / "store", 2, codes=base.layout.vocabulary.codes)], base.layout)
    batch = collate([("0", rows.example(0)), ("1", rows.example(1))], base.layout.vocabulary.pad)
    model, _ = load_trainable(base, settings, 100)
    model.set_loss_ranges(whole_vocabulary(base.layout.vocabulary))
    optimizer = torch.optim.AdamW(model.parameters())
    model(batch["input_ids"], batch["labels"])["loss"].backward()
    optimizer.step()
    shape = ModelShape.of(base.parameters, base.config)
    needed = estimate(shape, settings, processes=1, bfloat16=False, longest=100)
    assert needed.weights == size(model.parameters())
    assert needed.gradients == size(weight.grad for weight in model.parameters())
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert needed.optimizer == size(moments)
    assert needed.host == 0


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_adapters_are_as_many_weights_as_peft_trains(rank: int, tiny_model_dir: Path) -> None:
    base = open_base(str(tiny_model_dir))
    settings = config(precision="float32", device="cpu", lora_rank=rank)
    model, _ = load_trainable(base, settings, 100)
    trained, whole = model.get_nb_trainable_parameters()
    shape = ModelShape.of(base.parameters, base.config)
    assert shape.adapters(rank) == trained
    layers = [each for each in model.get_base_model().model.layers.modules() if isinstance(each, BaseTunerLayer)]
    assert shape.linear == sum(each.base_layer.weight.numel() for each in layers)
    needed = estimate(shape, settings, processes=1, bfloat16=False, longest=100)
    assert needed.weights == 4 * whole == size(model.parameters())
    assert needed.gradients == 4 * trained
    assert needed.optimizer == 8 * trained


def test_adapters_of_another_shape(tiny_model_dir: Path) -> None:
    from transformers.models.emu3.configuration_emu3 import Emu3TextConfig
    from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM

    fields = {
        "vocab_size": 400,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "pad_token_id": 0,
    }
    language = Emu3ForCausalLM(Emu3TextConfig(**fields))
    adapted = with_adapters(language, 5, 32, 0.0, 42)
    trained, _ = adapted.get_nb_trainable_parameters()
    assert ModelShape.of(1, fields).adapters(5) == trained


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_sharding_divides(processes: int) -> None:
    weights = 2 * EMU3.parameters  # in bfloat16
    none, second, third = (emu3(processes, sharding=each) for each in ("none", "zero2", "zero3"))
    assert none.optimizer == 8 * EMU3.parameters
    assert second.weights == weights
    assert second.gradients == weights // processes
    assert third.weights == pytest.approx(weights / processes + 2 * GB, rel=1e-6)  # and what is gathered at a time
    assert third.gradients == second.gradients
    assert second.optimizer == third.optimizer == 12 * EMU3.parameters // processes
    assert none.device > second.device > third.device


def test_offloading_moves_weights_gradients_and_optimizer_to_the_host() -> None:
    there, offloaded = emu3(4), emu3(4, name="sft/simple-offload")
    assert there.host == 0
    assert offloaded.host == 16 * EMU3.parameters // 4
    assert (offloaded.gradients, offloaded.optimizer) == (0, 0)
    assert offloaded.weights < there.weights
    assert offloaded.activations == there.activations


def test_emu3_fits_four_gpus_of_80_gb_sharded_and_not_one_alone() -> None:
    block = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336 + 2 * 4096  # attention, mlp and two norms
    assert EMU3.parameters == 2 * 184622 * 4096 + 32 * block + 4096
    assert emu3(4).device < 80 * GB
    assert emu3(1, sharding="none").device > 80 * GB


def test_emu3_with_adapters_on_4_bit_weights_fits_a_gpu_of_24_gb() -> None:
    needed = emu3(1, name="sft/lora")
    blocks, ends = EMU3.linear // 2, 2 * (EMU3.parameters - EMU3.linear)  # embedding, head and norms stay in bfloat16
    assert needed.weights - 4 * EMU3.adapters(32) - 2 * EMU3.adapters(32) == blocks + ends
    assert needed.device < 24 * GB
