"""JSON of other people: what it says, or in words why it can't be read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.files import MOST_DEPTH, end_of_value, first_value, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.booleans(), st.sampled_from(["", "\ufeff"]))
def test_what_json_writes_is_read(value: object, ascii_only: bool, mark: str) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert loads(text) == value
    if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert loads((mark + text).encode()) == value
    assert first_value(f"  {text}]", 2) == (value, 2 + len(text))


@given(st.lists(VALUES) | st.dictionaries(st.text(), VALUES))
def test_the_end_of_a_value_is_found_without_reading_it(value: object) -> None:
    text = json.dumps(value)
    assert end_of_value(f"[{text}, [", 1) == 1 + len(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "it is nested too deeply"),
        ('{"a":' * 300 + "1" + "}" * 300, "it is nested too deeply"),
        ("9" * 6000, "a number in it has thousands of digits"),
        ("[1] 2", "Extra data"),
        ("", "Expecting value"),
    ],
)
def test_what_cant_be_read_is_said_in_words(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        loads(text)


def test_as_deep_as_may_be_and_brackets_in_texts() -> None:
    assert loads("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    assert loads(json.dumps(["[" * 1000, "{" * 1000])) == ["[" * 1000, "{" * 1000]
    assert loads(json.dumps([[1]] * 1000)) == [[1]] * 1000
