"""Low-rank adapters (arXiv 2106.09685): only they are trained, and a plain model with the same outputs is saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from trainings import options, write_pairs
from transformers import Emu3ForCausalLM

from earl_cli.app import run
from earl_cli.config.loader import load_config
from earl_cli.config.sampling import SamplingParams
from earl_cli.config.sft import SftConfig
from earl_cli.models.bundle import Base, load_model, load_vision_of, open_base
from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints
from earl_cli.training.sft.model import load_trainable, merged_model, merged_weights
from earl_cli.training.sft.run import SftData, SftResult, fine_tune, load_data, write_gallery

SMALL = {"max_steps": 6, "batch_size": 2, "accumulation": 2, "warmup_steps": 1, "learning_rate": 3e-3, "log_every": 1}
LORA = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1, "precision": "float32", "device": "cpu"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("lora") / "store", 16)


class StoppedError(Exception):
    """Raised in place of a kill."""


def prepare(model: Path, store: Path, output: Path, **values: object) -> tuple[SftConfig, Base, SftData, nn.Module]:
    settings = load_config(SftConfig, None, given={"data": [store], "output": output, **SMALL, **LORA, **values})
    base = open_base(str(model))
    output.mkdir(exist_ok=True)
    return settings, base, load_data(settings, base.layout, 4096), load_trainable(base, settings, 100)[0]


def train(
    model: Path, store: Path, output: Path, *, stop_at: int = 0, **values: object
) -> tuple[nn.Module, Base, SftResult]:
    settings, base, data, adapted = prepare(model, store, output, **values)

    def on_step(step: int, _steps: int, metrics: Mapping[str, float]) -> None:
        if step == stop_at and "loss" in metrics:
            raise StoppedError

    return adapted, base, fine_tune(settings, adapted, base, data, on_step)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_only_the_adapters_are_trained(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    before = weights(prepare(tiny_model_dir, store, tmp_path / "run")[3])
    adapted, *_ = train(tiny_model_dir, store, tmp_path / "run")
    after = weights(adapted)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    linear = [name for name, layer in adapted.named_modules() if name.endswith("base_layer")]
    assert len(linear) == 2 * 7
    beside = {name.removesuffix("base_layer") + f"lora_{side}.default.weight" for name in linear for side in "AB"}
    assert changed == beside
    assert {name for name, weight in adapted.named_parameters() if weight.requires_grad} == beside


@pytest.mark.parametrize(("stop_at", "precision"), [(3, "float32"), (5, "float32"), (3, "bfloat16")])
def test_a_resumed_training_ends_in_the_same_bits(
    stop_at: int, precision: str, store: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The dropout of adapters, which takes random numbers, is resumed exactly too."""
    how = {"checkpoint_every": 2, "precision": precision}
    whole, _, _ = train(tiny_model_dir, store, tmp_path / "whole", **how)
    with pytest.raises(StoppedError):
        train(tiny_model_dir, store, tmp_path / "torn", stop_at=stop_at, **how)
    resumed, _, result = train(tiny_model_dir, store, tmp_path / "torn", **how)
    assert result.resumed_from == stop_at - 1
    for (name, one), other in zip(weights(whole).items(), weights(resumed).values(), strict=True):
        assert torch.equal(one, other), name


def test_a_checkpoint_is_a_model_with_the_adapters_beside_it(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted, *_ = train(tiny_model_dir, store, tmp_path / "run")
    (checkpoint,) = checkpoints(tmp_path / "run" / CHECKPOINTS)
    assert (checkpoint / "adapter/adapter_model.safetensors").is_file()
    with merged_weights(adapted) as expected:
        found = load_model(str(checkpoint), device="cpu").language.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_saved_model_and_the_adapter_beside_it_give_the_logits_of_the_trained_one(
    store: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    sets = options(**SMALL, **LORA)
    assert run(["sft", "--model", str(tiny_model_dir), "--data", str(store), "-o", str(output), *sets]) == 0
    ids = torch.randint(0, 600, (2, 30), generator=torch.Generator().manual_seed(0))

    def logits(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model.eval()(ids).logits

    start = Emu3ForCausalLM.from_pretrained(tiny_model_dir)
    unadapted = logits(start)
    adapted = PeftModel.from_pretrained(start, output / "adapter")
    assert adapted.peft_config["default"].base_model_name_or_path == str(tiny_model_dir)
    expected = logits(adapted)
    assert (expected - unadapted).abs().max() > 0.01
    assert (logits(load_model(str(output), device="cpu").language) - expected).abs().max() < 1e-5
    assert (logits(Emu3ForCausalLM.from_pretrained(output)) - expected).abs().max() < 1e-5


def test_merging_is_base_and_adapters(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted, *_ = train(tiny_model_dir, store, tmp_path / "run")
    apart = {name.replace("base_model.model.", ""): weight for name, weight in weights(adapted).items()}
    with merged_weights(adapted) as merged:
        whole = {name: weight.clone() for name, weight in merged.items()}
    assert set(whole) == set(base_names := [name.replace(".base_layer", "") for name in apart if "lora" not in name])
    assert len(base_names) == len(whole)
    for name, weight in whole.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.base_layer.weight" not in apart:
            assert torch.equal(weight, apart[name])
            continue
        down, up = apart[f"{layer}.lora_A.default.weight"], apart[f"{layer}.lora_B.default.weight"]
        torch.testing.assert_close(weight, apart[f"{layer}.base_layer.weight"] + 8 / 4 * up @ down)


def test_a_gallery_leaves_every_weight_as_it_was(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted, base, _ = train(tiny_model_dir, store, tmp_path / "run")
    adapted.train()
    before, modes = weights(adapted), [module.training for module in adapted.modules()]
    held = load_data(load_config(SftConfig, None, given={"data": [store], "output": "o"}), base.layout, 4096).train
    vision = load_vision_of(str(tiny_model_dir), device="cpu").model
    state = torch.random.get_rng_state()
    write_gallery(adapted, vision, base.layout, held, 2, SamplingParams(), tmp_path / "page.html", "adapters")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in adapted.modules()] == modes
    for (name, one), other in zip(before.items(), weights(adapted).values(), strict=True):
        assert torch.equal(one, other), name


def test_a_gallery_shows_the_adapted_model(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted, *_ = train(tiny_model_dir, store, tmp_path / "run")
    with merged_weights(copy.deepcopy(adapted)) as expected, merged_model(adapted) as language:
        assert not language.training
        for name, weight in language.state_dict().items():
            if "lora" not in name:
                torch.testing.assert_close(weight, expected[name.replace(".base_layer", "")], rtol=0, atol=1e-6)


def test_a_gallery_that_fails_leaves_every_weight_as_it_was(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted, *_ = train(tiny_model_dir, store, tmp_path / "run")
    before = weights(adapted)
    with pytest.raises(KeyboardInterrupt), merged_model(adapted):
        raise KeyboardInterrupt
    for (name, one), other in zip(before.items(), weights(adapted).values(), strict=True):
        assert torch.equal(one, other), name
