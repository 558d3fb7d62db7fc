"""``earl rl`` with a judge that misbehaves, goes down, or is needed again after a kill: the weights stay the same.

The judge is a real server on this machine. It judges by content, so what it says depends on the images alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from judge_server import Faults, JudgeServer
from trainings import Trainings, options, write_pairs

from earl_cli.app import run as earl
from earl_cli.openai_client.retry import Backoff
from earl_cli.rewards import registry
from earl_cli.rewards.judge.client import Judge
from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints
from earl_cli.training.rl import trainer as rl

pytestmark = pytest.mark.slow

ITERATIONS, EPISODES = 4, 8
FAULTY = Faults(share=0.3, slow=0.1)


@pytest.fixture(scope="module")
def arguments(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    store = write_pairs(tmp_path_factory.mktemp("data") / "store", 8)
    values: dict[str, object] = {"num_iterations": ITERATIONS, "episodes_per_iteration": EPISODES}
    values |= {"generations_per_sample": 4, "batch_size": 4, "learning_rate": 3e-3, "precision": "float32"}
    values |= {"max_response_tokens": 64, "max_length": 128, "gradient_checkpointing": "false"}
    values |= {"checkpoint_every": 2}
    given = ("--model", tiny_model_dir, "--data", store, "--reward", "viescore", "--device", "cpu")
    return tuple(map(str, ("rl", *given, *options(**values))))


@pytest.fixture(scope="module")
def healthy(arguments: tuple[str, ...], launch: Trainings, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that a run makes whose judge is always well."""
    output = tmp_path_factory.mktemp("healthy") / "run"
    server = JudgeServer().start()
    run = launch(*arguments, "--api-base", server.api_base, "-o", output)
    assert run.wait() == 0, run.output
    server.stop()
    assert {call.fault for call in server.calls} == {None}
    assert len(server.calls) == ITERATIONS * EPISODES * 2  # two questions an edit
    return weights(output)


def weights(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


def contents(judge: JudgeServer) -> Counter[str]:
    """How often each question got an answer that can be read."""
    answered = [call for call in judge.calls if call.fault in (None, "slow")]
    return Counter(hashlib.sha256(f"{call.text} {call.images}".encode()).hexdigest() for call in answered)


def test_a_faulty_judge_makes_the_weights_of_a_healthy_one(
    judge: JudgeServer, arguments: tuple[str, ...], launch: Trainings, healthy: bytes, tmp_path: Path
) -> None:
    judge.faults = FAULTY
    run = launch(*arguments, "--api-base", judge.api_base, "-o", tmp_path / "run")
    assert run.wait() == 0, run.output
    assert weights(tmp_path / "run") == healthy
    seen = Counter(call.fault for call in judge.calls)
    assert len(seen) > 5, seen
    assert sum(seen.values()) - seen[None] > 0.2 * len(judge.calls)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["reward/frac_missing"] for line in log] == [0.0] * ITERATIONS


@pytest.mark.parametrize("sharing", [1, pytest.param(2, marks=pytest.mark.full)])
def test_killed_and_started_again_no_judged_prompt_is_sent_twice(
    sharing: int, judge: JudgeServer, arguments: tuple[str, ...], launch: Trainings, healthy: bytes, tmp_path: Path
) -> None:
    """While questions are under way: iterations whose checkpoint isn't there are judged from the cache."""
    output = tmp_path / "run"
    command = (*arguments, "--api-base", judge.api_base, "-o", output, *options(judge_concurrency=2))
    for answers in (10, 20, 40):
        judge.silent_after = answers
        runs = launch.ranks(sharing, *command)
        while judge.answered < answers or not judge.concurrency:
            assert runs[0].wait_for_end(0.001) is None, runs[0].output
        for each in runs:
            each.send(signal.SIGKILL)
        assert [each.wait() for each in runs] == [-signal.SIGKILL] * sharing
    judge.silent_after = None
    lost = 3 * sharing * 2  # under way when it was killed: answered, and not yet in the cache
    runs = launch.ranks(sharing, *command)
    for each in runs:
        assert each.wait() == 0, each.output
    requested = contents(judge)
    assert len(requested) == ITERATIONS * EPISODES * 2
    assert sum(requested.values()) - len(requested) <= lost
    if sharing == 1:
        assert weights(output) == healthy
    made, before = weights(output), len(judge.calls)
    shutil.rmtree(output / CHECKPOINTS)
    again = launch.ranks(sharing, *command)  # from the first iteration on
    assert [each.wait() for each in again] == [0] * sharing, again[0].output
    assert len(judge.calls) == before
    assert weights(output) == made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries of this process end soon."""
    monkeypatch.setattr(rl, "BACKOFF", (0.2, 0.2))
    monkeypatch.setattr(registry, "Judge", partial(Judge, backoff=Backoff(attempts=2, first_delay=0.01)))


@pytest.mark.usefixtures("impatient")
def test_a_judge_that_goes_down_is_waited_for(
    judge: JudgeServer, arguments: tuple[str, ...], healthy: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an iteration after which there is no checkpoint otherwise; the run says so, and saves what it has."""
    judge.down_after = EPISODES * 2 + 3
    output = tmp_path / "run"
    while_down: list[list[str]] = []

    def comes_back() -> None:
        end = time.monotonic() + 120
        while not checkpoints(output / CHECKPOINTS) and time.monotonic() < end:
            time.sleep(0.01)
        while_down.append([path.name for path in checkpoints(output / CHECKPOINTS)])
        judge.is_down = False

    beside = threading.Thread(target=comes_back)
    beside.start()
    code = earl([*arguments, "--api-base", judge.api_base, "-o", str(output)])
    beside.join()
    result = capsys.readouterr().err
    assert code == 0, result
    assert weights(output) == healthy
    assert result.count("the judge doesn't answer") == 1, result
    assert "everything is saved, and the run continues when the judge is back" in result
    assert while_down == [["ckpt_000000"]]


@pytest.mark.usefixtures("impatient")
def test_a_judge_that_stays_down_ends_the_run_with_a_checkpoint_to_go_on_from(
    judge: JudgeServer, arguments: tuple[str, ...], healthy: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.down_after = EPISODES * 2 + 3
    command = [
        *arguments,
        "--api-base",
        judge.api_base,
        "-o",
        str(tmp_path / "run"),
        *options(judge_outage_timeout=0.5),
    ]
    assert earl(command) == 1
    assert re.search("^error: .*the judge doesn't answer", capsys.readouterr().err, re.MULTILINE)
    assert [path.name for path in checkpoints(tmp_path / "run" / CHECKPOINTS)] == ["ckpt_000000"]
    judge.is_down = False
    assert earl(command) == 0, capsys.readouterr().err
    assert weights(tmp_path / "run") == healthy
