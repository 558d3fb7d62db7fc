"""Fine-tuning against a plain loop of transformers' on whole logits: the same weights after the same steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from trainings import write_pairs
from transformers import Emu3ForCausalLM, Trainer, TrainingArguments

from earl_cli.config.loader import load_config
from earl_cli.config.sft import SftConfig
from earl_cli.data.batches import collate
from earl_cli.models.bundle import open_base
from earl_cli.training.sft.model import TrainedEmu3, load_trainable
from earl_cli.training.sft.run import SftData, fine_tune, load_data

STEPS = 12
SETTINGS = {"max_steps": STEPS, "batch_size": 2, "accumulation": 2, "warmup_steps": 2, "learning_rate": 3e-3}
SETTINGS |= {"weight_decay": 0.3, "log_every": 1, "precision": "float32", "device": "cpu", "checkpoint_every": 100}
SETTINGS |= {"gradient_checkpointing": False, "attention": "eager"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("parity") / "store", 16)


def ours(model: Path, store: Path, output: Path, **values: object) -> tuple[dict[str, Tensor], SftData, SftConfig]:
    config = load_config(SftConfig, None, given={"data": [store], "output": output, **SETTINGS, **values})
    base = open_base(str(model))
    data = load_data(config, base.layout, 4096)
    language, _ = load_trainable(base, config, 100)
    output.mkdir()
    fine_tune(config, language, base, data, lambda *_: None)
    return weights(language), data, config


def theirs(model: Path, data: SftData, config: SftConfig, folder: Path, *, mean_of_batches: bool) -> dict[str, Tensor]:
    """transformers' own loss, groups of weights and means."""
    language = Emu3ForCausalLM.from_pretrained(model, attn_implementation="eager")

    class Plain(Trainer):
        def __init__(self, **given: object) -> None:
            super().__init__(**given)
            self.model_accepts_loss_kwargs = not mean_of_batches

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": config.min_learning_rate},
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_epsilon=config.epsilon,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=config.seed,
        use_cpu=True,
    )

    def batch(examples: list[object]) -> dict[str, object]:
        found = collate(examples, pad=0)
        found.pop("ids")
        return found

    Plain(model=language, args=arguments, train_dataset=data.train, data_collator=batch).train()
    return weights(language)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("loss_mean", ["tokens", "batch"])
def test_twelve_steps_are_those_of_transformers(
    loss_mean: str, store: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """With its groups: weights of norms don't decay. And with either mean of a step's losses."""
    found, data, config = ours(tiny_model_dir, store, tmp_path / "ours", loss_mean=loss_mean)
    expected = theirs(tiny_model_dir, data, config, tmp_path / "theirs", mean_of_batches=loss_mean == "batch")
    other = "batch" if loss_mean == "tokens" else "tokens"
    moved, _, _ = ours(tiny_model_dir, store, tmp_path / "other", loss_mean=other)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-5, msg=name)
    assert max(float((found[name] - moved[name]).abs().max()) for name in found) > 1e-3


def test_dropout_is_on_attention_residuals_and_embeddings_and_only_in_training(
    store: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    given = {"data": [store], "output": tmp_path / "out", **SETTINGS, "dropout": 0.5}
    base = open_base(str(tiny_model_dir))
    language, _ = load_trainable(base, load_config(SftConfig, None, given=given), 100)
    assert isinstance(language, TrainedEmu3)
    language.set_loss_ranges(((0, base.layout.vocabulary.size),))
    ids = torch.randint(0, 600, (2, 30), generator=torch.Generator().manual_seed(0))

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(language(ids, ids)["loss"].detach())

    assert loss(0) == loss(0) != loss(1)
    for layer in language.model.layers:  # each of the three alone still changes something
        layer.self_attn.attention_dropout = layer.dropout.p = 0.0
    assert loss(0) != loss(1)
    language.embedding_dropout = 0.0
    assert loss(0) == loss(1)
    language.model.layers[0].self_attn.attention_dropout = 0.5
    assert loss(0) != loss(1)
    language.model.layers[0].self_attn.attention_dropout = 0.0
    language.model.layers[0].dropout.p = 0.5
    assert loss(0) != loss(1)
    language.set_dropout(0.5)
    language.eval()
    assert loss(0) == loss(1)
    assert language.config.attention_dropout == 0
