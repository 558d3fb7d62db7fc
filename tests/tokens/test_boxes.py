"""Boxes in a chain of thought follow their image to its new size; nothing else in the text changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.tokens.layout import rescale_boxes


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("the cat [10, 20, 110, 220] sits", "the cat [5, 5, 55, 55] sits"),
        ("[0,0,  7.5, 2.4]", "[0, 0, 4, 1]"),
        ("[1, 2, 3] and [1, 2, 3, 4, 5]", "[1, 2, 3] and [1, 2, 3, 4, 5]"),
        ("two: [2, 4, 6, 8][20, 40, 60, 80]", "two: [1, 1, 3, 2][10, 10, 30, 20]"),
        ("[a, b, c, d] (1, 2, 3, 4)", "[a, b, c, d] (1, 2, 3, 4)"),
        ("", ""),
    ],
)
def test_only_boxes_move(text: str, moved: str) -> None:
    assert rescale_boxes(text, (200, 400), (100, 100)) == moved


corner = st.integers(0, 5000)


@given(st.tuples(corner, corner, corner, corner), st.text(alphabet=st.characters(exclude_characters="[]"), max_size=20))
def test_the_same_size_changes_nothing(box: tuple[int, ...], words: str) -> None:
    text = f"{words}[{', '.join(map(str, box))}]{words}"
    assert rescale_boxes(text, (640, 480), (640, 480)) == text
