from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from steps import steps

from earl_cli.errors import InputError
from earl_cli.tokens.grammar import AllowedIds, GrammarState, ImageGrammar, start_state
from earl_cli.tokens.layout import THINKING_END, Grid, Mode, SequenceLayout
from earl_cli.tokens.vocabulary import EMU3

Codes = NDArray[np.int64]

sides = st.integers(1, 6)
grids = st.builds(Grid, sides, sides)
tables = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 63)))
modes: st.SearchStrategy[Mode] = st.sampled_from(["edit", "reasoning", "mixed"])
thinking: st.SearchStrategy[Mode] = st.sampled_from(["reasoning", "mixed"])


def follow(state: GrammarState, ids: list[int]) -> GrammarState:
    for token in ids:
        state = state.advance(token)
    return state


def body(state: GrammarState) -> list[int]:
    """Take the first allowed id until eos is out."""
    ids = []
    while not state.done:
        token = state.allowed().start
        ids.append(token)
        state = state.advance(token)
    return ids


@given(codes=tables)
def test_the_grammar_is_the_layout_of_an_image(layout: SequenceLayout, codes: Codes) -> None:
    vocabulary = layout.vocabulary
    ids = [*layout.image(codes).tolist(), vocabulary.eos, vocabulary.pad, vocabulary.pad]
    after = ids[ids.index(vocabulary.img) + 1 :]
    grammar = ImageGrammar(vocabulary, *codes.shape)
    assert grammar.length == len(after) - 2
    for offset, token in enumerate(after):
        forced = grammar.forced(offset)
        assert forced == token if token < vocabulary.visual_start else forced is None


def test_the_grammar_of_a_large_image_depends_on_the_position_alone() -> None:
    grammar = ImageGrammar(EMU3, 32, 32)
    assert [grammar.forced(o) for o in (0, 31, 33)] == [None, None, None]
    assert [grammar.forced(o) for o in (32, 65, 32 * 33 - 1)] == [EMU3.eol] * 3
    assert [grammar.forced(32 * 33 + o) for o in range(5)] == [EMU3.eof, EMU3.eoi, EMU3.eos, EMU3.pad, EMU3.pad]
    assert grammar.forced(10**12) == EMU3.pad
    assert grammar.length == 32 * 33 + 3


@given(target=tables, thoughts=st.none() | st.text(max_size=40), mode=modes)
def test_whatever_training_shows_may_be_sampled(
    layout: SequenceLayout, target: Codes, thoughts: str | None, mode: Mode
) -> None:
    grid = Grid(*target.shape)
    thoughts = None if mode == "edit" else "" if thoughts is None and mode == "reasoning" else thoughts
    example = layout.example([[1]], "make it snowy", target, thoughts)
    completion = example.ids[len(layout.prompt([[1]], "make it snowy", mode, grid)) :].tolist()
    fallback = grid if mode == "edit" else Grid(2, 2)
    state = start_state(layout, mode, fallback)
    for token in completion:
        assert not state.done
        state = state.advance(token)
    assert state.done
    assert state.allowed().forced == layout.vocabulary.pad


@settings(max_examples=200)
@given(mode=modes, grid=grids, limit=st.integers(0, 8), codes=st.integers(1, 30), data=st.data())
def test_whatever_may_be_sampled_is_read_back(
    layout: SequenceLayout, *, mode: Mode, grid: Grid, limit: int, codes: int, data: st.DataObject
) -> None:
    vocabulary = layout.vocabulary
    likely = [vocabulary.boi, vocabulary.img, vocabulary.eol, *layout.text.encode("123*")]
    state, ids = start_state(layout, mode, grid, limit, codes), []
    longest = state.max_remaining
    while not state.done:
        allowed = state.allowed()
        token = allowed.forced
        if token is None:
            some = st.integers(allowed.start, allowed.stop - 1)
            likely_here = [i for i in likely if i in allowed]
            token = data.draw(some | st.sampled_from(likely_here) if likely_here else some)
        if token == vocabulary.eos and state.image is None:
            token = vocabulary.boi
        ids.append(token)
        state = state.advance(token)
        assert len(ids) + state.max_remaining <= longest
    found = layout.parse_completion(np.array(ids, dtype=np.int64), mode, grid)
    assert found.finished
    assert found.codes is not None
    assert found.grid is not None
    assert found.grid == grid or (mode != "edit" and found.grid.codes <= codes)
    assert [vocabulary.visual_start + c for c in found.codes.ravel().tolist()] == [
        i for i in ids if i >= vocabulary.visual_start
    ]


