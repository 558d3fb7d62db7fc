"""Only whole checkpoints are chosen, and old ones go only when they may."""

from __future__ import annotations

from pathlib import Path

from earl_cli.training.checkpoints import checkpoints, drop_old, drop_torn, mark_complete, newest


def saved(folder: Path, step: int, *, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(str(step))
    if whole:
        mark_complete(path)
    return path


def test_a_torn_checkpoint_is_never_chosen(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    saved(tmp_path, 1000)
    saved(tmp_path, 900)
    saved(tmp_path, 1100, whole=False)
    assert newest(tmp_path) == tmp_path / "checkpoint-1000"


def test_the_newest_stay_and_torn_ones_go(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        saved(tmp_path, step)
    saved(tmp_path, 7, whole=False)
    (tmp_path / "notes").mkdir()
    drop_old(tmp_path, keep=2)
    drop_torn(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11", "notes"]
