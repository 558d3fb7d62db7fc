"""Files are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from earl_cli.errors import OutputError
from earl_cli.files import alone_in, is_aside, remove_asides, whole_file


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt), whole_file(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole_file(path) as aside:
        aside.write_text("whole")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


def test_a_place_that_takes_no_file_is_named_by_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(NotADirectoryError) as error, whole_file(tmp_path / "x" / "y.png") as aside:
        aside.write_text("nowhere")
    assert error.value.filename == str(tmp_path / "x" / "y.png")


def test_what_a_killed_process_left_is_known_and_removed(tmp_path: Path) -> None:
    with whole_file(tmp_path / "x") as aside:
        aside.write_text("whole")
        left = aside.with_name(aside.name.replace(".partial", "7.partial"))
        left.touch()
    other = tmp_path / ".y.0123.partial"
    other.touch()
    assert is_aside(left)
    assert not is_aside(tmp_path / "x")
    remove_asides(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "x"]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_file_that_is_replaced_hands_its_permissions_on(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    for permissions in (0o600, 0o444, 0o666):
        path.chmod(permissions)
        with whole_file(path) as aside:
            assert mode(aside) == permissions | 0o600  # before anything is in it
            aside.write_text("new")
        assert mode(path) == permissions


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with alone_in(folder, "baking"):
        for part in ("", "1/2"):
            with pytest.raises(OutputError) as error, alone_in(folder, "baking", part):
                pass
            assert str(error.value) == (
                f"{folder}: another baking is at work here (wait for it, or end process {os.getpid()})"
            )
    with alone_in(folder, "baking"):
        pass
    assert not any(folder.iterdir())


def test_parts_of_the_work_go_together_and_each_is_done_once(tmp_path: Path) -> None:
    with alone_in(tmp_path, "baking", "1/2"), alone_in(tmp_path, "baking", "2/2"):
        for part in ("", "1/2", "2/2"):
            with pytest.raises(OutputError, match="another baking"), alone_in(tmp_path, "baking", part):
                pass
    assert not any(tmp_path.iterdir())


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("12345")
    (tmp_path / ".lock-1-of-2").write_text("12345")
    for part in ("1/2", ""):
        with alone_in(tmp_path, "baking", part):
            pass
    assert [path.name for path in tmp_path.iterdir()] == []
