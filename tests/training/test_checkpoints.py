"""Only complete checkpoints are resumed from, and old ones are removed as configured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from earl_cli.training.common.checkpoints import (
    BEST,
    CHECKPOINTS,
    MODEL_ONLY,
    best,
    checkpoints,
    is_better,
    latest,
    link_best,
    mark_complete,
    remove_incomplete,
    remove_old,
    write_validation,
)


def saved(folder: Path, step: int, *, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(str(step))
    if whole:
        mark_complete(path)
    return path


def test_a_torn_checkpoint_is_never_chosen(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    saved(tmp_path, 1000)
    saved(tmp_path, 900)
    saved(tmp_path, 1100, whole=False)
    assert latest(tmp_path) == tmp_path / "checkpoint-1000"


def test_the_newest_stay_and_torn_ones_go(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        saved(tmp_path, step)
    saved(tmp_path, 7, whole=False)
    (tmp_path / "notes").mkdir()
    remove_old(tmp_path, 2, "lowest")
    remove_incomplete(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11", "notes"]


def validated(folder: Path, step: int, value: float) -> None:
    path = saved(folder, step, whole=False)
    (path / "optimizer.pt").write_text("state")
    (path / "global_step1").mkdir()
    write_validation(path, value)
    mark_complete(path)


def test_the_best_stays_as_a_model_until_there_is_a_better_one(tmp_path: Path) -> None:
    folder = tmp_path / CHECKPOINTS
    for step, value in ((10, 3.0), (20, 1.0), (30, 2.0), (40, math.nan), (50, 1.5)):
        validated(folder, step, value)
        remove_old(folder, 1, "lowest")
        link_best(tmp_path, "lowest")
    assert best(folder, "lowest") == (folder / "checkpoint-20", 1.0)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-20", "checkpoint-50"]
    assert sorted(path.name for path in (tmp_path / BEST).iterdir()) == [MODEL_ONLY, "validation.json", "weights"]
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-50"]
    remove_incomplete(folder)
    validated(folder, 60, 0.5)
    assert link_best(tmp_path, "lowest") == (folder / "checkpoint-60", 0.5)
    remove_old(folder, 1, "lowest")
    assert [path.name for path in folder.iterdir()] == ["checkpoint-60"]
    assert (tmp_path / BEST / "optimizer.pt").is_file()


@pytest.mark.parametrize(("goal", "value", "better"), [("lowest", 0.9, True), ("lowest", 1.0, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_better_is_lower_or_higher(goal: str, value: float, better: bool, sign: int, tmp_path: Path) -> None:
    way = goal if sign == 1 else "highest"
    assert is_better(sign * value, tmp_path, way)
    assert not is_better(math.nan, tmp_path, way)
    validated(tmp_path, 1, sign * 1.0)
    assert is_better(sign * value, tmp_path, way) == better


def test_what_is_spared_stays_when_it_is_no_longer_the_best(tmp_path: Path) -> None:
    for step, value in ((10, 1.0), (20, 0.5), (30, 0.7)):
        validated(tmp_path, step, value)
        remove_old(tmp_path, 1, "lowest", lambda number: number == 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]


def test_a_users_own_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    validated(tmp_path / CHECKPOINTS, 1, 1.0)
    (tmp_path / BEST).write_text("mine")
    assert link_best(tmp_path, "lowest") is not None
    assert (tmp_path / BEST).read_text() == "mine"
