"""A judge: a vision model behind any OpenAI-compatible server, sent many prompts concurrently.

Transient failures are retried, prompts with unreadable replies sent again, and replies kept, so that none is paid
twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import openai

from earl_cli.errors import EarlError, UsageError
from earl_cli.openai_client.client import (
    DEFAULT_KEY_VARIABLE,
    address_without_password,
    checked_address,
    make_client,
    outside_event_loop,
    read_key,
    redact,
)
from earl_cli.openai_client.retry import (
    FORBIDDEN,
    NOT_FOUND,
    PAYLOAD_TOO_LARGE,
    UNAUTHORIZED,
    ApiRefusedError,
    Backoff,
    NotFoundError,
    RetriesExhaustedError,
    TooLargeError,
    call_with_retries,
    describe_error,
)
from earl_cli.rewards.judge.cache import ReplyCache
from earl_cli.rewards.judge.completion import ModelCompletion, build_messages, complete
from earl_cli.rewards.judge.declarations import Declaration, load_declaration
from earl_cli.rewards.judge.replies import (
    InvalidReplyError,
    ParsedReply,
    is_unfinished_reasoning,
    parse_choice,
    parse_scores,
    parse_tag,
)
from earl_cli.rewards.reward import JudgeDownError, Pixels

MAX_REPLY_ATTEMPTS = 5  # times that a prompt is sent until its reply can be read
RETRY_TEMPERATURE = 0.5  # at least, from the second time on: at 0 the reply would be the same
FORMAT_WITHOUT_KEY = ("before", "4:4:4", "user")
"""Of images, chroma and role. It isn't part of cache keys: caches are older than declarations."""
HEALTH_PROMPT = "Which colour is this? Say one word."
ReplyFormat: TypeAlias = Literal["scores", "tag", "choice"]
PARSERS: Mapping[ReplyFormat, Callable[[str], ParsedReply]] = {
    "scores": parse_scores,
    "tag": parse_tag,
    "choice": parse_choice,
}
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, eq=False)
class JudgePrompt:
    """A text and images uint8[h, w, 3]; ``reply_format`` names the one of `PARSERS` that reads the reply.

    ``temperature`` None leaves it to the judge's declaration.
    """

    text: str
    images: tuple[Pixels, ...]
    reply_format: ReplyFormat = "scores"
    max_tokens: int = 1400
    temperature: float | None = None

    def key(self, model: str, declaration: Declaration) -> str:
        """The cache key: 64 hex digits of all that a reply of ``model`` depends on, other than the server's address."""
        temperature, quality = self.temperature_for(declaration), declaration.quality
        sampling = [self.reply_format, self.max_tokens, temperature, MAX_REPLY_ATTEMPTS, RETRY_TEMPERATURE, quality]
        message_format = (declaration.images, declaration.chroma, self.role_for(declaration))
        extra = [] if message_format == FORMAT_WITHOUT_KEY else [message_format]
        content = json.dumps([model, self.text, sampling, [_digest(image) for image in self.images], *extra])
        return hashlib.sha256(content.encode()).hexdigest()

    def temperature_for(self, declaration: Declaration) -> float | None:
        """The temperature of the first attempt; None sends none."""
        return declaration.temperature if self.temperature is None else self.temperature

    def role_for(self, declaration: Declaration) -> str:
        """The role of the message that holds the text."""
        return declaration.role if self.reply_format == "scores" else "user"


@dataclass(frozen=True)
class Judgement:
    """A judge's scores from 0 to 10 and, in ``text``, its reasoning; without scores ``text`` says why."""

    scores: tuple[float, ...] | None
    text: str


