from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from earl_cli.tokens.layout import (
    THINKING_END,
    THINKING_PREFIX,
    THINKING_START,
    Grid,
    Mode,
    ParsedCompletion,
    SequenceLayout,
)

Codes = NDArray[np.int64]

HOSTILE = [
    "<|image start|>", "<|image token|>", "<|image end|>", "<|extra_204|>", "<|visual token 000001|>", "<|endoftext|>",
    "2*3", " ", "\n", "\0", "👩\u200d👧", THINKING_START, THINKING_END, THINKING_PREFIX,
    f"{THINKING_PREFIX} x{THINKING_END}",
]  # fmt: skip
sides = st.integers(1, 6)
tables = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 63)))
texts = st.one_of(
    st.text(), st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5)), max_size=6).map("".join)
)
modes: st.SearchStrategy[Mode] = st.sampled_from(["edit", "reasoning", "mixed"])
SOURCE, TARGET = np.arange(6).reshape(2, 3), np.arange(12).reshape(3, 4)


def edited(layout: SequenceLayout, ids: list[int | str]) -> ParsedCompletion:
    """Parse an edit completion of a 3*4 image; names stand for control ids, integers for codes."""
    vocabulary = layout.vocabulary
    resolved = [getattr(vocabulary, i) if isinstance(i, str) else vocabulary.visual_start + i for i in ids]
    return layout.parse_completion(np.array(resolved, dtype=np.int64), "edit", Grid(3, 4))


ROW: list[int | str] = [0, 1, 2, 3, "eol"]


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([], "stops after 0 of 12 codes"),
        ([0, 1], "stops after 2 of 12 codes"),
        ([*ROW, 0], "stops after 5 of 12 codes"),
        ([*ROW, *ROW[:4]], "stops after 8 of 12 codes"),
        ([*ROW, *ROW, *ROW[:4]], "stops after 12 of 12 codes"),
        ([*ROW, 0, "eos"], "stops after 5 of 12 codes"),
        ([*ROW, "pad", "pad"], "stops after 4 of 12 codes"),
        ([*ROW, *ROW, 0, 1, "eol"], "row 3 has 2 codes instead of 4"),
        (["eol", *ROW], "row 1 has 0 codes instead of 4"),
        ([*ROW, 0, 1, 2, 3, 4, 5, "eol"], "row 2 has 6 codes instead of 4"),
        ([0, 1, 2, 3, 4], "row 1 has 5 codes instead of 4"),
        ([*ROW, "eof", "eoi", "eos"], "the image ends after 4 of 12 codes"),
        ([*ROW, 0, 1, "boi"], "boi stands in row 2 after 2 codes"),
        ([*ROW, 0, 1, 2, 3, "img"], "img stands in row 2 after 4 codes"),
    ],
)
def test_damaged_rows_are_named(layout: SequenceLayout, ids: list[int | str], problem: str) -> None:
    found = edited(layout, ids)
    assert (found.codes, found.finished, found.problem) == (None, False, problem)


@pytest.mark.parametrize(
    ("tail", "problem"),
    [
        ([], "stops before eof"),
        (["eof"], "stops before eoi"),
        (["eof", "eoi"], "stops before eos"),
        (["eos"], "eos stands where eof should close the image"),
        (["eof", "eos"], "eos stands where eoi should close the image"),
        (["eof", "eoi", 7], "code 7 stands where eos should close the image"),
        (["eof", "eoi", "pad"], "pad stands where eos should close the image"),
    ],
)
def test_an_image_with_all_its_codes_is_kept_and_the_rest_named(
    layout: SequenceLayout, tail: list[int | str], problem: str
) -> None:
    found = edited(layout, [*ROW, *ROW, *ROW, *tail])
    assert (found.finished, found.problem) == (False, problem)
    assert found.codes is not None
    assert found.codes.tolist() == [[0, 1, 2, 3]] * 3


def test_what_follows_the_end_is_named(layout: SequenceLayout) -> None:
    found = edited(layout, [*ROW, *ROW, *ROW, "eof", "eoi", "eos", "pad", 5])
    assert (found.finished, found.problem) == (True, "code 5 follows eos")


