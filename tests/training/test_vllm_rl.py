"""``earl rl --set engine=vllm`` for real, in one process and two: the policy that samples is the one in training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from needs_vllm import need_vllm
from trainings import CPU, options, write_pairs

need_vllm()
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

REWARD = """
from earl_cli.rewards.reward import Score

def brightness(edits):
    return [Score(-1.0 if edit.edited is None else float(edit.edited.mean()) / 255) for edit in edits]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store for the embedded model and a reward that learns fast."""
    folder = tmp_path_factory.mktemp("vllm-rl")
    write_pairs(folder / "store", 12, codes=4096)
    (folder / "bright.py").write_text(REWARD)
    return folder


def train(place: Path, engine: str, processes: int = 1, **more: object) -> list[dict[str, float]]:
    """Two iterations of the embedded model; what was logged of each."""
    output = place / f"{engine}-{processes}-{len(list(place.iterdir()))}"
    settings = options(
        model_path="null",
        reward="bright:brightness",
        num_iterations=2,
        episodes_per_iteration=16,
        generations_per_sample=4,
        per_device_batch_size=4,
        max_response_tokens=64,
        model_context_size=640,
        learning_rate=1e-3,
        precision="float32",
        device="cpu",
        gradient_checkpointing=False,
        engine=engine,
        **more,
    )
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(starter if processes > 1 else []), "-m", "earl_cli", "rl"]
    command += ["--data", str(place / "store"), "-o", str(output), *settings]
    variables = {**os.environ, **CPU, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in next(output.glob("*.jsonl")).read_text().splitlines()]


@pytest.fixture(scope="module")
def expected(place: Path) -> list[dict[str, float]]:
    return train(place, "transformers")


def test_adapters_are_sampled_with(place: Path) -> None:
    first, second = train(place, "vllm", lora_rank=4)
    assert max(first["mismatch"], second["mismatch"]) < 1e-3
    assert first["grad_norm"] > 0


@pytest.mark.parametrize("shared", [1, 2])
def test_two_processes_with_an_engine_each_or_one_together_learn_as_with_transformers(
    place: Path, expected: list[dict[str, float]], shared: int
) -> None:
    found = train(place, "vllm", 2, engine_args=json.dumps({"tensor_parallel_size": shared}))
    assert [row["step"] for row in found] == [1, 2]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["mismatch"] < 1e-3
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=0.02)
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], abs=0.02)
    assert found[1]["reward"] > found[0]["reward"]
