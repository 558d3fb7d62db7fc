"""The complex edits are what their words say, and no test phrase is ever trained on."""

from __future__ import annotations

import numpy as np
import pytest
from complex_edits import complex_catalogue
from edits import COLOURS, Edit, Pixels, catalogue, tint
from pairs import COMPLEX, SETS, Set, column, draw_edits, grouped

EVERY = complex_catalogue()
GREY = np.full((100, 120, 3), 0.5, np.float32)


def edit_of(phrase: str) -> Edit:
    return next(edit for edit in EVERY if phrase in edit.phrases)


def done(phrase: str, pixels: Pixels = GREY) -> Pixels:
    return edit_of(phrase).apply(pixels, np.random.default_rng(0))


def coloured(pixels: Pixels, name: str) -> np.ndarray:
    return np.abs(pixels - np.array(COLOURS[name], np.float32)).max(axis=-1) < 0.02


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("size", [(48, 48), (40, 96)])
def test_every_kind_keeps_the_size_and_changes_something(kind: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    edits = [edit for edit in EVERY if edit.kind == kind]
    pixels = rng.random((*size, 3), dtype=np.float32)
    for edit in (edits[k] for k in rng.integers(len(edits), size=6)):
        edited = edit.apply(pixels, rng)
        assert edited.shape == pixels.shape
        assert edited.dtype == np.float32
        assert np.abs(edited - pixels).mean() > 0.005


@pytest.mark.parametrize(("number", "count"), [("two", 2), ("three", 3), ("four", 4)])
def test_as_many_dots_as_the_instruction_says(number: str, count: int) -> None:
    red = coloured(done(f"add {number} red dots"), "red")
    seen, found = np.zeros_like(red), 0
    for place in zip(*np.nonzero(red), strict=True):  # count connected parts
        if seen[place]:
            continue
        found, edge = found + 1, [place]
        while edge:
            y, x = edge.pop()
            if 0 <= y < red.shape[0] and 0 <= x < red.shape[1] and red[y, x] and not seen[y, x]:
                seen[y, x] = True
                edge += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    assert found == count


@pytest.mark.parametrize(("half", "part"), [
    ("left", np.s_[:, :58]), ("right", np.s_[:, 62:]), ("top", np.s_[:48]), ("bottom", np.s_[52:]),
])  # fmt: skip
def test_half_an_image_is_edited(half: str, part: tuple[slice, ...]) -> None:
    edited = done(f"make the {half} half blue")
    whole = tint("blue")(GREY, np.random.default_rng(0))
    np.testing.assert_allclose(edited[part], whole[part], atol=1e-6)
    changed = np.abs(edited - GREY).max(axis=-1) > 0
    assert 0.45 < changed.mean() < 0.55


@pytest.mark.parametrize(("relation", "axis", "sign"), [
    ("to the left of", 1, -1), ("to the right of", 1, 1), ("above", 0, -1), ("below", 0, 1),
])  # fmt: skip
def test_the_circle_is_where_the_words_say(relation: str, axis: int, sign: int) -> None:
    edited = done(f"add a red circle {relation} a blue square")
    red, blue = (np.argwhere(coloured(edited, name)).mean(axis=0) for name in ("red", "blue"))
    assert sign * (red - blue)[axis] > 20
    assert abs((red - blue)[1 - axis]) < 2


def test_two_edits_are_both_done() -> None:
    pixels = np.random.default_rng(0).random((60, 60, 3), np.float32)
    edited = done("make it black and white and add a red circle in the middle", pixels)
    assert coloured(edited, "red")[30, 30]
    np.testing.assert_allclose(np.ptp(edited[:10], axis=2), 0, atol=1e-6)


def test_an_instruction_names_one_edit_only() -> None:
    meant: dict[str, str] = {}
    for edit in (*catalogue(), *EVERY):
        for phrase in (*edit.phrases, *edit.unseen):
            assert meant.setdefault(phrase.lower(), edit.plan) == edit.plan


def test_nothing_that_is_tested_is_trained() -> None:
    trained = {
        phrase.lower()
        for name in ("train", "places", "simple", "complex")
        for edit in SETS[name].edits()
        for phrase in SETS[name].phrases(edit)
    }
    tested = {phrase.lower() for edit in SETS["test"].edits() for phrase in SETS["test"].phrases(edit)}
    assert tested
    assert not tested & trained
    assert SETS["test"].heldout


def test_the_test_set_has_every_column_once_an_image() -> None:
    edits = draw_edits(SETS["test"], 6, np.random.default_rng(0))
    assert sorted(map(column, edits)) == sorted((*COMPLEX, "global", "object"))


def test_weights_decide_how_often_a_kind_is_sampled() -> None:
    chosen = Set(catalogue, {"mirror": 1e9})
    generated = [draw_edits(chosen, 1, np.random.default_rng(seed))[0].kind for seed in range(20)]
    assert set(generated) == {"mirror"}
    assert set(grouped(chosen)) == {edit.kind for edit in catalogue()}
