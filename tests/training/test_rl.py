"""Reinforcement learning of a tiny model for real: it learns what is rewarded, and resumes exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import write_pairs

from earl_cli.config.loader import load_config
from earl_cli.config.rl import RlConfig
from earl_cli.errors import EarlError, InputError, UsageError
from earl_cli.models.bundle import load_model, load_vision_of, open_base
from earl_cli.rewards.reward import Edit, JudgeDownError, Reward, Score
from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints
from earl_cli.training.common.trackers import is_logged, log_metrics
from earl_cli.training.optimizer_backends import make_backend
from earl_cli.training.rl.rollouts import ScoredGroup
from earl_cli.training.rl.setup import (
    AdapterFreeReference,
    RlRun,
    load_data,
    load_policy,
    make_engine,
    resume,
    save_checkpoint,
    save_model,
)
from earl_cli.training.rl.trainer import train_policy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("rl") / "store", 12)


def settings(model: Path, store: Path, output: Path, **values: object) -> RlConfig:
    base = {
        "model": str(model),
        "data": [store],
        "validation": [store],
        "validation_examples": 4,
        "output": output,
        "num_iterations": 4,
        "episodes_per_iteration": 12,
        "generations_per_sample": 4,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "max_response_tokens": 64,
        "max_length": 128,
        "checkpoint_every": 2,
        "keep_model_every": 2,
        "validate_every": 2,
        "precision": "float32",
        "device": "cpu",
        "gradient_checkpointing": False,
        "reward": "reference",
    }
    return load_config(RlConfig, None, given={**base, **values})


def brightness(edits: Sequence[Edit]) -> list[Score]:
    return [Score(-1.0 if edit.edited is None else float(edit.edited.mean()) / 255) for edit in edits]


class Recorder:
    """Remembers, and saves checkpoints; ``stop_after`` so many iterations it ends the run as a kill would."""

    def __init__(self, save: Callable[[int, float | None], object], stop_after: int | None = None) -> None:
        self.save, self.stop_after = save, stop_after
        self.metrics: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self.groups: list[ScoredGroup] = []
        self.waits: list[tuple[int, str]] = []

    def phase(self, *_: object) -> None:
        pass

    def sampling(self, _: int, done: int, expected: int) -> None:
        assert 0 < done <= expected

    def iteration(self, step: int, metrics: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        self.metrics.append(dict(metrics))
        self.groups += groups
        if step == self.stop_after:
            raise KeyboardInterrupt

    def validation(self, _step: int, metrics: Mapping[str, float], _groups: Sequence[ScoredGroup]) -> None:
        self.validations.append(dict(metrics))

    def is_best(self, _validation: float) -> bool:
        return False

    def checkpoint(self, iteration: int, validation: float | None) -> None:
        self.save(iteration, validation)

    def waiting(self, iteration: int, problem: EarlError) -> None:
        self.waits.append((iteration, str(problem)))


def train(
    config: RlConfig, reward: Reward = brightness, stop_after: int | None = None
) -> tuple[Recorder, dict[str, torch.Tensor]]:
    base = open_base(config.model)
    data = load_data(config, base.layout, 128)
    policy, reference, place = load_policy(base, config, 64)
    backend = make_backend(policy, config, place.device)
    start = resume(config, backend)
    callbacks = Recorder(partial(save_checkpoint, config, base, backend), stop_after)
    without = AdapterFreeReference(backend) if policy.adapted else None
    run = RlRun(
        config,
        base.layout,
        data.rows,
        data.prompts,
        data.validation_data,
        data.validation_prompts,
        load_vision_of(config.model, device="cpu").model,
        backend,
        without or reference,
        reward,
        partial(make_engine, config, base.layout, data),
        callbacks,
        sleep=lambda _: None,
    )
    try:
        train_policy(run, start, validated=start > 0)
    except KeyboardInterrupt:
        return callbacks, {}
    save_model(config, base, backend, config.folder)
    return callbacks, {name: weight.clone() for name, weight in policy.state_dict().items()}


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_rewarded_becomes_more(tiny_model_dir: Path, store: Path, tmp_path: Path) -> None:
    more = {"num_iterations": 30, "kl_coeff": 0.0, "validation": [], "learning_rate": 1e-2}
    callbacks, _ = train(settings(tiny_model_dir, store, tmp_path / "run", generations_per_sample=6, **more))
    rewards = [metrics["reward/mean"] for metrics in callbacks.metrics]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05, rewards
    assert load_model(str(tmp_path / "run"), device="cpu").layout.vocabulary.codes == 512


def test_metrics_of_an_iteration(tiny_model_dir: Path, store: Path, tmp_path: Path) -> None:
    config = settings(tiny_model_dir, store, tmp_path / "run", log_episodes_every_n_iterations=1, kl_coeff=0.1)
    callbacks, _ = train(config)
    first, last = callbacks.metrics[0], callbacks.metrics[-1]
    assert first["kl"] == pytest.approx(0, abs=1e-9)
    assert last["kl"] > 1e-5
    assert first["sampler_mismatch"] < 1e-4
    assert first["entropy"] == pytest.approx(math.log(512), abs=0.2)  # of random weights over 512 codes
    assert first["reward/p10"] <= first["reward/p50"] <= first["reward/p90"]
    shares = ("completions/frac_valid", "reward/frac_missing", "reward/frac_zero_std")
    assert [first[name] for name in shares] == [1.0, 0.0, 0.0]
    phases = [first[f"time/{phase}"] for phase in ("sampling", "reward", "reference", "update")]
    assert first["time/iteration"] >= sum(phases) - 1e-6
    assert len(callbacks.validations) == 3
    group = callbacks.groups[0]
    assert len(group.rollout.completions) == 4
    np.testing.assert_allclose(group.advantages.mean(), 0, atol=1e-9)
    assert group.signal


WAYS: dict[str, dict[str, object]] = {
    "plain": {},
    "several updates": {"updates_per_iteration": 3, "clip_high": 0.28, "entropy_coeff": 0.01},
    "adapters": {"lora_rank": 4},
    "published": {"train_forced_tokens": True, "separate_vocabularies": False},
    "no grammar": {"emu3_use_logit_processor": False},
    "thinking": {
        "assistant_prefill": "reasoning",
        "train_text_tokens_only": True,
        "text_only_cycle_steps": 2,
        "text_only_steps": 1,
    },
    "mixed": {"assistant_prefill": None, "drop_groups_without_signal": True, "advantage_over_std": False},
    "recomputed": {"gradient_checkpointing": True, "batch_size": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_stops_anywhere_resumes_to_the_same_weights(
    way: str, tiny_model_dir: Path, store: Path, tmp_path: Path
) -> None:
    undisturbed, weights = train(settings(tiny_model_dir, store, tmp_path / "whole", **WAYS[way]))
    assert all(math.isfinite(value) for metrics in undisturbed.metrics for value in metrics.values())
    config = settings(tiny_model_dir, store, tmp_path / "torn", **WAYS[way])
    for stop in (1, 3, None):
        callbacks, found = train(config, stop_after=stop)
    assert same(found, weights)
    assert callbacks.metrics[-1]["reward/mean"] == undisturbed.metrics[-1]["reward/mean"]
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "torn/model.safetensors").read_bytes()
    start = open_base(str(tiny_model_dir)).language
    moved = load_model(str(tmp_path / "whole"), device="cpu").language.state_dict()
    old = load_model(str(start.folder), device="cpu").language.state_dict()
    learned = any(metrics["reward/frac_zero_std"] < 1 for metrics in undisturbed.metrics)
    assert same(moved, old) != learned
    assert learned == (way != "no grammar")  # without it, random weights give no valid image


def test_recomputing_and_smaller_batches_change_nothing_but_rounding(
    tiny_model_dir: Path, store: Path, tmp_path: Path
) -> None:
    def once(name: str, **values: object) -> dict[str, torch.Tensor]:
        more = {"num_iterations": 1, "validation": [], "learning_rate": 1e-4, "epsilon": 1e-3, **values}
        return train(settings(tiny_model_dir, store, tmp_path / name, **more))[1]

    plain = once("plain")
    for name, values in {
        "recomputed": {"gradient_checkpointing": True},
        "pieces": {"batch_size": 3},
        "together": {"batch_size": 64},
    }.items():
        other = once(name, **values)
        for weight in plain:
            torch.testing.assert_close(other[weight], plain[weight], rtol=0, atol=1e-7, msg=name)


def test_the_switched_cycles_train_their_kind_of_token(tiny_model_dir: Path, store: Path, tmp_path: Path) -> None:
    """In edit mode there is no text to train: such an iteration leaves the weights as they are."""
    more = {"train_text_tokens_only": True, "text_only_cycle_steps": 2, "text_only_steps": 1, "validation": []}
    callbacks, _ = train(settings(tiny_model_dir, store, tmp_path / "run", **more))
    assert ["grad_norm" in metrics for metrics in callbacks.metrics] == [False, True, False, True]


def test_as_published_thinking_that_leaves_no_room_gives_no_image(
    tiny_model_dir: Path, store: Path, tmp_path: Path
) -> None:
    more = {"assistant_prefill": "reasoning", "overlong": "zero", "log_episodes_every_n_iterations": 1}
    callbacks, _ = train(settings(tiny_model_dir, store, tmp_path / "run", num_iterations=3, validation=[], **more))
    layout = open_base(str(tiny_model_dir)).layout
    generated = 0
    for group in callbacks.groups:
        rollout = group.rollout
        for completion, answer, score in zip(rollout.completions, rollout.parsed, group.scores, strict=True):
            assert len(completion.ids) <= 64
            assert completion.ids[-1] == layout.vocabulary.eos
            if answer.codes is None:
                assert score.value == -1.0  # this test's reward of an invalid edit
                continue
            generated += 1
            assert rollout.request.grid is not None
            assert answer.codes.shape == (rollout.request.grid.height, rollout.request.grid.width)
    assert 0 < generated < 36


def test_a_judge_that_is_down_pauses_the_run(tiny_model_dir: Path, store: Path, tmp_path: Path) -> None:
    down = {5: 3, 9: 1}  # at that call, so many times
    calls = 0

    def judge(edits: Sequence[Edit]) -> list[Score]:
        nonlocal calls
        calls += 1
        if down.get(calls, 0) > 0:
            down[calls] -= 1
            calls -= 1
            raise JudgeDownError("the judge doesn't answer", where="http://localhost:1/v1")
        return brightness(edits)

    config = settings(tiny_model_dir, store, tmp_path / "run")
    callbacks, weights = train(config, judge)
    _, healthy = train(settings(tiny_model_dir, store, tmp_path / "healthy"))
    assert same(weights, healthy)
    assert [iteration for iteration, _ in callbacks.waits] == [2]


def test_a_run_that_is_killed_while_a_validation_waits_validates_after_all(
    tiny_model_dir: Path, store: Path, tmp_path: Path
) -> None:
    """The log says that its validation is still to come."""
    judge_is_down = True

    def judge(edits: Sequence[Edit]) -> list[Score]:
        if judge_is_down and len(edits) == 4:
            raise JudgeDownError("the judge doesn't answer")
        return brightness(edits)

    more = {"judge_outage_timeout": 1.0, "validate_every": 1, "num_iterations": 1, "validation_examples": 4}
    config = settings(tiny_model_dir, store, tmp_path / "run", **more)
    log = tmp_path / "run/log.jsonl"
    with pytest.raises(JudgeDownError):
        train(config, judge)
    assert not is_logged(log, 0, "validation/reward/frac_missing")
    judge_is_down = False
    callbacks, _ = train(config, judge)
    assert len(callbacks.validations) == 2
    log_metrics(log, 1, {"validation/reward/frac_missing": 0.0})
    assert is_logged(log, 1, "validation/reward/frac_missing")
    assert not is_logged(log, 1, "reward/mean")


def test_missing_rewards_leave_the_group(tiny_model_dir: Path, store: Path, tmp_path: Path) -> None:
    def judge(edits: Sequence[Edit]) -> list[Score]:
        return [Score(None, reason="unreadable") if i % 3 == 0 else score for i, score in enumerate(brightness(edits))]

    more = {"log_episodes_every_n_iterations": 1, "num_iterations": 1, "validation": []}
    callbacks, _ = train(settings(tiny_model_dir, store, tmp_path / "run", **more), judge)
    assert callbacks.metrics[0]["reward/frac_missing"] == pytest.approx(1 / 3)
    for group in callbacks.groups:
        missing = [score.value is None for score in group.scores]
        assert np.isnan(group.advantages).tolist() == missing
        assert np.nanmean(group.advantages) == pytest.approx(0, abs=1e-9)


def test_no_reward_at_all_changes_nothing(tiny_model_dir: Path, store: Path, tmp_path: Path) -> None:
    def nothing(edits: Sequence[Edit]) -> list[Score]:
        return [Score(None, reason="none") for _ in edits]

    callbacks, _ = train(settings(tiny_model_dir, store, tmp_path / "run", num_iterations=2), nothing)
    assert all("grad_norm" not in metrics and "reward/mean" not in metrics for metrics in callbacks.metrics)
    assert json.dumps(callbacks.metrics, allow_nan=False)


def test_old_checkpoints_keep_their_model_alone(tiny_model_dir: Path, store: Path, tmp_path: Path) -> None:
    more = {"num_iterations": 6, "checkpoint_every": 1, "keep_checkpoints": 2, "validation": []}
    train(settings(tiny_model_dir, store, tmp_path / "run", **more))
    folder = tmp_path / "run" / CHECKPOINTS
    assert [path.name for path in checkpoints(folder)] == ["ckpt_000004", "ckpt_000005"]
    kept = sorted(path.name for path in folder.glob("ckpt_*"))
    assert kept == ["ckpt_000001", "ckpt_000003", "ckpt_000004", "ckpt_000005"]
    assert sorted(path.name for path in (folder / "ckpt_000001").iterdir() if path.is_dir()) == ["hf_model"]
    assert load_model(str(folder / "ckpt_000001/hf_model"), device="cpu").image_area


def test_a_run_resumes_only_with_the_settings_it_was_started_with(
    tiny_model_dir: Path, store: Path, tmp_path: Path
) -> None:
    train(settings(tiny_model_dir, store, tmp_path / "run", num_iterations=2))
    with pytest.raises(UsageError, match="this run was started with sharding none"):
        train(settings(tiny_model_dir, store, tmp_path / "run", lora_rank=4))


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    tiny_model_dir: Path, store: Path, tmp_path: Path
) -> None:
    layout = open_base(str(tiny_model_dir)).layout
    with pytest.raises(UsageError, match="an image of this data takes"):
        load_data(settings(tiny_model_dir, store, tmp_path, max_response_tokens=5), layout, 128)
    with pytest.raises(InputError, match="no prompt with its image fits into 20 tokens"):
        load_data(settings(tiny_model_dir, store, tmp_path, max_length=20), layout, 128)
    some = load_data(settings(tiny_model_dir, store, tmp_path, max_length=50), layout, 128)
    assert 0 < some.skipped < 12
    assert len(some.prompts) == 12 - some.skipped
    with pytest.raises(UsageError, match="2 coefficients for 1 data sets"):
        load_data(settings(tiny_model_dir, store, tmp_path, coefficients=[1, 2]), layout, 128)