@dataclass
class Judge:
    """A model at ``api_base``, such as http://localhost:4877/v1. Nothing is connected before the first call.

    At most ``concurrency`` prompts are sent at a time, each attempt with ``timeout`` seconds; ``cache`` is the file
    that keeps replies, with None they are kept for one call. Methods may be called from any thread, one at a time.
    """

    api_base: str
    model: str
    cache: Path | None = None
    api_key_variable: str = DEFAULT_KEY_VARIABLE
    concurrency: int = 64
    timeout: float = 120.0
    declaration: Declaration = field(default_factory=load_declaration)
    backoff: Backoff = field(default_factory=Backoff)
    _has_answered: bool = False

    def __post_init__(self) -> None:
        self.api_base = checked_address(self.api_base, "a judge's")

    def ask_all(self, prompts: Sequence[JudgePrompt]) -> list[Judgement]:
        """One judgement for each prompt, in order; equal prompts are sent once.

        Raises JudgeDownError if the server answers no prompt (replies until then are kept), UsageError for what the
        user has to change. A prompt that alone fails gets a judgement without scores.
        """
        return outside_event_loop(lambda: self._ask_all(prompts))

    def models(self) -> list[str]:
        """Names of the server's models. Raises JudgeDownError when all attempts fail, or UsageError."""
        return outside_event_loop(lambda: asyncio.run(self._list_models()))

    @property
    def address(self) -> str:
        """``api_base`` without user name and password."""
        return address_without_password(self.api_base)

    # -- one call ------------------------------------------------------------------------------------------------

    def _ask_all(self, prompts: Sequence[JudgePrompt]) -> list[Judgement]:
        keys = [prompt.key(self.model, self.declaration) for prompt in prompts]
        with ReplyCache(self.cache) as cache:
            judgements = {key: Judgement(reply.scores, reply.reasoning) for key, reply in cache.find(keys).items()}
            self._has_answered |= bool(judgements)
            missing = {key: each for key, each in zip(keys, prompts, strict=True) if key not in judgements}
            if missing:
                judgements |= asyncio.run(self._ask_missing(missing, cache))
        return [judgements[key] for key in keys]

    async def _ask_missing(self, missing: Mapping[str, JudgePrompt], cache: ReplyCache) -> dict[str, Judgement]:
        judgements: dict[str, Judgement] = {}
        refusals: dict[str, str] = {}
        slots = asyncio.Semaphore(self.concurrency)

        async def one(client: openai.AsyncOpenAI, key: str, prompt: JudgePrompt) -> None:
            async with slots:
                try:
                    judgements[key] = await self._judgement(client, key, prompt, cache)
                except ApiRefusedError as error:
                    refusals[key] = str(error)

        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for key, prompt in missing.items():
                        tasks.create_task(one(client, key, prompt))
            except BaseExceptionGroup as failures:
                raise self._redacted(failures.exceptions[0]) from None
        self._has_answered |= bool(judgements)
        if refusals and not self._has_answered:
            what = f"the judge's server refuses the prompts: {next(iter(refusals.values()))}"
            raise self._redacted(UsageError(what, where=self.address))
        return judgements | {
            key: Judgement(None, self._clean(f"the judge refuses this prompt: {why}")) for key, why in refusals.items()
        }

    async def _judgement(
        self, client: openai.AsyncOpenAI, key: str, prompt: JudgePrompt, cache: ReplyCache
    ) -> Judgement:
        messages = await asyncio.to_thread(self._messages, prompt)
        problem = ""
        for attempt in range(MAX_REPLY_ATTEMPTS):
            settings = self._settings(prompt, attempt)

            async def send(settings: Mapping[str, Any] = settings) -> ModelCompletion:
                return await complete(client, self.model, messages, settings)

            try:
                completion = await self._completion(client, send)
            except RetriesExhaustedError as error:
                return Judgement(None, self._clean(f"the judge fails at this prompt alone: {error}"))
            except TooLargeError as error:
                raise ApiRefusedError(f"{error}: {_sizes(prompt, messages)}") from None
            raw = self._clean(completion.text)
            try:
                if completion.incomplete and is_unfinished_reasoning(raw):
                    raise InvalidReplyError("it ends within its reasoning")
                reply = cache.keep(key, raw, PARSERS[prompt.reply_format](raw))
                return Judgement(reply.scores, reply.reasoning)
            except InvalidReplyError as error:
                incomplete = f" ({completion.incomplete})" if completion.incomplete else ""
                excerpt = " ".join(raw[:1000].split())[:120]
                problem = f"{error}{incomplete}" + (f": {excerpt}" if excerpt else "")
        text = f"the judge's reply can't be read, in {MAX_REPLY_ATTEMPTS} attempts: {problem}"
        return Judgement(None, self._clean(text))

    def _settings(self, prompt: JudgePrompt, attempt: int) -> dict[str, Any]:
        """The sampling parameters of an attempt, counted from 0; later ones aren't greedy."""
        settings: dict[str, Any] = {"max_tokens": prompt.max_tokens}
        temperature = prompt.temperature_for(self.declaration)
        if temperature is None:
            return settings
        if attempt:
            return {**settings, "temperature": max(temperature, RETRY_TEMPERATURE), "seed": attempt}
        return {**settings, "temperature": temperature}

    def _messages(self, prompt: JudgePrompt) -> list[dict[str, Any]]:
        return build_messages(prompt.text, prompt.images, self.declaration, prompt.role_for(self.declaration))

    async def _completion(
        self, client: openai.AsyncOpenAI, send: Callable[[], Coroutine[Any, Any, ModelCompletion]]
    ) -> ModelCompletion:
        """What ``send`` returns. Raises RetriesExhaustedError if only this prompt fails, JudgeDownError if every one
        does.

        A simple prompt tells which of the two it is; after a reply to that, ``send`` is called again, since the server
        may have come back in between.
        """
        try:
            return await self._call(send, self.backoff)
        except RetriesExhaustedError as error:
            await self._check_health(client, str(error))
        return await self._call(send, self.backoff)

    async def _check_health(self, client: openai.AsyncOpenAI, failure: str) -> None:
        """Raise JudgeDownError unless the server replies to a simple prompt, be it with a refusal."""
        prompt = JudgePrompt(HEALTH_PROMPT, (np.full((32, 32, 3), 128, np.uint8),), max_tokens=4)
        messages = self._messages(prompt)

        async def send() -> ModelCompletion:
            return await complete(client, self.model, messages, self._settings(prompt, 0))

        try:
            await self._call(send, replace(self.backoff, attempts=min(3, self.backoff.attempts)))
        except RetriesExhaustedError:
            what = self._clean(f"the judge doesn't answer: {failure}")
            raise JudgeDownError(what, where=self.address, hint="try it with earl judge check") from None
        except ApiRefusedError:
            pass

    async def _list_models(self) -> list[str]:
        async def list_models() -> list[str]:
            return [self._clean(str(each.id)) async for each in client.models.list()]

        try:
            async with self._client() as client:
                return await self._call(list_models, self.backoff)
        except RetriesExhaustedError as error:
            what = self._clean(f"the judge doesn't answer: {error}")
            hint = "is this its address? earl judge serve starts one"
            raise JudgeDownError(what, where=self.address, hint=hint) from None
        except ApiRefusedError as error:
            what = self._clean(f"the judge's server refuses to list its models: {error}")
            raise UsageError(what, where=self.address) from None
        except EarlError as error:
            raise self._redacted(error) from None

    # -- the connection ------------------------------------------------------------------------------------------

    def _client(self) -> openai.AsyncOpenAI:
        return make_client(self.api_base, self.api_key_variable, self.timeout)

    async def _call(self, call: Callable[[], Coroutine[Any, Any, ResultT]], backoff: Backoff) -> ResultT:
        return await call_with_retries(call, backoff, self.timeout, self._refusal)

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        """The error for a status that isn't transient."""
        status = error.status_code
        if status in (UNAUTHORIZED, FORBIDDEN):  # without the server's message, which may hold the key
            has_key = read_key(self.api_key_variable) is not None
            wrong = "doesn't accept the key in" if has_key else "wants a key, and there is none in"
            return UsageError(
                f"the judge's server {wrong} {self.api_key_variable} (status {status})",
                hint="judge_api_key_variable, or its option, names the environment variable that holds it",
            )
        if status == NOT_FOUND:
            return NotFoundError(
                f"the judge's server doesn't know the model or the address (status {status}): {describe_error(error)}",
                hint="earl judge check lists its models; an address usually ends in /v1",
            )
        kind = TooLargeError if status == PAYLOAD_TOO_LARGE else ApiRefusedError
        return kind(f"status {status}: {describe_error(error)}")

    def _redacted(self, error: BaseException) -> BaseException:
        """The error; an EarlError with the address and without the key."""
        if isinstance(error, EarlError):
            error.what, error.where = self._clean(error.what), error.where or self.address
            error.__context__ = None  # --debug would show its message
        return error

    def _clean(self, text: str) -> str:
        """A server's text without secrets."""
        return redact(text, self.api_key_variable, self.api_base)


def _sizes(prompt: JudgePrompt, messages: Sequence[Mapping[str, Any]]) -> str:
    """How large the prompt's images are."""
    sizes = " and ".join(f"{image.shape[1]} x {image.shape[0]}" for image in prompt.images)
    return f"its images are {sizes}, {len(json.dumps(messages)) / 1e6:.1f} MB as sent; a smaller area makes them less"


def _digest(image: Pixels) -> str:
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