@given(mode=modes, grid=grids)
def test_choices_are_one_id_or_the_visual_or_the_other_ones(layout: SequenceLayout, mode: Mode, grid: Grid) -> None:
    vocabulary = layout.vocabulary
    visual, other = (vocabulary.visual_start, vocabulary.size), (0, vocabulary.visual_start)
    state = start_state(layout, mode, grid, 3)
    for token in [*body(state), vocabulary.pad]:
        allowed = state.allowed()
        if allowed.forced is None:
            assert (allowed.start, allowed.stop) == (other if state.image is None else visual)
        else:
            assert allowed == AllowedIds(token, token, token + 1)
        state = state.advance(token)


@given(mode=thinking)
def test_the_model_may_choose_its_own_grid(layout: SequenceLayout, mode: Mode) -> None:
    vocabulary = layout.vocabulary
    start = start_state(layout, mode, Grid(2, 2), 20, 12)
    state = follow(start, [*layout.text.encode(f" a{THINKING_END}"), vocabulary.boi, *layout.text.encode("3*4")])
    assert state.image is None
    assert state.advance(vocabulary.img).image == ImageGrammar(vocabulary, 3, 4)


@pytest.mark.parametrize("header", ["3*5", "9999*1", "4*4", "2", "2*", ""])
def test_a_grid_too_large_or_incomplete_is_replaced_at_img(layout: SequenceLayout, header: str) -> None:
    vocabulary = layout.vocabulary
    start = start_state(layout, "mixed", Grid(2, 2), 20, 12)
    state = follow(start, [vocabulary.boi, *layout.text.encode(header), vocabulary.img])
    opening = layout.opening(Grid(2, 2)).tolist()
    assert body(state)[: len(opening)] == opening
    assert follow(state, opening).image == ImageGrammar(vocabulary, 2, 2)


@pytest.mark.parametrize("header", ["x", "*", "0", "2**", "2*0", "12345", " ", "2*3*"])
def test_a_header_gone_wrong_is_replaced_at_once(layout: SequenceLayout, header: str) -> None:
    state = start_state(layout, "reasoning", Grid(2, 2), 20, 12).advance(layout.vocabulary.boi)
    for token in layout.text.encode(header):
        assert state.allowed().forced is None
        state = state.advance(token)
    assert state.allowed().forced == layout.vocabulary.boi


@pytest.mark.parametrize("control", ["pad", "eol", "eof", "bos", "boi", "eoi"])
def test_a_control_id_in_the_header_is_replaced_at_once(layout: SequenceLayout, control: str) -> None:
    state = start_state(layout, "reasoning", Grid(2, 2)).advance(layout.vocabulary.boi)
    assert state.advance(getattr(layout.vocabulary, control)).allowed().forced == layout.vocabulary.boi


def test_img_without_boi_gets_the_default_opening(layout: SequenceLayout) -> None:
    state = start_state(layout, "mixed", Grid(2, 2)).advance(layout.vocabulary.img)
    assert state.allowed().forced == layout.vocabulary.boi


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_text_ends_at_its_limit(layout: SequenceLayout, limit: int) -> None:
    ids = body(start_state(layout, "reasoning", Grid(2, 2), limit))
    opening = layout.opening(Grid(2, 2)).tolist()
    assert ids[: limit + len(opening)] == [0] * limit + opening
    assert len(ids) == limit + len(opening) + ImageGrammar(layout.vocabulary, 2, 2).length


