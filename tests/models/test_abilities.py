"""Which instructions a small model was trained for: every trained phrase is, and what people say beside them isn't."""

from __future__ import annotations

import pytest
from base import abilities
from edits import catalogue

from earl_cli.models.abilities import examples, recognise

ABILITIES = abilities()


def test_every_trained_phrase_is_recognised_as_its_kind() -> None:
    for edit in catalogue():
        for phrase in edit.phrases if edit.kind != "square" else ():
            found = recognise(phrase, ABILITIES)
            assert (found.kinds, found.unknown_words) == ((edit.kind,), ()), phrase


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("Please make it SNOWY!", "snow"),
        ("could you make this photo a bit brighter?", "brighter"),
        ("black and white", "black and white"),
        ("add a black circle in the middle", "circle"),
        ("make it purple", "tint"),
    ],
)
def test_other_ways_to_say_it(instruction: str, kind: str) -> None:
    found = recognise(instruction, ABILITIES)
    assert found.kinds == (kind,)
    assert found.in_range


@pytest.mark.parametrize(
    ("instruction", "unknown"),
    [
        ("replace the cat by a dog", ("replace", "cat", "by", "dog")),
        ("make the sky snowy", ("sky",)),
        ("enlève la neige", ("enlève", "la", "neige")),
        ("!!!", ()),
        ("add a green square on the left", ("square",)),  # drawn, but not told from a circle
    ],
)
def test_what_is_out_of_range(instruction: str, unknown: tuple[str, ...]) -> None:
    found = recognise(instruction, ABILITIES)
    assert not found.in_range
    assert found.unknown_words == unknown


def test_two_edits_at_once_are_out_of_range() -> None:
    found = recognise("make it snowy and blurry", ABILITIES)
    assert set(found.kinds) == {"snow", "blur"}
    assert not found.in_range


def test_the_examples_are_in_range() -> None:
    assert len(examples(ABILITIES)) == len(ABILITIES["kinds"])
    assert all(recognise(example, ABILITIES).in_range for example in examples(ABILITIES))
