"""What a judge's server gets and says: parameters that it refuses, the declared form, answers in odd places."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import MODEL, OPENAI, JudgeServer, random_image, some_edits
from PIL import Image

from earl_cli.errors import UsageError
from earl_cli.rewards.judge.client import Judge, JudgePrompt
from earl_cli.rewards.judge.declarations import PUBLISHED, load_declaration, load_rubrics
from earl_cli.rewards.viescore import judged_reward

Ask = Callable[..., Judge]
ALL = ("max_tokens", "temperature", "seed")
VALUE = '{{"message": "Unsupported value: \'{0}\' does not support 0 with this model.", "code": "unsupported_value"}}'
PYDANTIC = (
    '{{"detail": [{{"type": "extra_forbidden", "loc": ["body", "{0}"], "msg": "Extra inputs are not permitted"}}]}}'
)
STRICT = '{{"message": "`{0}` (=0.0) has to be a strictly positive float"}}'
ARGUMENT = '{{"message": "Unrecognized request argument supplied: {0}"}}'
GOOGLE = '{{"message": "Invalid JSON payload received. Unknown name \\"{0}\\": Cannot find field."}}'


def some(count: int) -> list[JudgePrompt]:
    return [JudgePrompt("Grade this.", (random_image(seed),)) for seed in range(count)]


def sent(judge: JudgeServer) -> list[set[str]]:
    return [set(call.body) - {"model", "messages"} for call in judge.calls]


@pytest.mark.parametrize("minds", [OPENAI, PYDANTIC, ARGUMENT, GOOGLE])
def test_a_refused_parameter_is_renamed_from_then_on(
    minds: str, judge: JudgeServer, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    judge.accepted_parameters, judge.refusal_message = ("max_completion_tokens", "temperature", "seed"), minds
    assert all(judgement.scores for judgement in ask(concurrency=1).ask_all(some(3)))
    assert sent(judge) == [{"max_tokens", "temperature"}] + 3 * [{"max_completion_tokens", "temperature"}]
    assert judge.calls[-1].body["max_completion_tokens"] == 1400
    assert all(judgement.scores for judgement in ask().ask_all(some(5)))  # another client of the same server
    assert {"max_tokens", "temperature"} not in sent(judge)[4:]
    assert caplog.text.count("takes no max_tokens") == 1


@pytest.mark.parametrize("minds", [VALUE, STRICT, OPENAI, PYDANTIC])
def test_a_refused_temperature_is_left_out(
    minds: str, judge: JudgeServer, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    judge.accepted_parameters, judge.refusal_message = ("max_tokens", "seed"), minds
    assert all(judgement.scores for judgement in ask(concurrency=8).ask_all(some(8)))
    assert {"max_tokens"} in sent(judge)
    (message,) = caplog.messages
    assert f"{MODEL} takes no temperature of 0: it is left to the server's default" in message


def test_a_server_without_parameters_gets_none(judge: JudgeServer, ask: Ask) -> None:
    judge.accepted_parameters, judge.fixed_message = ("model",), {"content": "no numbers"}
    (judgement,) = ask().ask_all(some(1))
    assert "can't be read" in judgement.text
    assert sent(judge)[-1] == set()
    assert any("max_completion_tokens" in names for names in sent(judge))
    assert any("seed" in names for names in sent(judge))


@pytest.mark.parametrize(
    "message",
    [
        "This content isn't allowed: the temperature in it.",
        "max_tokens is too large: 1400. The context has 1024 tokens.",
        "Invalid image.",
        "max_tokens must be at most 1000",
    ],
)
def test_other_refusals_dont_change_the_parameters(message: str, judge: JudgeServer, ask: Ask) -> None:
    judge.accepted_parameters, judge.refusal_message = (
        ("seed",),
        json.dumps({"message": message}).replace("{", "{{").replace("}", "}}"),
    )
    prompt = JudgePrompt('Grade this.\n"the temperature in it."', (random_image(1),))
    with pytest.raises(UsageError, match="refuses the prompts: status 400"):
        ask().ask_all([prompt])
    assert sent(judge) == [{"max_tokens", "temperature"}]


def test_the_default_declaration(judge: JudgeServer, ask: Ask) -> None:
    ask().ask_all(some(1))
    (body,) = (call.body for call in judge.calls)
    (message,) = body["messages"]
    assert (message["role"], [part["type"] for part in message["content"]]) == ("user", ["image_url", "text"])
    assert body["temperature"] == 0
    assert sampling(message["content"][0]) == [(1, 1), (1, 1), (1, 1)]


def test_the_published_declaration(judge: JudgeServer, ask: Ask) -> None:
    client = ask(declaration=load_declaration(PUBLISHED))
    client.ask_all([JudgePrompt("SC", (random_image(1, 64), random_image(2, 64)))])
    client.ask_all(
        [
            JudgePrompt(
                "<score>", (random_image(1), random_image(2)), reply_format="tag", max_tokens=1300, temperature=0.3
            )
        ]
    )
    first, second = (call.body for call in judge.calls)
    assert first.keys() == {"model", "messages", "max_tokens"}
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["messages"][0]["content"] == "SC"
    assert sampling(first["messages"][1]["content"][0]) == [(2, 2), (1, 1), (1, 1)]
    by_hand = io.BytesIO()
    Image.fromarray(random_image(1, 64)).save(by_hand, "JPEG")  # Pillow's own defaults, as published
    assert first["messages"][1]["content"][0]["image_url"]["url"].endswith(
        base64.b64encode(by_hand.getvalue()).decode()
    )
    (message,) = second["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "image_url"]
    assert second["temperature"] == 0.3


def sampling(part: dict[str, Any]) -> list[tuple[int, int]]:
    """How often each channel of a JPEG is sampled, across and down."""
    with Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))) as image:
        return [(across, down) for _, across, down, _ in image.layer]  # type: ignore[attr-defined]


def test_replies_are_cached_by_declaration(judge: JudgeServer, ask: Ask, tmp_path: Path) -> None:
    for name in ("earl", PUBLISHED, "earl", PUBLISHED):
        ask(tmp_path / "cache", declaration=load_declaration(name)).ask_all(some(2))
    assert len(judge.calls) == 4


def test_cache_keys_of_earlier_versions_are_still_valid() -> None:
    """Nobody pays again for answers that an earlier version kept."""
    key = JudgePrompt("Grade this.", (random_image(1),)).key("a", load_declaration())
    assert key == "00fefc7532ea9a1d50843d5238879160b3cfc4d2a3c4574178c128a35e17ed9f"


@pytest.mark.parametrize("key", ["images", "pictures"])  # files of earlier versions have the second
def test_a_declaration_from_a_file(key: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'{key} = "after"\ntemperature = 0.5\n')
    found = load_declaration(str(file))
    assert (found.name, found.images, found.temperature, found.quality) == ("mine", "after", 0.5, 95)
    for text, message in (("quality = 200", "quality"), ("colour = 1", "colour"), ("= 3", "no TOML")):
        file.write_text(text)
        with pytest.raises(UsageError, match=message) as caught:
            load_declaration(str(file))
        assert caught.value.where == str(file)
    for spec in ("viescore", str(tmp_path / "none.toml")):
        with pytest.raises(UsageError):
            load_declaration(spec)


GRADES = '{"score": [8, 6], "reasoning": "ok"}'


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "text", "text": GRADES[:9]}, {"type": "text", "text": GRADES[9:]}]},
        {"content": [{"type": "thinking", "thinking": "[1, 1]"}, {"type": "output_text", "text": GRADES}]},
        {"content": GRADES, "reasoning_content": '{"score": [1, 1]}'},
        {"content": GRADES, "refusal": None, "tool_calls": None},
        {"content": GRADES, "refusal": ""},
    ],
)
def test_the_text_of_a_reply_is_found(message: dict[str, Any], judge: JudgeServer, ask: Ask) -> None:
    judge.fixed_message = message
    assert ask().ask_all(some(1))[0].scores == (8, 6)


@pytest.mark.parametrize(
    ("message", "finish", "why"),
    [
        (
            {"content": None, "refusal": "I don't judge people."},
            "stop",
            r"empty \(it refuses: I don't judge people\.\)",
        ),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "stop", r"it refuses: No\."),
        ({"content": "", "reasoning_content": "[8, 8]"}, "stop", "it is reasoning only"),
        ({"content": "", "reasoning_content": "[8, 8]"}, "length", "all its tokens were used up for reasoning"),
        ({"content": "<think>[8, 8] or"}, "length", r"ends within its reasoning \(all its tokens were used up\)"),
        ({"content": "Let me see"}, "length", r"no score in it \(all its tokens were used up\): Let me see"),
        ({"content": None}, "content_filter", "filter stopped it"),
        ({}, "stop", "it is empty"),
    ],
)
def test_a_judgement_without_scores_says_why(
    message: dict[str, Any], finish: str, why: str, judge: JudgeServer, ask: Ask
) -> None:
    judge.fixed_message, judge.finish_reason = message, finish
    (judgement,) = ask().ask_all(some(1))
    assert judgement.scores is None
    assert re.search(why, judgement.text)


def test_a_reply_truncated_after_its_score_is_parsed(judge: JudgeServer, ask: Ask) -> None:
    judge.fixed_message, judge.finish_reason = {"content": '{"score": [8, 6], "reasoning": "because the'}, "length"
    assert ask().ask_all(some(1))[0].scores == (8, 6)


def test_a_reward_uses_the_judges_declaration(judge: JudgeServer, ask: Ask) -> None:
    (score,) = judged_reward(ask(declaration=load_declaration(PUBLISHED)), load_rubrics(), "viescore")(some_edits(1))
    assert score.value is not None
    assert {len(call.body["messages"]) for call in judge.calls} == {2}
