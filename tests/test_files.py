"""Atomic writes, locks of folders, and JSON from untrusted sources."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.errors import OutputError
from earl_cli.files import (
    MAX_DEPTH,
    atomic_write,
    end_of_value,
    first_value,
    folder_lock,
    is_partial,
    loads,
    remove_partials,
)


def test_a_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(NotADirectoryError) as error, atomic_write(tmp_path / "x" / "y.png") as temporary:
        temporary.write_text("nowhere")
    assert error.value.filename == str(tmp_path / "x" / "y.png")


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("whole")
        left = temporary.with_name(temporary.name.replace(".partial", "7.partial"))
        left.touch()
    other = tmp_path / ".y.0123.partial"
    other.touch()
    assert is_partial(left)
    assert not is_partial(tmp_path / "x")
    remove_partials(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "x"]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    for permissions in (0o600, 0o444, 0o666):
        path.chmod(permissions)
        with atomic_write(path) as temporary:
            assert mode(temporary) == permissions | 0o600  # before anything is in it
            temporary.write_text("new")
        assert mode(path) == permissions


def test_a_folder_is_locked_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with folder_lock(folder, "baking"):
        for part in ("", "1/2"):
            with pytest.raises(OutputError) as error, folder_lock(folder, "baking", part):
                pass
            assert str(error.value) == (
                f"{folder}: another baking is at work here (wait for it, or end process {os.getpid()})"
            )
    with folder_lock(folder, "baking"):
        pass
    assert not any(folder.iterdir())


def test_locks_of_different_parts_can_be_held_together(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "baking", "1/2"), folder_lock(tmp_path, "baking", "2/2"):
        for part in ("", "1/2", "2/2"):
            with pytest.raises(OutputError, match="another baking"), folder_lock(tmp_path, "baking", part):
                pass
    assert not any(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("12345")
    (tmp_path / ".lock-1-of-2").write_text("12345")
    for part in ("1/2", ""):
        with folder_lock(tmp_path, "baking", part):
            pass
    assert [path.name for path in tmp_path.iterdir()] == []


# -- JSON --------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.booleans(), st.sampled_from(["", "\ufeff"]))
def test_valid_json_is_read(value: object, ascii_only: bool, mark: str) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert loads(text) == value
    if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert loads((mark + text).encode()) == value
    assert first_value(f"  {text}]", 2) == (value, 2 + len(text))


@given(st.lists(VALUES) | st.dictionaries(st.text(), VALUES))
def test_the_end_of_a_value_is_found_without_parsing_it(value: object) -> None:
    text = json.dumps(value)
    assert end_of_value(f"[{text}, [", 1) == 1 + len(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "it is nested too deeply"),
        ('{"a":' * 300 + "1" + "}" * 300, "it is nested too deeply"),
        ("9" * 6000, "a number in it has thousands of digits"),
        ("[1] 2", "Extra data"),
        ("", "Expecting value"),
    ],
)
def test_json_that_cant_be_read_is_a_value_error_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        loads(text)


def test_the_deepest_nesting_and_brackets_in_strings_are_read() -> None:
    assert loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert loads(json.dumps(["[" * 1000, "{" * 1000])) == ["[" * 1000, "{" * 1000]
    assert loads(json.dumps([[1]] * 1000)) == [[1]] * 1000
