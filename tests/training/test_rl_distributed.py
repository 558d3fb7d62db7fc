"""One run of reinforcement learning in two processes: the update and the metrics of one process, without deadlocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from torch import Tensor
from trainings import Trainings, options, write_pairs
from victims import Run

from earl_cli.training.common.checkpoints import CHECKPOINTS

pytestmark = pytest.mark.slow

full = pytest.mark.full
SHARDINGS = ("none", "zero2", pytest.param("zero3", marks=full))
Together: TypeAlias = Callable[[str], tuple[Path, list[Run]]]
TOLERANCE = 1e-6
"""Of a weight, which the update moves by up to 1e-3: the sums are the same, in another order."""
MEASURED = ("time/", "memory")


@dataclass(frozen=True)
class Setting:
    """One iteration of 4 prompts: all in one process, or two in each of two."""

    start: Trainings
    arguments: tuple[object, ...]

    def run(self, output: Path, count: int, *more: object) -> list[Run]:
        runs = self.start.ranks(count, *self.arguments, *more, "-o", output)
        for each in runs:
            assert each.wait() == 0, each.output
        return runs


@pytest.fixture(scope="module")
def setting(launch: Trainings, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("data")
    store = write_pairs(folder / "store", 12)
    values: dict[str, object] = {"num_iterations": 1, "episodes_per_iteration": 16, "generations_per_sample": 4}
    values |= {"batch_size": 4, "learning_rate": 0.05, "epsilon": 0.01, "precision": "float32"}
    values |= {"max_response_tokens": 64, "max_length": 128, "kl_coeff": 0.1, "gradient_checkpointing": "false"}
    values |= {"validation_examples": 3, "log_episodes_every_n_iterations": 1}
    common = ("rl", "--model", tiny_model_dir, "--data", store, "--device", "cpu", *options(**values))
    return Setting(launch, (*common, "--validation", store))


REFERENCE = ("--reward", "reference")


@pytest.fixture(scope="module")
def alone(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    output = tmp_path_factory.mktemp("alone") / "out"
    setting.run(output, 1, *REFERENCE)
    return output


@pytest.fixture(scope="module")
def together(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """What two processes make with a way of sharding, once for all tests, and what they printed."""

    @cache
    def made(sharding: str) -> tuple[Path, list[Run]]:
        output = tmp_path_factory.mktemp("together") / "out"
        return output, setting.run(output, 2, *REFERENCE, *options(sharding=sharding))

    return made


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model.safetensors")


def logged(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(MEASURED)} for line in lines]


# -- the same update -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_make_the_update_of_one(
    sharding: str, alone: Path, together: Together, tiny_model_dir: Path
) -> None:
    start, expected, found = weights(tiny_model_dir), weights(alone), weights(together(sharding)[0])
    assert found.keys() == expected.keys()
    moved = max(float((expected[name] - start[name]).abs().max()) for name in expected)
    assert moved > 1000 * TOLERANCE
    for name in expected:
        assert (found[name] - expected[name]).abs().max() < TOLERANCE, name


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_what_is_logged_is_what_one_process_logs(sharding: str, alone: Path, together: Together) -> None:
    """Of rewards, lengths, KL and gradient, and of a validation on three rows, which two can't share equally."""
    expected = logged(alone)
    assert len(expected) == 3
    assert {"reward/mean", "kl", "loss", "grad_norm", "entropy"} <= expected[1].keys()
    for one, other in zip(expected, logged(together(sharding)[0]), strict=True):
        assert one.keys() == other.keys()
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_rank_0_writes_the_rollouts_of_all_and_the_others_are_quiet(
    sharding: str, alone: Path, together: Together
) -> None:
    output, (first, second) = together(sharding)
    one, other = (pq.read_table(folder / "episodes/step-000001.parquet").to_pylist() for folder in (alone, output))
    assert len(one) == 16
    for row, same in zip(one, other, strict=True):
        assert same.pop("logprob") == pytest.approx(row.pop("logprob"), rel=1e-5)  # in a batch with other completions
        assert same == row
    assert second.output == ""
    assert f"1 iterations; the model is in {output}" in first.output


