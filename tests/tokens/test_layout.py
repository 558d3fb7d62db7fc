from __future__ import annotations

import pickle
from itertools import chain
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike, NDArray
from steps import steps

from earl_cli.errors import InputError, ModelError
from earl_cli.tokens.layout import (
    THINKING_END,
    THINKING_PREFIX,
    THINKING_START,
    Grid,
    Mode,
    SequenceLayout,
    thoughts_text,
)
from earl_cli.tokens.text import TextTokenizer, train_byte_bpe
from earl_cli.tokens.vocabulary import EMU3, small_vocabulary

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


def mode_thoughts(mode: Mode, thoughts: str) -> str | None:
    return None if mode == "edit" else thoughts


# --- building -------------------------------------------------------------------------------------------------------


def test_an_example_is_the_published_sequence(tokenizer: TextTokenizer) -> None:
    layout, text = SequenceLayout(EMU3, tokenizer), tokenizer.encode
    source = [151849, 151852, *text("1*2"), 151851, 151854, 151855, 151846, 151847, 151853]
    target = [151852, *text("2*1"), 151851, 184621, 151846, 151856, 151846, 151847, 151853, 151850]
    thinking = [*text(" Let's think step by step. <|start thinking|>"), *text(" add: snow<|end thinking|>")]

    plain = layout.example([[0, 1]], "make it snowy", [[32767], [2]])
    assert plain.ids.tolist() == [*source, *text("make it snowy"), *target]
    assert plain.loss_from == len(source) + len(text("make it snowy"))

    thoughtful = layout.example([[0, 1]], "make it snowy", [[32767], [2]], "add: snow")
    assert thoughtful.ids.tolist() == [*source, *text("make it snowy"), *thinking, *target]
    assert thoughtful.loss_from == plain.loss_from


def test_prompts_end_where_the_model_takes_over(tokenizer: TextTokenizer) -> None:
    layout, text = SequenceLayout(EMU3, tokenizer), tokenizer.encode
    mixed = layout.prompt([[0, 1]], "make it snowy", "mixed").tolist()
    assert mixed[-len(text("make it snowy")) :] == text("make it snowy")
    assert layout.prompt([[0, 1]], "make it snowy").tolist() == [*mixed, 151852, *text("1*2"), 151851]
    wide = layout.prompt([[0, 1]], "make it snowy", "edit", Grid(3, 40)).tolist()
    assert wide == [*mixed, 151852, *text("3*40"), 151851]
    reasoning = layout.prompt([[0, 1]], "make it snowy", "reasoning").tolist()
    assert reasoning == [*mixed, *text(" Let's think step by step. <|start thinking|>")]


@given(codes=tables)
def test_an_image_is_its_rows_between_its_marks(layout: SequenceLayout, codes: Codes) -> None:
    vocabulary, (height, width) = layout.vocabulary, codes.shape
    rows = [[*(vocabulary.visual_start + row).tolist(), vocabulary.eol] for row in codes]
    head = [vocabulary.boi, *layout.text.encode(f"{height}*{width}"), vocabulary.img]
    assert layout.image(codes).tolist() == [*head, *chain(*rows), vocabulary.eof, vocabulary.eoi]
    assert len(layout.image(codes)) == len(head) + Grid(height, width).tokens


@given(source=tables, instruction=texts, target=tables, thoughts=texts, mode=modes)
def test_a_prompt_is_a_strict_prefix_of_the_example(
    layout: SequenceLayout, *, source: Codes, instruction: str, target: Codes, thoughts: str, mode: Mode
) -> None:
    example = layout.example(source, instruction, target, mode_thoughts(mode, thoughts))
    prompt = layout.prompt(source, instruction, mode, Grid(*target.shape))
    assert prompt.dtype == example.ids.dtype == np.int64
    assert len(prompt) < len(example.ids)
    assert (example.ids[: len(prompt)] == prompt).all()
    assert example.loss_from == len(layout.prompt(source, instruction, "mixed"))
    assert example.ids[-1] == layout.vocabulary.eos


