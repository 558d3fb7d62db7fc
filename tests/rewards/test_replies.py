"""What judges write, as they write it."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from earl_cli.rewards.judge.replies import (
    FIRST,
    MAX_LENGTH,
    SECOND,
    TIE,
    InvalidReplyError,
    ParsedReply,
    parse_choice,
    parse_scores,
    parse_tag,
)

READABLE = [
    ('{"score": [6, 0], "reasoning": "ok"}', (6, 0), "ok"),
    ('||V^=^V||\n{"score": [6, 0], "reasoning": "ok"}\n||V^=^V||', (6, 0), "ok"),
    ('```json\n{"score": [6, 0], "reasoning": "ok"}\n```', (6, 0), "ok"),
    ('Sure! Here it is:\n{"score": [6.5, 0], "reasoning": "ok"}\nTell me if you need more {details}.', (6.5, 0), "ok"),
    ("[6, 0]", (6, 0), ""),
    ("```\n[6, 0]\n```\nThe sky is right.", (6, 0), "The sky is right."),
    ("7", (7, 7), ""),
    ("```\n7\n```", (7, 7), ""),
    ("||V^=^V|| 7.5 ||V^=^V||", (7.5, 7.5), ""),
    ('{"score": 7, "reasoning": "ok"}', (7, 7), "ok"),
    ('{score: [6, 0], reasoning: "it\'s there, mostly"}', (6, 0), "it's there, mostly"),
    ("{'score': [6, 0], 'reasoning': 'it\\'s there'}", (6, 0), "it\\'s there"),
    ("{reasoning: 'all, or nearly', score: [6, 0]}", (6, 0), ""),
    ("{score: 7}", (7, 7), ""),
    ("{“score”: [6, 0], “reasoning”: “ok”}", (6, 0), "ok"),
    ('{"score": ["6", "0"], "reasoning": "ok"}', (6, 0), "ok"),
    ('{"score": "[6, 0]", "reasoning": "ok"}', (6, 0), "ok"),
    ('{"Score": [6, 0], "reasoning": ["one", "two"]}', (6, 0), "one\ntwo"),
    ('{"score": [6, 0], "reasoning": "a\nreal line break"}', (6, 0), "a\nreal line break"),
    ('{"score": [6, 0], "reasoning": "cut off at the tok', (6, 0), "cut off at the tok"),
    ('{"score": [6, 0,], "reasoning": "a comma too many"}', (6, 0), "a comma too many"),
    (
        '{"score": [6, 0], "reasoning": "I\'d never say {\\"score\\": [1, 1]}"}',
        (6, 0),
        'I\'d never say {"score": [1, 1]}',
    ),
    ('{"a": 1} {"score": [6, 0]}', (6, 0), ""),
    ('[{"score": [6, 0], "reasoning": "ok"}]', (6, 0), "ok"),
    ('{"score": [6, 0]}\n{"score": [6, 0]}', (6, 0), ""),
    ('<think>Perhaps {"score": [1, 1]}?</think>{"score": [10, 0]}', (10, 0), ""),
    ("<thinking>[1, 1]?</thinking>[10, 0]", (10, 0), ""),
    ("<think>" + "hm " * 20_000 + "</think>[10, 0]", (10, 0), ""),
    ("8/10", (8, 8), ""),
    ("8 / 10.0", (8, 8), ""),
    ("**8/10**.", (8, 8), ""),
    ("8 out of 10", (8, 8), ""),
    ("8 Out Of 10.", (8, 8), ""),
    ("```\n7.5/10\n```", (7.5, 7.5), ""),
    ("8／10", (8, 8), ""),
    ("８／１０", (8, 8), ""),
    ("［８］", (8, 8), ""),
    ("【８】", (8, 8), ""),
    ("［８，６．５］", (8, 6.5), ""),
    ("[8/10, 6 out of 10]", (8, 6), ""),
    ("(6, 0)", (6, 0), ""),
    ('{"score": "8/10", "reasoning": "ok"}', (8, 8), "ok"),
    ('{"score": ["8/10", "6 of 10"], "reasoning": "ok"}', (8, 6), "ok"),
    ('{"score": [8/10, 6/10], "reasoning": "ok"}', (8, 6), "ok"),
    ('{"score": (8, 6), "reasoning": "ok"}', (8, 6), "ok"),
    ('{"score": ["８／１０", "６"], "reasoning": "雪，很好"}', (8, 6), "雪，很好"),
    ("{score: 8/10, reasoning: 'ok'}", (8, 8), "ok"),
    ("｛＂score＂：［８，６］，＂reasoning＂：＂好＂｝", (8, 6), "好"),
    ('{"score": [6, 0]} ［１，１］', (6, 0), ""),
]

UNREADABLE = [
    ("", "empty"),
    ("I can't judge pictures.", "no score"),
    ("The edit deserves an 8 and a 9.", "no score"),
    ("Edit success score: 8, over-editing score: 3", "no score"),
    ("score: 7 of 10", "no score"),
    ('{"score": [6, 11]}', "not from 0 to 10"),
    ('{"score": [-1, 6]}', "not from 0 to 10"),
    ('{"score": [NaN, 6]}', "not from 0 to 10"),
    ('{"score": [1e999, 6]}', "not from 0 to 10"),
    ("[Infinity, 6]", "not from 0 to 10"),
    ('{"score": 1' + "0" * 400 + "}", "not from 0 to 10"),
    ('{"score": [6]}', "1 scores where 2"),
    ('{"score": [6, 1, 2]}', "3 scores where 2"),
    ('{"score": []}', "0 scores where 2"),
    ('{"score": [true, false]}', "no number"),
    ('{"score": null}', "no number"),
    ('{"score": {"success": 6, "overedit": 2}}', "no number"),
    ('{"score": ["six", "two"]}', "no number"),
    ('{"score": [6, 0]} or rather {"score": [5, 0]}', "different scores"),
    ("[6, 0] and [3, 4]", "different scores"),
    ("the box [1, 2, 3, 4]", "4 scores where 2"),
    ('{"a": ' + "[" * 10_000, "no score"),
    ('{"score": [6, 0]}' + " x" * 10_000, "20017 characters, more than 20000"),
    ("8/100", "no score"),
    ("4/5", "no score"),
    ("80%", "no score"),
    ("8/10/10", "no score"),
    ("8/10, 6/10", "no score"),
    ("11/10", "not from 0 to 10"),
    ('{"score": ["8/100", "6/10"]}', "no number"),
    ("[8/10, 6/10] or [8/10, 5/10]", "different scores"),
]


@pytest.mark.parametrize(("text", "numbers", "reasoning"), READABLE)
def test_a_clear_reply_is_parsed(text: str, numbers: tuple[float, ...], reasoning: str) -> None:
    reply = parse_scores(text)
    assert (reply.scores, reply.reasoning) == (numbers, reasoning)


@pytest.mark.parametrize(("text", "why"), UNREADABLE)
def test_an_unclear_reply_is_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(InvalidReplyError, match=why):
        parse_scores(text)


grades = st.integers(0, 10) | st.floats(0, 10)
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}[]<>"))


@given(st.lists(grades, min_size=1, max_size=4), st.text(st.characters(exclude_categories=["Cs"])), plain, plain)
@example([6, 0], '"}] ```', "", "")
def test_json_is_parsed_within_any_text(numbers: list[float], reasoning: str, before: str, after: str) -> None:
    if "</think>" in reasoning:
        return
    reply = parse_scores(before + json.dumps({"score": numbers, "reasoning": reasoning}) + after, len(numbers))
    assert reply.scores == tuple(numbers)
    assert reply.reasoning == reasoning.strip()


@given(st.lists(st.floats() | st.integers(), max_size=4))
def test_only_the_given_count_of_scores_is_accepted(numbers: list[float]) -> None:
    text = json.dumps({"score": numbers})
    if len(numbers) == 2 and all(0 <= number <= 10 for number in numbers):
        assert parse_scores(text).scores == tuple(numbers)
    else:
        with pytest.raises(InvalidReplyError):
            parse_scores(text)


@given(st.text(st.sampled_from("{}[]\"',:.-0123456789eEscoreasonnaninf|V^=` \n<>/") | st.characters(), max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for read in (parse_scores, parse_tag, parse_choice):
        try:
            reply = read(text)
        except InvalidReplyError as error:
            assert str(error)
        else:
            assert all(0 <= number <= 10 for number in reply.scores)


@given(st.integers(0, 10), plain)
def test_the_last_tag_counts(number: int, before: str) -> None:
    reply = parse_tag(f"{before}<score>1</score> no: <SCORE> {number} </SCORE>\n")
    assert reply.scores == (number,)
    assert reply.reasoning.endswith("no:")


@pytest.mark.parametrize(
    "number", ["8", "8/10", "8 out of 10", "**8**", "[8]", "８", "８／１０", "［８］", "8.0", "<score>8"]
)
def test_a_tag_is_parsed_in_any_number_format(number: str) -> None:
    assert parse_tag(f"It's there.\n<score>{number}</score>").scores == (8,)


def test_a_full_width_tag_is_a_tag() -> None:
    assert parse_tag("好。＜score＞８＜／score＞") == ParsedReply((8,), "好。")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<score>1</score> <score><b>7</b></score>", "no number"),
        ("<score>80/100</score>", "no number"),
        ("7", "no <score>"),
        ("", "empty"),
        ("<score>7", "no <score>"),
        ("<score>7.5</score>", "whole number"),
        ("<score>11</score>", "from 0 to 10"),
        ("<score>nan</score>", "from 0 to 10"),
        ("<score>N</score>", "no number"),
        ("<score></score>", "no number"),
    ],
)
def test_a_tag_without_a_whole_number_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidReplyError, match=why):
        parse_tag(text)


@pytest.mark.parametrize(
    ("word", "choice"), [("1", FIRST), (" 2\n", SECOND), ("tie", TIE), ("Tie", TIE), ("２", SECOND), ("[1]", FIRST)]
)
def test_a_clear_choice_is_parsed(word: str, choice: float) -> None:
    reply = parse_choice(f"<think><choice>9</choice></think>Attempt 1 has [1, 2].\n<CHOICE>{word}</choice>")
    assert (reply.scores, reply.reasoning) == ((choice,), "Attempt 1 has [1, 2].")


def test_a_repeated_choice_counts_once() -> None:
    assert parse_choice("So <choice>2</choice>, then.\n<choice>2</choice>").scores == (SECOND,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("The first is better.", "no <choice>"),
        ("1", "no <choice>"),
        ("<choice>1", "no <choice>"),
        ("<choice>3</choice>", "'3' is not 1, 2 or tie"),
        ("<choice>0</choice>", "'0' is not"),
        ("<choice></choice>", "'' is not"),
        ("<choice>1 or 2</choice>", "'1 or 2' is not"),
        ("<choice>first</choice>", "'first' is not"),
        ("<choice>1</choice> or rather <choice>2</choice>", "2 different choices"),
        ("<choice>1</choice><choice>?</choice>", "is not 1, 2 or tie"),
    ],
)
def test_an_unclear_choice_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidReplyError, match=why):
        parse_choice(text)


PIECES = ("[1", "[1,", "[", "{", '{"', '{"score":', "{score:1,", "{,", '{"a":[', '{"a":{', "<score>", "1", "8 of ", " ")


@pytest.mark.parametrize("piece", PIECES)
def test_hostile_replies_are_refused_quickly(piece: str) -> None:
    text = (piece * MAX_LENGTH)[: MAX_LENGTH - 6]
    start = time.process_time()
    for read in (parse_scores, parse_tag, parse_choice):
        with suppress(InvalidReplyError):
            read(f"[1{text}x")
    assert time.process_time() - start < 0.5
