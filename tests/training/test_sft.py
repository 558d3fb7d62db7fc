"""Fine-tuning a tiny model for real: it learns, resumes to the bit, and its folder edits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from earl_cli.config.loader import load_config
from earl_cli.config.sft import SftConfig
from earl_cli.data.batches import load_rows
from earl_cli.data.store import Manifest, TokenizedExample, create_or_resume, write_shard
from earl_cli.errors import EarlError, InputError
from earl_cli.models.bundle import load_model, open_base, save_trained
from earl_cli.training.common.checkpoints import CHECKPOINTS, VALIDATION, latest
from earl_cli.training.common.curves import LOG
from earl_cli.training.common.stopping import TrainingStopped
from earl_cli.training.sft.model import load_trainable
from earl_cli.training.sft.run import SftResult, fine_tune, load_data
from earl_cli.training.sft.trainer import SftTrainer


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty examples in which every edited code is the source's plus one."""
    folder = tmp_path_factory.mktemp("sft") / "store"
    create_or_resume(folder, Manifest(512, "vq", 1024, "test", 20, 1, None, {}, "data"))
    rng = np.random.default_rng(0)
    rows = []
    for index in range(20):
        source = rng.integers(0, 8, (3, 2 + index % 3)).astype(np.uint16)
        target = source + np.uint16(1)
        rows.append(TokenizedExample(index, str(index), "make it snowy", source, target, {"plan": "whiten"}, "h"))
    write_shard(folder, 0, rows, [])
    return folder


def config(store: Path, output: Path, **values: object) -> SftConfig:
    base = {
        "data": [store],
        "output": output,
        "max_steps": 6,
        "batch_size": 2,
        "accumulation": 2,
        "warmup_steps": 2,
        "learning_rate": 3e-3,
        "checkpoint_every": 3,
        "log_every": 1,
        "precision": "float32",
        "device": "cpu",
        "gradient_checkpointing": False,
    }
    return load_config(SftConfig, None, given={**base, **values})


def train(model: Path, settings: SftConfig, stop_at: int | None = None) -> tuple[SftResult, dict[str, torch.Tensor]]:
    class StoppedError(Exception):
        pass

    def on_step(step: int, _steps: int, metrics: Mapping[str, float]) -> None:
        if step == stop_at and "loss" in metrics:
            raise StoppedError

    base = open_base(str(model))
    data = load_data(settings, base.layout, 4096)
    language, _ = load_trainable(base, settings, 100)
    settings.output.mkdir(parents=True, exist_ok=True)
    try:
        result = fine_tune(settings, language, base, data, on_step)
    except StoppedError:
        return SftResult(stop_at or 0, None, 0, {}), {}
    save_trained(base, language, settings.output, state=result.weights)
    return result, {name: weight.clone() for name, weight in language.state_dict().items()}


@pytest.mark.slow
def test_resumed_training_ends_in_the_same_bits(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    _, whole = train(tiny_model_dir, config(store, tmp_path / "whole"))
    train(tiny_model_dir, config(store, tmp_path / "torn"), stop_at=5)
    (tmp_path / "torn" / CHECKPOINTS / "checkpoint-5").mkdir()  # half-written when it was killed
    result, resumed = train(tiny_model_dir, config(store, tmp_path / "torn"))
    assert result.resumed_from == 3
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_it_learns_and_the_folder_edits(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = config(store, tmp_path / "out", max_steps=60, validation=[store], validate_every=60, checkpoint_every=60)
    result, _ = train(tiny_model_dir, settings)
    log = [json.loads(line) for line in (tmp_path / "out" / LOG).read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[0] > 4
    assert result.validation_loss is not None
    assert result.validation_loss < 0.5 * losses[0]
    assert [row["learning_rate"] for row in log if "loss" in row][-1] == pytest.approx(1e-5, rel=0.3)
    model = load_model(str(tmp_path / "out"), device="cpu")
    assert model.image_area == 32 * 32


def test_thoughts_are_trained_when_their_keys_are_named(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    layout = open_base(str(tiny_model_dir)).layout
    rows = load_rows([store], layout, ["plan"])
    assert layout.parse(rows.example(0).ids).thoughts == "plan: whiten"
    with pytest.raises(InputError, match=r"no row has a chain of thought 'boxes' .*are plan"):
        load_rows([store], layout, ["boxes"])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    store: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = config(
        store, tmp_path / "out", learning_rate=1e30, max_grad_norm=1e30, checkpoint_every=1, warmup_steps=0
    )
    with pytest.raises(EarlError, match=r"(the loss is|the gradient norm is) (nan|inf)|a weight is not finite"):
        train(tiny_model_dir, settings)
    assert list((tmp_path / "out" / CHECKPOINTS).glob("*/complete"))


def test_sequences_that_are_too_long_are_named(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="20 of 20 sequences are longer than 10 tokens: the first is '0'"):
        train(tiny_model_dir, config(store, tmp_path / "out", max_length=10, too_long="stop"))


@contextmanager
def heard(number: int) -> Iterator[None]:
    """The signal has Python's own handler, also where the tests run in the background, with Ctrl-C ignored."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])
def test_a_validation_that_a_signal_breaks_off_is_made_up_for(
    step: int, store: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same bits: validating takes nothing from the random numbers that drop out."""
    values = {"dropout": 0.1, "validation": [store], "validate_every": 3, "checkpoint_every": 100}
    _, whole = train(tiny_model_dir, config(store, tmp_path / "whole", **values))
    predict = SftTrainer.prediction_step

    def interrupted(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return predict(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(TrainingStopped) as stopped, heard(signal.SIGINT):
        patched.setattr(SftTrainer, "prediction_step", interrupted)
        train(tiny_model_dir, config(store, tmp_path / "torn", **values))
    assert (stopped.value.done, stopped.value.code) == (step, 130)
    checkpoint = tmp_path / "torn" / CHECKPOINTS / f"checkpoint-{step}"
    assert latest(tmp_path / "torn" / CHECKPOINTS) == checkpoint
    assert not (checkpoint / VALIDATION).exists()
    result, resumed = train(tiny_model_dir, config(store, tmp_path / "torn", **values))
    assert result.resumed_from == step
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def validations(folder: Path) -> dict[int, float]:
        lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
        return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}

    assert validations(tmp_path / "torn") == validations(tmp_path / "whole")
    assert list(validations(tmp_path / "whole")) == [3, 6]
