from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from earl_cli.errors import InputError, ModelError
from earl_cli.tokens.vocabulary import CONTROLS, EMU3, Vocabulary, small_vocabulary

vocabularies = st.one_of(st.just(EMU3), st.builds(small_vocabulary, st.integers(1, 5000), st.integers(1, 5000)))


def test_emu3_is_the_published_table() -> None:
    assert EMU3.text_size == EMU3.pad == 151643
    assert (EMU3.eol, EMU3.eof, EMU3.bos, EMU3.eos) == (151846, 151847, 151849, 151850)
    assert (EMU3.img, EMU3.boi, EMU3.eoi) == (151851, 151852, 151853)
    assert EMU3.to_ids([0, 32767]).tolist() == [151854, 184621]
    assert EMU3.size == 184622
    assert EMU3.text_end == 151854
    assert EMU3.closing == (151847, 151853, 151850, 151643)


def test_a_small_vocabulary_has_no_gaps_and_a_fixed_order() -> None:
    vocabulary = small_vocabulary(300, 512)
    assert [getattr(vocabulary, name) for name in CONTROLS] == list(range(300, 308))
    assert (vocabulary.visual_start, vocabulary.size) == (308, 820)


@given(vocabularies, st.data())
def test_ids_and_codes_are_inverse(vocabulary: Vocabulary, data: st.DataObject) -> None:
    codes = data.draw(arrays(np.uint16, (3, 4), elements=st.integers(0, min(vocabulary.codes, 1 << 16) - 1)))
    ids = vocabulary.to_ids(codes)
    assert ids.dtype == np.int64
    assert ids.shape == codes.shape
    assert vocabulary.is_visual(ids).all()
    assert (vocabulary.to_codes(ids) == codes).all()


@given(vocabularies)
def test_every_id_has_one_meaning(vocabulary: Vocabulary) -> None:
    ids = np.arange(vocabulary.size)
    assert vocabulary.is_visual(ids).sum() == vocabulary.codes
    assert vocabulary.is_visual([-1, vocabulary.size, vocabulary.visual_start - 1]).tolist() == [False] * 3
    assert {vocabulary.describe(getattr(vocabulary, name)) for name in CONTROLS} == set(CONTROLS)


@given(vocabularies)
def test_json_round_trip(vocabulary: Vocabulary) -> None:
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_ids_are_described_in_words() -> None:
    assert EMU3.describe(17) == "text"
    assert EMU3.describe(151854 + 17) == "code 17"
    assert EMU3.describe(151644) == "unused id 151644"
    assert EMU3.describe(184622) == "unknown id 184622"


@pytest.mark.parametrize("codes", [[-1], [64], [[0, 64]], [1.0], ["1"], [True, False], [1 << 40]])
def test_what_is_no_code_is_refused(codes: list[object]) -> None:
    with pytest.raises(InputError):
        small_vocabulary(300, 64).to_ids(np.asarray(codes))


def test_the_message_names_the_code_and_the_range() -> None:
    with pytest.raises(InputError, match="code 64 is outside 0 to 63"):
        small_vocabulary(300, 64).to_ids([1, 64])
    with pytest.raises(InputError, match="visual id 307 is outside 308 to 371"):
        small_vocabulary(300, 64).to_codes([308, 307])


def test_nothing_in_gives_nothing_out() -> None:
    assert EMU3.to_ids([]).tolist() == []
    assert EMU3.to_codes(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    "change", [{"eol": 300}, {"bos": 308}, {"pad": 299}, {"codes": 0}, {"text_size": 0}, {"visual_start": 305}]
)
def test_overlapping_ranges_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ModelError):
        replace(small_vocabulary(300, 64), **change)


@pytest.mark.parametrize("change", [{"eol": None}, {"eol": "7"}, {"eol": 7.0}, {"eol": True}, {"extra": 1}])
def test_a_damaged_description_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        Vocabulary.from_dict({**EMU3.to_dict(), **change})
    with pytest.raises(ModelError, match="needs exactly the entries"):
        Vocabulary.from_dict({"text_size": 3})