@given(source=tables, instruction=texts, target=tables, thoughts=st.none() | texts)
def test_text_never_adds_a_control_or_visual_id(
    layout: SequenceLayout, source: Codes, instruction: str, target: Codes, thoughts: str | None
) -> None:
    hostile = layout.example(source, instruction, target, thoughts).ids
    plain = layout.example(source, "", target).ids
    first = layout.vocabulary.text_size
    assert hostile[hostile >= first].tolist() == plain[plain >= first].tolist()


@pytest.mark.parametrize(
    "codes", [np.zeros(3, int), np.zeros((0, 3), int), np.zeros((2, 0), int), [[1.5]], [[64]], [[-1]]]
)
def test_what_is_no_table_of_codes_is_refused(layout: SequenceLayout, codes: ArrayLike) -> None:
    for build in (layout.image, lambda c: layout.prompt(c, "x"), lambda c: layout.example([[1]], "x", c)):
        with pytest.raises(InputError):
            build(codes)


def test_unknown_modes_and_missing_grids_are_refused(layout: SequenceLayout) -> None:
    wrong: Literal["edit"] = "draw"  # type: ignore[assignment]
    with pytest.raises(InputError, match="is not edit, reasoning or mixed"):
        layout.prompt(SOURCE, "x", wrong)
    with pytest.raises(InputError, match="is not edit, reasoning or mixed"):
        layout.parse_completion([1], wrong)
    with pytest.raises(InputError, match="pass the grid of its prompt"):
        layout.parse_completion([1], "edit")


@pytest.mark.parametrize("ids", [[[1]], [1.0], ["x"], 3])
def test_what_is_no_row_of_ids_is_refused(layout: SequenceLayout, ids: ArrayLike) -> None:
    with pytest.raises(InputError, match="row of integer ids"):
        layout.parse(ids)
    with pytest.raises(InputError, match="row of integer ids"):
        layout.parse_completion(ids, "mixed")


def test_the_tokenizer_must_fit_the_vocabulary(tokenizer: TextTokenizer) -> None:
    assert SequenceLayout(small_vocabulary(tokenizer.size, 64), tokenizer).text is tokenizer
    with pytest.raises(
        ModelError, match=f"{tokenizer.size} tokens, but the model has only {tokenizer.size - 1} text ids"
    ):
        SequenceLayout(small_vocabulary(tokenizer.size - 1, 64), tokenizer)


@given(height=st.integers(1, 9999), width=st.integers(1, 9999))
def test_grids_are_spelled_and_read(height: int, width: int) -> None:
    grid = Grid(height, width)
    assert str(grid) == f"{height}*{width}"
    assert Grid.read(str(grid)) == grid
    assert grid.tokens == grid.codes + height + 2


@pytest.mark.parametrize(
    "text", ["", "*", "3*", "*3", "0*3", "3*0", "03*3", " 3*3", "3*3\n", "3x3", "3*3*3", "-3*3", "10000*1", "٣*٣"]
)
def test_what_spells_no_grid_is_not_read(text: str) -> None:
    assert Grid.read(text) is None


@pytest.mark.parametrize("shape", [(0, 1), (1, 0), (-1, 1), (10000, 1), (1, 10000)])
def test_impossible_grids_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="1 to 9999"):
        Grid(*shape)


def test_thoughts_are_the_chosen_keys_in_order_cut_to_the_published_length() -> None:
    cot = {"objects": "a dog", "plan": "add snow", "boxes": "[1, 2, 3, 4]"}
    assert thoughts_text(cot, ["plan", "objects"]) == "plan: add snow objects: a dog"
    assert thoughts_text(cot, ["plan", "missing"]) == "plan: add snow"
    assert thoughts_text({}, ["plan"]) == ""
    assert thoughts_text({"plan": "\n add snow \t"}, ["plan"]) == "plan: add snow"
    assert thoughts_text({"plan": " ", "objects": "", "boxes": "b"}, ["plan", "objects", "boxes"]) == (
        "plan:  objects:  boxes: b"
    )
    assert thoughts_text({"plan": "x" * 3000}, ["plan"]) == "plan: " + "x" * 1744


