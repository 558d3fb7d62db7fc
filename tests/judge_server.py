"""A judge to test against: a local web server with the part of the OpenAI protocol that judges need.

Its replies are a function of the prompt, so that a healthy and a faulty server give the same scores. It can fail in
every way that real servers do; faults are a function of prompt and attempt, so they are the same in every run and
transient.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from local_server import MOMENT, LocalHandler, LocalServer
from PIL import Image

from earl_cli.rewards.reward import Edit, Pixels

MODEL = "Qwen/Qwen2.5-VL-72B-Instruct"
KINDS = ("slow", "unreadable", "no json", "partial", "limited", "error", "dropped")
WRAPPINGS = (("", ""), ("```json\n", "\n```"), ("||V^=^V||\n", "\n||V^=^V||"), ("My grades are:\n", "\nThat's all."))
OPENAI = (
    '{{"message": "Unsupported parameter: \'{0}\' is not supported with this model.", "param": "{0}", '
    '"code": "unsupported_parameter"}}'
)


@dataclass(frozen=True)
class Faults:
    """A ``share`` of the calls fails, in one of these ``kinds``, but each prompt at most ``max_failures`` times.

    ``slow`` is the seconds that a slow reply takes; "limited" sends ``retry_after``.
    """

    share: float = 0.0
    kinds: tuple[str, ...] = KINDS
    max_failures: float = 2
    slow: float = 0.3
    retry_after: float = 0.02

    def of(self, content: str, attempt: int) -> str | None:
        """The fault of this attempt, counted from 0."""
        generator = random.Random(f"{content} {attempt}")
        fails = attempt < self.max_failures and generator.random() < self.share
        return generator.choice(self.kinds) if fails else None


@dataclass(frozen=True)
class Call:
    """A request as the server got it: the body, its text, digests of the decoded images, the key, and the fault."""

    body: Mapping[str, Any]
    text: str
    images: tuple[str, ...]
    key: str
    fault: str | None


@dataclass
class JudgeServer:
    """The server, from `start` to `stop`; ``api_base`` is its address. Set ``faults`` and ``is_down`` at any time."""

    faults: Faults = Faults()
    models: tuple[str, ...] = (MODEL,)
    key: str | None = None  # the only one that is accepted
    is_down: bool = False  # drops every connection
    down_after: int | None = None  # so many prompts
    silent_after: int | None = None  # after so many replies, requests wait until this is another number
    refuses_text: str | None = None  # prompts with this text get status 400
    fails_on: str | None = None  # prompts with this text always get status 500
    fixed_choice: str | None = None  # the reply to every pairwise prompt: "1", "2" or "tie"
    accepted_parameters: tuple[str, ...] | None = None  # beside model and messages; others are refused
    refusal_status: int = 400
    refusal_message: str = OPENAI  # {} is the parameter
    fixed_message: Mapping[str, Any] | None = None  # the reply to every prompt
    finish_reason: str = "stop"
    lists_models: bool = True
    prefix: str = "/v1"  # of all paths
    calls: list[Call] = field(default_factory=list)
    max_concurrency: int = 0
    api_base: str = ""

    def start(self) -> JudgeServer:
        """Listens on a free port of 127.0.0.1."""
        self.lock, self.concurrency, self.attempts = threading.Lock(), 0, Counter[str]()
        self.answered = 0
        self.server = LocalServer(self, _Handler).start()
        self.api_base = f"{self.server.address}/v1"
        return self

    def stop(self) -> None:
        """Ends every connection and listens no more."""
        self.silent_after = None
        self.server.stop()

    def may_answer(self) -> bool:
        """Whether there is an answer left; it counts as given."""
        with self.lock:
            self.answered += (left := self.silent_after is None or self.answered < self.silent_after)
            return left

    def reset(self) -> None:
        """As if nothing had been requested yet."""
        with self.lock:
            self.calls.clear()
            self.attempts.clear()
            self.max_concurrency = 0


def random_image(seed: int, side: int = 16) -> Pixels:
    """Noise, uint8[side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def some_edits(count: int) -> list[Edit]:
    """Edits of images of noise, all with a target."""
    return [
        Edit(f"row-{n}", "make it snowy", random_image(n), random_image(n + 1000), random_image(n + 2000))
        for n in range(count)
    ]


def reply_to(text: str, images: tuple[str, ...], fixed_choice: str | None = None) -> str:
    """The judge's reply, a function of the text and the images.

    Of two edits it prefers the same one in either order, unless they tie or there is a ``fixed_choice``.
    """
    generator = random.Random(f"{text} {images}")
    if "<choice>" in text:
        return f"Both have the snow, one has more.\n<choice>{fixed_choice or _choice(text, images)}</choice>"
    if "<score>" in text:
        return f"The attempt has the snow, but the roof is darker.\n<score>{generator.randint(0, 10)}</score>"
    answer = json.dumps(
        {"score": [generator.randint(0, 10), generator.randint(0, 10)], "reasoning": "It's there [mostly]."}
    )
    before, after = generator.choice(WRAPPINGS)
    return f"{before}{answer}{after}"


def _choice(text: str, images: tuple[str, ...]) -> str:
    """By content, in either order; one pair in eight is a tie, and in one of eight the first position is preferred."""
    source, first, second = images
    chance = random.Random(f"{text} {source} {sorted((first, second))}").randrange(8)
    best = max(first, second, key=lambda each: hashlib.sha256(f"{text} {source} {each}".encode()).digest())
    return {0: "tie", 1: "1"}.get(chance, "1" if best == first else "2")


class _Handler(LocalHandler):
    def do_GET(self) -> None:
        if not self.path.startswith(f"{self.server.owner.prefix}/models") or not self.server.owner.lists_models:
            self.send_json(404, {"detail": "Not Found"})
        elif self._is_authorized():
            models = [
                {"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in self.server.owner.models
            ]
            self.send_json(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_authorized():
            return
        judge = self.server.owner
        with judge.lock:
            judge.concurrency += 1
            judge.max_concurrency = max(judge.max_concurrency, judge.concurrency)
        try:
            self._answer(judge, body)
        finally:
            with judge.lock:
                judge.concurrency -= 1

    def _is_authorized(self) -> bool:
        judge, key = self.server.owner, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if judge.is_down:
            self.drop()
            return False
        if judge.key is not None and key != judge.key:
            self.send_error_of(401, f"Incorrect API key provided: {key}")
            return False
        return True

    def _answer(self, judge: JudgeServer, body: Mapping[str, Any]) -> None:
        contents = [message["content"] for message in body["messages"]]
        contents = [[{"type": "text", "text": each}] if isinstance(each, str) else each for each in contents]
        parts = [part for content in contents for part in content]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        images = tuple(_digest(part["image_url"]["url"]) for part in parts if part["type"] == "image_url")
        content = hashlib.sha256(f"{text} {images}".encode()).hexdigest()
        with judge.lock:
            fault = judge.faults.of(content, judge.attempts[content])
            judge.attempts[content] += 1
            judge.calls.append(Call(body, text, images, self.headers.get("Authorization", ""), fault))
            judge.is_down = judge.is_down or judge.down_after == len(judge.calls)
        if body["model"] not in judge.models:
            return self.send_error_of(404, f"The model `{body['model']}` does not exist.")
        if not self.path.startswith(f"{judge.prefix}/chat"):
            return self.send_json(404, {"detail": "Not Found"})
        unknown = [name for name in body if name not in ("model", "messages", *(judge.accepted_parameters or body))]
        if unknown:
            return self.send_json(judge.refusal_status, {"error": json.loads(judge.refusal_message.format(unknown[0]))})
        if judge.refuses_text is not None and judge.refuses_text in text:
            return self.send_error_of(400, f"This content isn't judged for {self.headers.get('Authorization')}.")
        if judge.fails_on is not None and judge.fails_on in text:
            return self.send_error_of(500, "EngineCore encountered an issue.")
        if fault == "slow":
            time.sleep(judge.faults.slow)
        while not judge.may_answer():
            time.sleep(MOMENT)
        if fault not in (None, "slow"):
            return self._fail(judge, fault)
        if judge.fixed_message is not None:
            return self._send_message(judge.fixed_message, judge.finish_reason)
        return self._complete(reply_to(text, images, judge.fixed_choice))

    def _fail(self, judge: JudgeServer, fault: str) -> None:
        match fault:
            case "unreadable":
                self._complete("I'd give the edit 7 for success and 11 for all else.")
            case "no json":
                self.send(200, b'{"id": "chatcmpl', {})
            case "limited":
                self.send_error_of(429, "Too many requests.", {"Retry-After": str(judge.faults.retry_after)})
            case "error":
                self.send_error_of(503, "The engine is starting.")
            case "partial":
                self.send(200, b'{"id": "chatcmpl-1", "choices": [', {"Content-Length": "1000"})
                self.drop()
            case "dropped":
                self.drop()

    def _complete(self, text: str) -> None:
        self._send_message({"role": "assistant", "content": text}, "stop")

    def _send_message(self, message: Mapping[str, Any], finish: str) -> None:
        choice = {"index": 0, "message": message, "finish_reason": finish}
        about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": MODEL}
        self.send_json(200, {**about, "choices": [choice]})


def _digest(url: str) -> str:
    """Of a data URL's decoded pixels; raises for what is no JPEG in base64."""
    kind, _, data = url.partition(";base64,")
    if kind != "data:image/jpeg":
        raise ValueError(f"not a JPEG: {kind}")
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        size = f"{image.width} x {image.height} "
        return size + hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
