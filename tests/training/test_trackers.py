"""Trackers of a resumed run: the same run there, not a new one at every start.

TensorBoard is the real one. trackio and wandb are stand-ins with the parameters of the real functions, which were tried
side by side: trackio 0.43 resumes a run by its name, wandb 0.31 by its id.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from earl_cli.training.common.trackers import start_trackers

WANDB_INIT = """entity project dir id name notes tags config config_exclude_keys config_include_keys allow_val_change
group job_type mode force reinit resume resume_from fork_from save_code tensorboard sync_tensorboard monitor_gym
settings anonymous"""
TRACKIO_INIT = """project name group space_id server_url dataset_id bucket_id config resume settings private embed
auto_log_gpu gpu_log_interval auto_log_cpu cpu_log_interval webhook_url webhook_min_level"""


class Service:
    """What a tracker holds: the steps of each run, by what it knows the run by."""

    def __init__(self, name: str, known_by: str, parameters: str) -> None:
        self.known_by, self.parameters = known_by, parameters.split()
        self.runs: dict[str, list[int]] = {}
        self.now = ""
        module: Any = ModuleType(name)
        module.init, module.log = self.init, self.log
        self.module = module

    def init(self, **given: Any) -> None:
        assert set(given) <= set(self.parameters)
        assert isinstance(given["config"], dict)
        there = given[self.known_by] in self.runs
        self.now = given[self.known_by]
        if there and given["resume"] != "allow":
            self.now += " again"
        self.runs.setdefault(self.now, [])

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert isinstance(metrics, dict)
        assert step is not None
        self.runs[self.now].append(step)


@pytest.mark.parametrize(
    ("name", "known_by", "parameters"), [("wandb", "id", WANDB_INIT), ("trackio", "name", TRACKIO_INIT)]
)
def test_a_resumed_run_is_the_same_run_and_another_folder_another(
    name: str, known_by: str, parameters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(name, known_by, parameters)
    monkeypatch.setitem(sys.modules, name, service.module)
    for folder, done in (("a/run", 0), ("b/run", 0), ("a/run", 2)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (track,) = start_trackers((name,), tmp_path / folder, {"seed": 1}, done)
        for step in (done + 1, done + 2):
            track(step, {"loss": 1.0})
    assert list(service.runs.values()) == [[1, 2, 3, 4], [1, 2]]


def test_tensorboard_forgets_what_is_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps, value in ((0, (1, 2, 3), 1.0), (2, (3, 4), 2.0)):
        (track,) = start_trackers(("tensorboard",), tmp_path, {}, done)
        for step in steps:
            track(step, {"loss": value})
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(each.step, each.value) for each in read.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