# -- no deadlocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharding", "recompute"),
    [
        ("zero2", "false"),
        *(pytest.param(*each, marks=full) for each in (("zero2", "true"), ("zero3", "false"), ("zero3", "true"))),
    ],
)
def test_a_rank_with_nothing_to_learn_runs_along(
    sharding: str, recompute: str, setting: Setting, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Its batches count nothing: the update is that of the unsharded run, whose second process runs none."""
    reward = ("--reward", "rank_rewards:alike")
    more = options(kl_coeff=0, gradient_checkpointing=recompute, updates_per_iteration=2)
    setting.run(tmp_path / "plain", 2, *reward, *more)
    setting.run(tmp_path / "sharded", 2, *reward, *more, *options(sharding=sharding))
    expected, found, start = (weights(each) for each in (tmp_path / "plain", tmp_path / "sharded", tiny_model_dir))
    assert max(float((expected[name] - start[name]).abs().max()) for name in expected) > 1000 * TOLERANCE
    for name in expected:
        assert (found[name] - expected[name]).abs().max() < TOLERANCE, name
    plain, sharded = logged(tmp_path / "plain"), logged(tmp_path / "sharded")
    assert plain[1]["reward/frac_zero_std"] == 0.5
    assert sharded[1] == pytest.approx(plain[1], rel=1e-4, abs=1e-6)


@full
def test_completions_of_any_length_are_sampled_side_by_side(setting: Setting, tmp_path: Path) -> None:
    """Under ZeRO-3 weights are gathered while processes sample: who thinks longer doesn't hold the other up."""
    thinking = options(assistant_prefill="reasoning", num_iterations=3, sharding="zero3", max_response_tokens=48)
    setting.run(tmp_path / "out", 2, *REFERENCE, *thinking)
    assert len(logged(tmp_path / "out")) == 3 + 2


@pytest.mark.parametrize("sharding", ["none", pytest.param("zero3", marks=full)])
def test_a_validation_with_nothing_for_the_second_process(sharding: str, setting: Setting, tmp_path: Path) -> None:
    """And its reward isn't called without edits."""
    more = ("--reward", "rank_rewards:alike", *options(validation_examples=1, sharding=sharding))
    setting.run(tmp_path / "out", 2, *more)
    lines = [line for line in logged(tmp_path / "out") if "validation/reward/mean" in line]
    assert [line["validation/reward/frac_missing"] for line in lines] == [0, 0]


# -- what can't be shared --------------------------------------------------------------------------------------------


def test_prompts_that_two_processes_cannot_share_are_refused(setting: Setting, tmp_path: Path) -> None:
    runs = setting.start.ranks(
        2, *setting.arguments, *REFERENCE, *options(episodes_per_iteration=12), "-o", tmp_path / "out"
    )
    assert [run.wait() for run in runs] == [2, 2]
    result = [line for line in runs[0].output.splitlines() if line.startswith(("error:", "hint:"))]
    assert result == [
        "error: episodes_per_iteration: 3 prompts per iteration can't be divided equally among 2 processes",
        "hint: --set episodes_per_iteration=16",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sharding", ["zero2", pytest.param("zero3", marks=full)])
def test_sharded_state_resumes_only_with_as_many_processes(sharding: str, setting: Setting, together: Together) -> None:
    output, _ = together(sharding)
    (run,) = setting.start.ranks(1, *setting.arguments, *REFERENCE, *options(sharding=sharding), "-o", output)
    assert run.wait() == 2, run.output
    begun = f"this run was started with sharding {sharding}, processes 2, lora_rank None"
    assert f"error: {output / CHECKPOINTS}/ckpt_000000: {begun}\n" in run.output


def test_unsharded_state_resumes_with_any_number_of_processes(
    setting: Setting, together: Together, alone: Path
) -> None:
    output, _ = together("none")
    (run,) = setting.run(output, 1, *REFERENCE, *options(num_iterations=2))
    assert "2 iterations, resumed from iteration 1" in run.output
    assert len(logged(output)) == 3 + 2
