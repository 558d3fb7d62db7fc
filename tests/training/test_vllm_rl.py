"""``earl rl --set engine=vllm`` for real, in one process and two: the policy that samples is the one in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bright_runs import prepare, train
from needs_vllm import need_vllm

need_vllm()
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("vllm-rl"))


@pytest.fixture(scope="module")
def expected(place: Path) -> list[dict[str, float]]:
    return train(place, "transformers", engine="transformers")


def test_adapters_are_sampled_with(place: Path) -> None:
    first, second = train(place, "adapters", engine="vllm", lora_rank=4)
    assert max(first["sampler_mismatch"], second["sampler_mismatch"]) < 1e-3
    assert first["grad_norm"] > 0


@pytest.mark.parametrize("shared", [1, pytest.param(2, marks=pytest.mark.full)])
def test_two_processes_with_an_engine_each_or_one_together_learn_as_with_transformers(
    place: Path, expected: list[dict[str, float]], shared: int
) -> None:
    arguments = json.dumps({"tensor_parallel_size": shared})
    found = train(place, f"shared-{shared}", 2, engine="vllm", engine_args=arguments)
    assert [row["step"] for row in found] == [1, 2]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["sampler_mismatch"] < 1e-3
        assert ours["reward/mean"] == pytest.approx(theirs["reward/mean"], abs=0.02)
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], abs=0.02)
    assert found[1]["reward/mean"] > found[0]["reward/mean"]
