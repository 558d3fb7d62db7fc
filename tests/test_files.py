"""Files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from earl_cli.files import is_aside, remove_asides, whole_file


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt), whole_file(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole_file(path) as aside:
        aside.write_text("whole")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


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
