"""The client of a judge against a real server that is healthy, faulty, slow or gone."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from judge_server import KINDS, MODEL, Faults, JudgeServer, random_image

from earl_cli.errors import UsageError
from earl_cli.openai_client.retry import Backoff
from earl_cli.rewards.judge.client import MAX_REPLY_ATTEMPTS, Judge, Judgement, JudgePrompt
from earl_cli.rewards.judge.completion import data_url
from earl_cli.rewards.judge.declarations import load_declaration
from earl_cli.rewards.reward import JudgeDownError

Ask = Callable[..., Judge]
KEY = "sk-very-secret"


def prompts(count: int) -> list[JudgePrompt]:
    tag = JudgePrompt(
        "Say <score>N</score>.",
        (random_image(0), random_image(1)),
        reply_format="tag",
        max_tokens=1300,
        temperature=0.3,
    )
    return [tag, *(JudgePrompt("Grade this.", (random_image(seed),)) for seed in range(1, count))]


def test_the_request_of_a_prompt(judge: JudgeServer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    ask(api_key_variable="MY_KEY").ask_all(prompts(2))
    tag, scores = sorted(judge.calls, key=lambda call: len(call.images), reverse=True)
    assert (tag.body["max_tokens"], tag.body["temperature"]) == (1300, 0.3)
    assert (scores.body["max_tokens"], scores.body["temperature"]) == (1400, 0)
    assert "seed" not in scores.body
    assert [len(tag.images), len(scores.images)] == [2, 1]
    assert {call.key for call in judge.calls} == {f"Bearer {KEY}"}


def test_equal_images_have_equal_data_urls() -> None:
    own = load_declaration()
    assert data_url(random_image(3), own) == data_url(random_image(3).copy(), own)
    assert data_url(random_image(3), own) != data_url(random_image(4), own)


def test_transient_faults_change_no_judgement(judge: JudgeServer, ask: Ask) -> None:
    healthy = ask().ask_all(prompts(60))
    assert all(judgement.scores is not None for judgement in healthy)
    assert len(judge.calls) == 60
    judge.reset()
    judge.faults = Faults(0.3, slow=3)
    assert ask(timeout=2).ask_all(prompts(60)) == healthy
    assert len({call.fault for call in judge.calls}) > len(KINDS) - 2
    assert len(judge.calls) > 60


def test_concurrency_is_limited(judge: JudgeServer, ask: Ask) -> None:
    judge.faults = Faults(1.0, ("slow",), slow=0.05)
    ask(concurrency=5).ask_all(prompts(20))
    assert judge.max_concurrency == 5


def test_equal_prompts_are_sent_once(judge: JudgeServer, ask: Ask) -> None:
    one, two, three = ask().ask_all([*prompts(2), prompts(2)[1]])
    assert len(judge.calls) == 2
    assert one != two == three


def test_cached_replies_are_not_requested_again(judge: JudgeServer, ask: Ask, tmp_path: Path) -> None:
    first = ask(tmp_path / "cache").ask_all(prompts(10))
    judge.stop()
    assert ask(tmp_path / "cache").ask_all(prompts(10)) == first
    assert len(judge.calls) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"text": "Grade that."},
        {"images": (random_image(9),)},
        {"images": (random_image(1), random_image(1))},
        {"max_tokens": 5},
        {"temperature": 0.1},
        {"reply_format": "tag"},
    ],
)
def test_the_cache_key_depends_on_the_whole_prompt(change: dict[str, object]) -> None:
    prompt, own = JudgePrompt("Grade this.", (random_image(1),)), load_declaration()
    assert prompt.key("a", own) == JudgePrompt("Grade this.", (random_image(1),)).key("a", own)
    assert prompt.key("a", own) != prompt.key("b", own)
    assert prompt.key("a", own) != replace(prompt, **change).key("a", own)  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_processes_share_a_cache(judge: JudgeServer, ask: Ask, tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from earl_cli.rewards.judge.client import Judge
from rewards.test_judge import prompts
judgements = Judge({judge.api_base!r}, {MODEL!r}, Path({str(tmp_path / "cache")!r})).ask_all(prompts(10))
print(judgements)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ask(tmp_path / "cache").ask_all(prompts(10)))
    assert len(judge.calls) == 10


def test_an_unreadable_reply_is_retried_with_another_seed(judge: JudgeServer, ask: Ask, tmp_path: Path) -> None:
    judge.faults = Faults(1.0, ("unreadable",), max_failures=float("inf"))
    (judgement,) = ask(tmp_path / "cache").ask_all(prompts(2)[1:])
    assert judgement.scores is None
    assert "can't be read" in judgement.text
    assert "7 for success" in judgement.text
    assert [call.body.get("seed") for call in judge.calls] == [None, 1, 2, 3, 4]
    assert [call.body["temperature"] for call in judge.calls] == [0] + [0.5] * (MAX_REPLY_ATTEMPTS - 1)
    judge.faults = Faults()
    assert ask(tmp_path / "cache").ask_all(prompts(2)[1:])[0].scores is not None  # it wasn't kept


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dropped", "error", "no json", "partial", "limited", "slow"])
def test_a_server_that_fails_at_every_prompt_is_down(kind: str, judge: JudgeServer, ask: Ask, tmp_path: Path) -> None:
    timeout = 0.5 if kind == "slow" else 10.0
    client = ask(
        tmp_path / "cache", timeout=timeout, backoff=Backoff(attempts=2, rate_limit_attempts=2, first_delay=0.001)
    )
    before = client.ask_all(prompts(3))
    judge.faults = Faults(1.0, (kind,), max_failures=float("inf"), slow=2 * timeout)
    with pytest.raises(JudgeDownError) as caught:
        client.ask_all(prompts(6))
    assert caught.value.where == judge.api_base
    judge.faults = Faults()
    settle(judge)
    judge.reset()
    assert client.ask_all(prompts(6))[:3] == before
    assert len(judge.calls) == 3


def settle(judge: JudgeServer) -> None:
    """Until the server is through with what a client had sent before it gave up."""
    seen = -1
    while seen != len(judge.calls) or judge.concurrency:
        seen = len(judge.calls)
        time.sleep(0.3)


def test_replies_before_a_failure_are_kept(judge: JudgeServer, ask: Ask, tmp_path: Path) -> None:
    client = ask(tmp_path / "cache", concurrency=1, backoff=Backoff(attempts=2, first_delay=0.001))
    judge.down_after = 4
    with pytest.raises(JudgeDownError):
        client.ask_all(prompts(8))
    judge.is_down, judge.down_after = False, None
    judge.reset()
    client.ask_all(prompts(8))
    assert len(judge.calls) == 8 - 4


def test_a_prompt_that_alone_fails_affects_no_other(judge: JudgeServer, ask: Ask) -> None:
    judge.fails_on = "poison"
    judgements = ask().ask_all([*prompts(3), JudgePrompt("poison", (random_image(7),))])
    assert [judgement.scores is None for judgement in judgements] == [False, False, False, True]
    assert "this prompt alone: status 500: EngineCore" in judgements[-1].text
    assert ask().ask_all([JudgePrompt("poison", (random_image(7),))])[0].scores is None


def test_a_prompt_that_alone_is_refused_affects_no_other(judge: JudgeServer, ask: Ask) -> None:
    judge.refuses_text = "forbidden"
    judgements = ask().ask_all([*prompts(3), JudgePrompt("forbidden", (random_image(7),))])
    assert [judgement.scores is None for judgement in judgements] == [False, False, False, True]
    assert "status 400: This content isn't judged" in judgements[-1].text
    judge.reset()
    with pytest.raises(UsageError, match=r"refuses the prompts: status 400: This content"):
        ask().ask_all([JudgePrompt("forbidden", (random_image(7),))])
    assert len(judge.calls) == 1


def test_a_refusal_after_cached_replies_affects_only_its_prompt(judge: JudgeServer, ask: Ask, tmp_path: Path) -> None:
    ask(tmp_path / "cache").ask_all(prompts(3))
    judge.refuses_text = "forbidden"
    judgements = ask(tmp_path / "cache").ask_all([*prompts(3), JudgePrompt("forbidden", (random_image(7),))])
    assert [judgement.scores is None for judgement in judgements] == [False, False, False, True]


def test_a_key_in_an_error_is_redacted(judge: JudgeServer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge.refuses_text = "forbidden"
    with pytest.raises(UsageError, match=r"for Bearer \*\*\*") as caught:
        ask().ask_all([JudgePrompt("forbidden", (random_image(7),))])
    assert KEY not in str(caught.value)
    judgements = ask().ask_all([*prompts(2), JudgePrompt("forbidden", (random_image(7),))])
    assert KEY not in judgements[-1].text
    assert "***" in judgements[-1].text


def test_a_key_in_a_reply_is_redacted(
    judge: JudgeServer, ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    judge.fixed_message = {"content": json.dumps({"score": [8, 6], "reasoning": f"Authorization: Bearer {KEY}"})}
    (judgement,) = ask(tmp_path / "cache").ask_all(prompts(2)[1:])
    assert judgement == Judgement((8, 6), "Authorization: Bearer ***")
    judge.fixed_message = {"content": f"I won't. {KEY}"}
    assert ask().ask_all(prompts(2)[1:])[0].text.endswith("I won't. ***")
    judge.models = (KEY,)
    assert ask().models() == ["***"]
    assert judge.calls[0].key == f"Bearer {KEY}"
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_a_short_key_is_not_redacted(judge: JudgeServer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "8")
    judge.fixed_message = {"content": "[8, 6]"}
    assert ask().ask_all(prompts(1))[0].scores is None  # it wants a tag
    assert ask().ask_all(prompts(2)[1:])[0].scores == (8, 6)


def test_a_password_in_a_reply_is_redacted(judge: JudgeServer) -> None:
    judge.fixed_message = {"content": '{"score": [8, 6], "reasoning": "bWU6d29yZA== me:word"}'}
    client = Judge(judge.api_base.replace("//", "//me:word@"), MODEL)
    assert client.ask_all(prompts(2)[1:])[0].text == "*** me:***"


def test_a_prompt_that_is_too_large_names_the_image_sizes(judge: JudgeServer, ask: Ask) -> None:
    judge.refusal_status, judge.refusal_message = 413, '{{"message": "Request Entity Too Large"}}'
    judge.accepted_parameters = ("model",)
    prompt = JudgePrompt("Grade this.", (random_image(1, 40), random_image(2, 16)))
    with pytest.raises(UsageError, match=r"status 413: .*its images are 40 x 40 and 16 x 16, 0\.0 MB as sent"):
        ask().ask_all([prompt])


def test_a_wrong_key_is_a_usage_error_that_doesnt_show_it(
    judge: JudgeServer, ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge.key = "another"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for call in (lambda: ask(tmp_path / "cache").ask_all(prompts(3)), lambda: ask().models()):
        with pytest.raises(UsageError, match="key") as caught:
            call()
        assert "judge_api_key_variable" in str(caught.value)
        assert KEY not in str(caught.value)
    judge.key = KEY
    ask(tmp_path / "cache").ask_all(prompts(3))
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_a_model_that_is_not_there(judge: JudgeServer, ask: Ask) -> None:
    judge.models = ("another",)
    with pytest.raises(UsageError, match="does not exist") as caught:
        ask().ask_all(prompts(2))
    assert caught.value.where == judge.api_base
    assert ask().models() == ["another"]


def test_a_password_in_the_address_is_not_shown(judge: JudgeServer) -> None:
    judge.is_down = True
    with pytest.raises(JudgeDownError) as caught:
        Judge(judge.api_base.replace("//", "//me:word@"), MODEL, backoff=Backoff(first_delay=0.001)).models()
    assert caught.value.where == judge.api_base
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("address", ["localhost:4877/v1", "http://", "ftp://host/v1", ""])
def test_an_invalid_address_is_an_error(address: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        Judge(address, MODEL)


@pytest.mark.parametrize(("retry_after", "delay"), [(0.02, 0.02), (60, 60)])
def test_retry_after_is_followed(judge: JudgeServer, ask: Ask, retry_after: float, delay: float) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    judge.faults = Faults(1.0, ("limited",), max_failures=2, retry_after=retry_after)
    (judgement,) = ask(backoff=Backoff(sleep=sleep, random=lambda: 0.0)).ask_all(prompts(1))
    assert judgement.scores is not None
    assert waits == [delay, delay]
    judge.faults = Faults(1.0, ("limited",), retry_after=3600)
    judge.reset()
    with pytest.raises(JudgeDownError, match="429"):
        ask(backoff=Backoff(sleep=sleep)).ask_all(prompts(1))


def test_retry_after_may_be_a_date(judge: JudgeServer, ask: Ask) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    at = 1_800_000_000
    judge.faults = Faults(1.0, ("limited",), max_failures=1, retry_after=formatdate(at + 30, usegmt=True))  # type: ignore[arg-type]
    ask(backoff=Backoff(sleep=sleep, random=lambda: 0.0, now=lambda: at)).ask_all(prompts(1))
    assert waits == [30]


def test_back_off_doubles_with_full_jitter(judge: JudgeServer, ask: Ask) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    judge.faults = Faults(1.0, ("error",), max_failures=5)
    ask(backoff=Backoff(first_delay=1, max_delay=10, sleep=sleep, random=lambda: 0.5)).ask_all(prompts(1))
    assert waits == [1, 2, 4, 5, 5]


def test_a_server_that_comes_back_during_the_health_check_answers_all(judge: JudgeServer, ask: Ask) -> None:
    """The prompt has no attempts left by then, the easy one after it succeeds: it is sent again, and not lost."""
    pauses = 0

    async def sleep(_: float) -> None:
        nonlocal pauses
        pauses += 1
        judge.is_down = pauses < 2  # the first pause is the question's, the second the easy one's

    judge.is_down = True
    (judgement,) = ask(backoff=Backoff(attempts=2, sleep=sleep)).ask_all(prompts(1))
    assert judgement.scores is not None
    judge.reset()
    assert [judgement] == ask().ask_all(prompts(1))


def test_a_judge_works_in_any_thread_and_in_an_event_loop(judge: JudgeServer, ask: Ask) -> None:
    found: list[list[Judgement]] = []
    client = ask()
    threads = [threading.Thread(target=lambda: found.append(client.ask_all(prompts(3)))) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()

    async def within() -> list[Judgement]:
        return client.ask_all(prompts(3))

    found.append(asyncio.run(within()))
    assert found == [client.ask_all(prompts(3))] * 3


def test_without_prompts_nothing_is_sent(judge: JudgeServer, ask: Ask) -> None:
    judge.is_down = True
    assert ask().ask_all([]) == []


@pytest.mark.slow
def test_ctrl_c_interrupts_a_call(judge: JudgeServer) -> None:
    judge.silent_after = 0
    script = f"""
import signal, sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
signal.signal(signal.SIGINT, signal.default_int_handler)
from earl_cli.rewards.judge.client import Judge
from rewards.test_judge import prompts
try:
    Judge({judge.api_base!r}, {MODEL!r}).ask_all(prompts(10))
except KeyboardInterrupt:
    print("stopped")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not judge.calls:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("stopped\n", "")


@pytest.mark.slow
def test_importing_opens_no_connection() -> None:
    script = "import sys, socket\nsocket.socket.connect = None\nimport earl_cli.rewards.registry"
    subprocess.run([sys.executable, "-c", script], check=True)
