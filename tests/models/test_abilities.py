"""What an instruction means to a small model: a trained wording, however it is written, or nothing that it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from base import abilities
from edits import catalogue
from hypothesis import given
from hypothesis import strategies as st

import earl_cli.models.embedded
from earl_cli.models.abilities import abilities_problem, examples, fingerprint, out_of_range_message, understand

ABILITIES = abilities()
TRAINED = {phrase: edit.kind for edit in catalogue() if edit.kind in ABILITIES["kinds"] for phrase in edit.phrases}


def test_the_shipped_model_lists_what_it_was_trained_on() -> None:
    (folder,) = earl_cli.models.embedded.__path__
    assert json.loads((Path(folder) / "earl.json").read_text())["abilities"] == ABILITIES


def test_every_trained_wording_is_read_as_it_is() -> None:
    for phrase, kind in TRAINED.items():
        found = understand(phrase, ABILITIES)
        assert (found.kind, found.text, found.remark) == (kind, phrase, None)


@given(
    st.sampled_from(sorted(TRAINED)),
    st.sampled_from([str.upper, str.title, str.capitalize, str.swapcase]),
    st.sampled_from([" ", "  ", "\t", "\n", " \r\n", "\u00a0", "\u3000", " \u200b"]),
    st.sampled_from(["", "please ", "Please, ", "Can you ", "could you please ", "Would you: ", "\ufeff"]),
    st.sampled_from(["", ".", "!", "?!", " …", ",", ", please", " please!", "? Thanks.", "。", "！"]),
    st.sampled_from(["{}", '"{}"', "“{}”", "«{}»", "'{}'", "‘{}’", "`{}`", "({})", "[{}]", "「{}」", "¡{}!", " {} "]),
)
def test_case_blanks_punctuation_and_politeness_make_no_difference(
    phrase: str, case: type[str.upper], blank: str, before: str, after: str, around: str
) -> None:
    written = around.format(before + case(phrase).replace(" ", blank) + after)
    found = understand(written, ABILITIES)
    assert (found.kind, found.text) == (TRAINED[phrase], phrase)
    assert found.remark == f"understood as: {phrase}"
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in phrase)
    assert understand(wide, ABILITIES).text == phrase


def test_an_is_a() -> None:
    assert understand("Give it an orange tint", ABILITIES).text == "give it a orange tint"  # what it was trained on
    assert understand("draw a orange ball at the top", ABILITIES).text == "draw an orange ball at the top"


NEAR_MISSES = """
snow | black and white | night | mirror | brighter | a red circle in the middle | more contrast
remove the fog | remove the snow | take the blur away | unblur it | stop the rain | let it not snow | invert nothing
lower the contrast | decrease the contrast | reduce the saturation | add less contrast | increase the darkness
less warm | make it less warm | make it less vivid | more cool | make it not warmer | brighten it less
turn night into day | turn it into day | change the night to day | make it look like day
mirror it top to bottom | flip it upside down | flip it vertically | flip it horizontally and vertically
don't make it snowy | do not make it snowy | never make it snowy | make it un-snowy | make it snowy not | not snowy
make it snowy? no | -make it snowy | !make it snowy | make it snowy (not) | can you not add fog | can't you add fog
make the sky snowy | make it snowy on the left | blur the background | make only the car red | darken it at the top
make it snowy and blurry | make it snowy. Make it night. | make it red, blue | make it night then mirror it
make it black and white and add a red circle in the middle | add a red circle and a blue dot in the middle
make it very snowy | a bit brighter | make it slightly darker | make it snowy or rainy | keep it from getting foggy
tint it brown | add a red circle | add a red circle in the sky | add two red dots in the middle | put it in the middle
add a green square on the left | remove the red circle in the middle | replace the cat by a dog | mach es verschneit
make it ❄ snowy | mаke it snowy | make itsnowy | make it sno wy | please | "" | !!! | . | \u202emake it snowy
"""


@pytest.mark.parametrize("instruction", [each.strip() for line in NEAR_MISSES.splitlines() for each in line.split("|")])
def test_anything_else_is_outside(instruction: str) -> None:
    found = understand(instruction, ABILITIES)
    assert (found.kind, found.text, found.remark) == (None, instruction, None)
    assert f'"{instruction[:50]}' in out_of_range_message(found)


def test_a_wording_of_two_kinds_is_outside() -> None:
    kinds = {name: {"phrases": [f"make it {name}", "surprise me"], "example": f"make it {name}"} for name in "ab"}
    assert understand("Make it A", {"kinds": kinds}).kind == "a"
    assert understand("surprise me", {"kinds": kinds}).kind is None


def test_a_trained_wording_is_given_as_it_was_trained() -> None:
    own = {"kinds": {"duotone": {"phrases": ["DUOTONE! {Now|Today}"], "example": "DUOTONE! Now"}}}
    assert understand("duotone!  today", own).text == "DUOTONE! Today"


def test_of_a_model_that_lists_cues_only_the_examples_are_known() -> None:
    entry = {"cues": ["snow"], "example": "make it snowy", "yields_to": ["circle"]}
    older = {"kinds": {"snow": entry}, "words": ["snow", "snowy"]}
    assert understand("Make it snowy!", older).text == "make it snowy"
    assert understand("remove the snow", older).kind is None


def test_a_model_without_abilities_reads_what_was_written() -> None:
    found = understand(" Make it SNOWY! ", None)
    assert (found.kind, found.text, found.remark) == (None, " Make it SNOWY! ", None)


def test_the_examples_are_in_range() -> None:
    assert len(examples(ABILITIES)) == len(ABILITIES["kinds"])
    assert [understand(example, ABILITIES).kind for example in examples(ABILITIES)] == list(ABILITIES["kinds"])


def test_the_fingerprint_is_that_of_the_content() -> None:
    other = json.loads(json.dumps(ABILITIES))
    assert fingerprint(other) == fingerprint(ABILITIES)
    other["kinds"]["snow"]["phrases"].append("snow")
    assert fingerprint(other) != fingerprint(ABILITIES)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (["snow"], "must have kinds"),
        ({"kinds": ["snow"]}, "must have kinds"),
        ({"kinds": {"snow": ["make it snowy"]}}, "'snow' must have an example"),
        ({"kinds": {"snow": {"phrases": ["make it snowy"]}}}, "'snow' must have an example"),
        ({"kinds": {"snow": {"example": "x", "phrases": "make it snowy"}}}, "phrases of ability 'snow'"),
        ({"kinds": {"snow": {"example": "x", "effects": [3]}}}, "effects of ability 'snow'"),
        ({"kinds": {"snow": {"example": "x", "effects": ["flakes"]}}}, "not flakes"),
    ],
)
def test_an_entry_that_can_not_be_used_is_described(entry: object, expected: str) -> None:
    assert expected in (abilities_problem(entry) or "")


def test_what_a_kind_does_to_a_photo_is_known_of_trained_wordings_alone() -> None:
    abilities = {"kinds": {"blur": {"phrases": ["blur it"], "example": "blur it", "effects": ["blur"]}}}
    assert abilities_problem(abilities) is None
    assert understand("Blur it!", abilities).effects == ("blur",)
    assert understand("blur the sky", abilities).effects is None