def test_a_layout_goes_to_worker_processes(layout: SequenceLayout) -> None:
    again = pickle.loads(pickle.dumps(layout))
    assert again == layout
    assert (
        again.prompt(SOURCE, "make it snowy", "reasoning") == layout.prompt(SOURCE, "make it snowy", "reasoning")
    ).all()


def test_no_python_runs_for_each_code_of_a_training_pair(layout: SequenceLayout) -> None:
    def work(side: int) -> int:
        codes = np.random.default_rng(0).integers(0, 64, (side, side))
        return steps(lambda: layout.example(codes, "make it snowy, but leave the two dogs", codes, "plan: add snow"))

    work(11)  # what is made once
    assert work(12) == work(90) < 1000


# --- reading what is right ------------------------------------------------------------------------------------------


@given(source=tables, instruction=texts, target=tables, thoughts=texts, mode=modes)
def test_a_completion_is_read_back(
    layout: SequenceLayout, *, source: Codes, instruction: str, target: Codes, thoughts: str, mode: Mode
) -> None:
    grid = Grid(*target.shape)
    example = layout.example(source, instruction, target, mode_thoughts(mode, thoughts))
    completion = example.ids[len(layout.prompt(source, instruction, mode, grid)) :]
    found = layout.parse_completion(completion, mode, grid if mode == "edit" else None)
    assert (found.problem, found.finished, found.grid) == (None, True, grid)
    assert found.thoughts == mode_thoughts(mode, thoughts)
    assert found.codes is not None
    assert (found.codes == target).all()


@given(source=tables, instruction=texts, target=tables, thoughts=st.none() | texts)
def test_an_example_is_read_back_whatever_its_texts_spell(
    layout: SequenceLayout, source: Codes, instruction: str, target: Codes, thoughts: str | None
) -> None:
    example = layout.example(source, instruction, target, thoughts)
    found = layout.parse(example.ids, example.loss_from)
    assert (found.problem, found.finished) == (None, True)
    assert (found.instruction, found.thoughts) == (instruction, thoughts)
    assert found.source is not None
    assert found.target is not None
    assert (found.source == source).all()
    assert (found.target == target).all()


@given(instruction=texts.filter(lambda text: THINKING_PREFIX not in text), thoughts=st.none() | texts)
def test_the_ids_alone_tell_instruction_and_thoughts_apart(
    layout: SequenceLayout, instruction: str, thoughts: str | None
) -> None:
    found = layout.parse(layout.example(SOURCE, instruction, TARGET, thoughts).ids)
    assert (found.instruction, found.thoughts, found.problem) == (instruction, thoughts, None)


@given(instruction=texts, thoughts=texts)
def test_round_trips_hold_for_a_tokenizer_of_bare_bytes(instruction: str, thoughts: str) -> None:
    layout = SequenceLayout(small_vocabulary(256, 64), train_byte_bpe([], 256))
    example = layout.example(SOURCE, instruction, TARGET, thoughts)
    found = layout.parse(example.ids, example.loss_from)
    assert (found.instruction, found.thoughts, found.problem) == (instruction, thoughts, None)


def test_a_mixed_completion_may_think_or_not(layout: SequenceLayout) -> None:
    prompt = len(layout.prompt(SOURCE, "make it snowy", "mixed"))
    silent = layout.parse_completion(layout.example(SOURCE, "make it snowy", TARGET).ids[prompt:], "mixed")
    loud = layout.parse_completion(layout.example(SOURCE, "make it snowy", TARGET, "hm").ids[prompt:], "mixed")
    assert (silent.thoughts, silent.problem) == (None, None)
    assert (loud.thoughts, loud.problem) == ("hm", None)


def test_padding_after_eos_is_no_problem(layout: SequenceLayout) -> None:
    ids = layout.example(SOURCE, "make it snowy", TARGET).ids
    padded = np.append(ids, [layout.vocabulary.pad] * 5)
    assert layout.parse(padded).problem is None
    assert layout.parse(padded).finished
    assert layout.parse(np.append(padded, layout.vocabulary.eol)).problem == "eol follows eos"