@pytest.mark.parametrize("limit", [1, 5])
@pytest.mark.parametrize("mode", ["reasoning", "mixed"])
def test_as_published_overlong_text_gets_no_image(layout: SequenceLayout, mode: Mode, limit: int) -> None:
    grid = Grid(2, 2)
    ids = body(start_state(layout, mode, grid, limit, overlong="zero"))
    assert len(ids) == limit + 1
    assert ids[-1] == layout.vocabulary.eos
    answer = layout.parse_completion(ids, mode, grid)
    assert answer.codes is None
    assert layout.parse_completion(body(start_state(layout, mode, grid, limit)), mode, grid).codes is not None


@pytest.mark.parametrize("mode", ["reasoning", "mixed"])
def test_as_published_an_image_after_text_has_the_source_s_grid(layout: SequenceLayout, mode: Mode) -> None:
    grid = Grid(3, 4)
    state = start_state(layout, mode, grid, 5, overlong="zero")
    assert state.max_remaining >= 5 + len(layout.opening(grid)) + grid.tokens + 1
    state = follow(state, [5, layout.vocabulary.boi])
    rest = body(state)
    opening = layout.opening(grid).tolist()
    assert rest[: len(opening) - 1] == opening[1:]
    codes = layout.parse_completion([5, layout.vocabulary.boi, *rest], mode, grid).codes
    assert codes is not None
    assert codes.shape == (3, 4)


@pytest.mark.parametrize("begun", [[], ["boi"]])
def test_eos_before_the_image_ends_without_one(layout: SequenceLayout, begun: list[str]) -> None:
    vocabulary = layout.vocabulary
    state = follow(start_state(layout, "mixed", Grid(2, 2)), [getattr(vocabulary, name) for name in begun])
    state = state.advance(vocabulary.eos)
    assert state.done
    assert state.max_remaining == 0
    assert state.allowed().forced == vocabulary.pad
    assert state.advance(vocabulary.pad) == state


def test_an_id_that_is_not_allowed_is_refused_and_named(layout: SequenceLayout) -> None:
    vocabulary = layout.vocabulary
    with pytest.raises(InputError, match="eos isn't allowed at this position"):
        start_state(layout, "edit", Grid(2, 2)).advance(vocabulary.eos)
    with pytest.raises(InputError, match="code 3 isn't allowed"):
        start_state(layout, "mixed", Grid(2, 2)).advance(vocabulary.visual_start + 3)
    with pytest.raises(InputError, match="unknown id -1"):
        start_state(layout, "mixed", Grid(2, 2)).advance(-1)


def test_ids_from_numpy_are_ids(layout: SequenceLayout) -> None:
    assert start_state(layout, "edit", Grid(2, 2)).advance(np.int64(layout.vocabulary.visual_start)).offset == 1  # type: ignore[arg-type]


def test_a_state_stays_what_it_is(layout: SequenceLayout) -> None:
    state = start_state(layout, "edit", Grid(1, 2))
    one, two = state.advance(layout.vocabulary.visual_start), state.advance(layout.vocabulary.visual_start + 1)
    assert one == two
    assert state.offset == 0


def test_a_start_needs_a_mode_and_a_grid(layout: SequenceLayout) -> None:
    wrong: Literal["edit"] = "draw"  # type: ignore[assignment]
    with pytest.raises(InputError, match="is not edit, reasoning or mixed"):
        start_state(layout, wrong, Grid(2, 2))
    for mode in ("edit", "reasoning", "mixed"):
        with pytest.raises(InputError, match="needs a grid"):
            start_state(layout, mode, None)


def test_a_step_costs_the_same_at_the_end_of_an_image_as_at_its_start(layout: SequenceLayout) -> None:
    state = start_state(layout, "edit", Grid(900, 900))
    late = GrammarState(state.rules, state.image, offset=900 * 901 - 2)
    token = layout.vocabulary.visual_start

    assert steps(lambda: late.advance(token)) == steps(lambda: state.advance(token)) < 100
