"""Lists of data sets, in a config and in a file of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.config.loader import read_paths
from earl_cli.errors import InputError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sets.json", '["a/train", "/far/b"]'),
        ("sets.json", '\ufeff{"first": "a/train", "second": "/far/b"}'),
        ("sets.txt", "# two sets\n\n  a/train  \r\n/far/b\n"),
        ("sets", '["a/train", "/far/b"]'),
        ("sets.txt", "a/train\n/far/b"),
    ],
)
def test_the_forms_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_paths(tmp_path / name) == (tmp_path / "a/train", Path("/far/b"))


names = st.lists(st.text("abc/ .-_é", min_size=1).filter(lambda name: name.strip() == name), min_size=1, max_size=5)


@given(names)
def test_every_form_holds_any_names_in_their_order(names: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        expected = tuple(Path(folder) / name for name in names)
        for number, text in enumerate([json.dumps(names), json.dumps(dict(enumerate(names))), "\n".join(names)]):
            file = Path(folder) / f"{number}.list"
            file.write_text(text, encoding="utf-8")
            assert read_paths(file) == expected


def test_home_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "sets.txt").write_text("~/data\n")
    assert read_paths(tmp_path / "sets.txt") == (Path("/home/someone/data"),)


def test_a_published_list_of_pairs_is_one_data_set(tmp_path: Path) -> None:
    file = tmp_path / "list" / "tokenized_datalist.json"
    file.parent.mkdir()
    file.write_text('{"prefix": "/elsewhere/feature", "path_list": ["1.pth", "2.pth"]}')
    assert read_paths(file) == (file,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no data sets"),
        (b"[]", "lists no data sets"),
        (b"{}", "lists no data sets"),
        (b'"a"', "lists no data sets"),
        (b"7", "lists no data sets"),
        (b'["a", 7]', "entry 2 is no path: 7"),
        (b'["a", " "]', 'entry 2 is no path: " "'),
        (b'{"a": null}', "entry 1 is no path: null"),
        (b'["a"', "this is not JSON: .*line 1"),
        (b"[" * 100_000, "this is not JSON"),
        (b"\xff\xfe\x00", "this is not a text file"),
        (None, "No such file"),
    ],
)
def test_what_is_no_list_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "sets.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message) as found:
        read_paths(file)
    assert found.value.where == str(file)
    assert "JSON list of paths" in str(found.value.hint)


def test_a_text_of_remarks_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "sets.txt").write_text("# a\n\n")
    with pytest.raises(InputError, match="lists no data sets"):
        read_paths(tmp_path / "sets.txt")


def test_sets_that_the_config_names_itself() -> None:
    named = (Path("a/list/tokenized_datalist.json"), Path("b"))
    assert read_paths(named) == named
    assert read_paths(None) == ()