def answer(layout: SequenceLayout, *parts: str | int | list[int], mode: Mode = "reasoning") -> ParsedCompletion:
    """Parse a completion of text and control ids; a string is text unless it names a control id as ``:name``."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += [getattr(layout.vocabulary, part[1:])] if part.startswith(":") else layout.text.encode(part)
        else:
            ids += [part] if isinstance(part, int) else part
    return layout.parse_completion(np.array(ids, dtype=np.int64), mode)


def rows(layout: SequenceLayout, codes: Codes = TARGET) -> list[int]:
    """All of an image after img, and eos."""
    ids = [*layout.image(codes).tolist(), layout.vocabulary.eos]
    return ids[ids.index(layout.vocabulary.img) + 1 :]


@pytest.mark.parametrize(
    ("parts", "thoughts", "problem"),
    [
        ([], "", "stops before the image begins"),
        ([" let me"], "let me", "stops before the image begins"),
        ([f" a{THINKING_END}", ":eos"], "a", "ends without an image"),
        ([f" a{THINKING_END}", ":boi", "3*"], "a", "the height*width header can't be read"),
        ([f" a{THINKING_END}", ":boi", "3*four", ":img"], "a", "the height*width header can't be read"),
        ([f" a{THINKING_END}", ":boi", "3*4", ":eol", ":img"], "a", "the height*width header can't be read"),
        ([f" a{THINKING_END}", ":boi", "3*44444444444", ":img"], "a", "the height*width header can't be read"),
        ([f" a{THINKING_END}", 408], "a", "the image has no boi and no height*width header"),
        ([f" a{THINKING_END}", ":boi", "3*4", ":img"], "a", "stops after 0 of 12 codes"),
    ],
)
def test_a_completion_without_image_says_why(
    layout: SequenceLayout, parts: list[str | int], thoughts: str, problem: str
) -> None:
    found = answer(layout, *parts)
    assert (found.codes, found.finished, found.thoughts, found.problem) == (None, False, thoughts, problem)


@pytest.mark.parametrize(
    ("text", "mode", "thoughts", "problem"),
    [
        (" no end", "reasoning", "no end", f"the thinking isn't closed by {THINKING_END}"),
        (f" a{THINKING_END} and more", "reasoning", "a", None),
        (f"{THINKING_PREFIX} no end", "mixed", "no end", f"the thinking isn't closed by {THINKING_END}"),
        (f"Let's go {THINKING_START}a{THINKING_END}", "mixed", "a", None),
        (" just words", "mixed", " just words", f"text before the image without {THINKING_START}"),
    ],
)
def test_odd_thinking_is_named_and_the_image_kept(
    layout: SequenceLayout, text: str, mode: Mode, thoughts: str, problem: str | None
) -> None:
    found = answer(layout, text, ":boi", "3*4", ":img", rows(layout), mode=mode)
    assert (found.thoughts, found.problem, found.finished) == (thoughts, problem, True)
    assert found.codes is not None
    assert (found.codes == TARGET).all()


def test_the_image_opens_at_the_last_boi_before_its_codes(layout: SequenceLayout) -> None:
    found = answer(layout, f" a{THINKING_END}", ":boi", "0*0", ":img", ":boi", "3*4", ":img", rows(layout))
    assert found.codes is not None
    assert (found.codes == TARGET).all()
    assert (found.thoughts, found.problem) == ("a", "boi stands inside the text")


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        (0, "no ids at all"),
        (1, "source image: boi doesn't follow bos"),
        (3, "source image: the height*width header can't be read"),
        (8, "source image: stops after 2 of 6 codes"),
        (14, "source image: eof and eoi don't follow the last row"),
        (16, "nothing after the instruction"),
        (17, "nothing after the instruction"),
    ],
)
def test_a_sequence_cut_short_says_where(layout: SequenceLayout, cut: int, problem: str) -> None:
    ids = layout.example(SOURCE, "make it", TARGET).ids
    assert len(layout.image(SOURCE)) == 15
    assert layout.parse(ids[:cut]).problem == problem


def test_a_sequence_that_begins_or_reads_wrong_is_named(layout: SequenceLayout) -> None:
    example = layout.example(SOURCE, "make it", TARGET)
    ids, vocabulary = example.ids, layout.vocabulary
    assert layout.parse(ids[1:]).problem == "starts with boi instead of bos"
    assert layout.parse(np.append(ids, vocabulary.size)).problem == (
        f"id {vocabulary.size} at position {len(ids)} is outside the vocabulary of {vocabulary.size}"
    )
    assert "id -100 at position 0 is outside" in str(layout.parse_completion([-100], "mixed").problem)
    stray = np.insert(ids, example.loss_from, vocabulary.eol)
    assert layout.parse(stray).problem == "instruction: eol stands inside the text"
    assert layout.parse(np.append(ids[: example.loss_from], vocabulary.eos)).problem == "ends without an image"


@given(thoughts=st.none() | texts, data=st.data())
def test_every_cut_sequence_has_a_problem(layout: SequenceLayout, thoughts: str | None, data: st.DataObject) -> None:
    example = layout.example(SOURCE, "make it snowy", TARGET, thoughts)
    cut = data.draw(st.integers(0, len(example.ids) - 1))
    found = layout.parse(example.ids[:cut], example.loss_from)
    assert found.problem
    assert not found.finished
    assert (found.target is not None) == (cut >= len(example.ids) - 3)


@given(ids=st.lists(st.integers(0, 471) | st.sampled_from(range(400, 412)), max_size=60), mode=modes)
def test_no_ids_whatever_make_the_reader_fail(layout: SequenceLayout, ids: list[int], mode: Mode) -> None:
    array = np.array(ids, dtype=np.int64)
    found = layout.parse_completion(array, mode, Grid(2, 2))
    assert found.codes is not None or found.problem
    assert found.problem or found.finished
    assert layout.parse(array).problem
    assert layout.parse(np.concatenate([[layout.vocabulary.bos], layout.image(SOURCE), array])).source is not None


@given(source=tables, target=tables, thoughts=st.none() | texts, data=st.data())
def test_a_changed_id_is_never_taken_for_a_flawless_sequence_with_other_codes(
    layout: SequenceLayout, source: Codes, target: Codes, thoughts: str | None, data: st.DataObject
) -> None:
    """Whatever single control id is overwritten, either a problem is named or the images stay what they are."""
    ids = layout.example(source, "make it snowy", target, thoughts).ids
    controls = np.flatnonzero((ids >= 400) & (ids < 408))
    place = data.draw(st.sampled_from(controls.tolist()))
    changed = ids.copy()
    changed[place] = data.draw(st.integers(0, 471).filter(lambda token: token != ids[place]))
    assert layout.parse(changed).problem
