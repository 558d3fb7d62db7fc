"""A judge: a model behind any OpenAI-compatible server that is asked about pictures, many questions at once.

Faults of the server are waited out, unreadable replies asked again, and answers kept, so that none is paid twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import openai

from earl_cli.errors import EarlError, UsageError
from earl_cli.openai_client.client import (
    USUAL_KEY,
    apart,
    checked_address,
    connect,
    key_of,
    plain_address,
    without_secrets,
)
from earl_cli.openai_client.retry import (
    ApiRefusedError,
    Backoff,
    OutOfTriesError,
    TooLargeError,
    judge_refusal,
    persistently,
)
from earl_cli.rewards.judge.cache import AnswerCache
from earl_cli.rewards.judge.completion import ModelReply, complete, messages_of
from earl_cli.rewards.judge.declarations import Declaration, load_declaration
from earl_cli.rewards.judge.replies import Reply, UnreadableError, is_all_thoughts, read_choice, read_scores, read_tag
from earl_cli.rewards.reward import JudgeDownError, Pixels

ROUNDS = 5  # times that a question is asked until the reply is readable
AGAIN_TEMPERATURE = 0.5  # at least, from the second round on: at 0 the reply would be the same
USUAL_MANNER = ("before", "4:4:4", "user")
"""What isn't part of keys: answers were kept before there were declarations."""
EASY = "Which colour is this? Say one word."
READERS: Mapping[str, Callable[[str], Reply]] = {"scores": read_scores, "tag": read_tag, "choice": read_choice}
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, eq=False)
class Question:
    """Pictures uint8[h, w, 3] and a text; ``reads`` names the one of `READERS` that the reply is for.

    ``temperature`` None leaves it to the judge's declaration.
    """

    text: str
    pictures: tuple[Pixels, ...]
    reads: Literal["scores", "tag", "choice"] = "scores"
    max_tokens: int = 1400
    temperature: float | None = None

    def key(self, model: str, declaration: Declaration) -> str:
        """64 hex digits of all that an answer of ``model`` depends on; the server's address isn't part of it."""
        temperature, quality = self.temperature_for(declaration), declaration.quality
        sampling = [self.reads, self.max_tokens, temperature, ROUNDS, AGAIN_TEMPERATURE, quality]
        manner = (declaration.pictures, declaration.chroma, self.role_for(declaration))
        more = [] if manner == USUAL_MANNER else [manner]
        content = json.dumps([model, self.text, sampling, [_digest(picture) for picture in self.pictures], *more])
        return hashlib.sha256(content.encode()).hexdigest()

    def temperature_for(self, declaration: Declaration) -> float | None:
        """What is sent when it is asked for the first time; None is nothing."""
        return declaration.temperature if self.temperature is None else self.temperature

    def role_for(self, declaration: Declaration) -> str:
        """Whose message the text is."""
        return declaration.role if self.reads == "scores" else "user"


@dataclass(frozen=True)
class Answer:
    """A judge's numbers and its reasoning; without numbers ``text`` says why there are none."""

    numbers: tuple[float, ...] | None
    text: str


@dataclass
class Judge:
    """A model at ``api_base``, such as http://localhost:4877/v1. Nothing is connected before something is asked.

    ``at_once`` questions are under way at a time, each try of one takes ``timeout`` seconds at most; ``cache`` None
    keeps answers only for the call. Methods may be called from any thread, one at a time.
    """

    api_base: str
    model: str
    cache: Path | None = None
    api_key_variable: str = USUAL_KEY
    at_once: int = 64
    timeout: float = 120.0
    declaration: Declaration = field(default_factory=load_declaration)
    pacing: Backoff = field(default_factory=Backoff)
    _has_answered: bool = False

    def __post_init__(self) -> None:
        self.api_base = checked_address(self.api_base, "a judge's")

    def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question, in order; equal questions are asked once.

        Raises JudgeDownError if the server as such doesn't answer (what it answered until then is kept), UsageError for
        what a person has to change. A question that alone fails gets an answer without numbers.
        """
        return apart(lambda: self._ask_all(questions))

    def models(self) -> list[str]:
        """Names of the models that the server has. Raises JudgeDownError after a few tries, or UsageError."""

        async def listed(client: openai.AsyncOpenAI) -> list[str]:
            return [self._clean(str(each.id)) async for each in client.models.list()]

        return apart(lambda: asyncio.run(self._connected(listed, self.pacing)))

    # -- one pass over questions ---------------------------------------------------------------------------------

    def _ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        keys = [question.key(self.model, self.declaration) for question in questions]
        with AnswerCache(self.cache) as cache:
            answers = {key: Answer(reply.numbers, reply.reasoning) for key, reply in cache.find(keys).items()}
            self._has_answered |= bool(answers)
            missing = {key: each for key, each in zip(keys, questions, strict=True) if key not in answers}
            if missing:
                answers |= asyncio.run(self._ask_missing(missing, cache))
        return [answers[key] for key in keys]

    async def _ask_missing(self, missing: Mapping[str, Question], cache: AnswerCache) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        refusals: dict[str, str] = {}
        turn = asyncio.Semaphore(self.at_once)

        async def one(client: openai.AsyncOpenAI, key: str, question: Question) -> None:
            async with turn:
                try:
                    answers[key] = await self._answer(client, key, question, cache)
                except ApiRefusedError as error:
                    refusals[key] = str(error)

        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for key, question in missing.items():
                        group.create_task(one(client, key, question))
            except BaseExceptionGroup as failures:
                raise self._discreet(failures.exceptions[0]) from None
        self._has_answered |= bool(answers)
        if refusals and not self._has_answered:
            what = f"the judge's server refuses what it is asked: {next(iter(refusals.values()))}"
            raise self._discreet(UsageError(what, where=self.address))
        return answers | {
            key: Answer(None, self._clean(f"the judge refuses this: {said}")) for key, said in refusals.items()
        }

    async def _answer(self, client: openai.AsyncOpenAI, key: str, question: Question, cache: AnswerCache) -> Answer:
        messages = await asyncio.to_thread(self._messages, question)
        wrong = ""
        for turn in range(ROUNDS):
            settings = self._settings(question, turn)

            async def asked(settings: Mapping[str, Any] = settings) -> ModelReply:
                return await complete(client, self.model, messages, settings)

            try:
                saying = await self._reply(client, asked)
            except OutOfTriesError as error:
                return Answer(None, self._clean(f"the judge fails at this question alone: {error}"))
            except TooLargeError as error:
                raise ApiRefusedError(f"{error}: {_sizes(question, messages)}") from None
            raw = self._clean(saying.text)
            try:
                if saying.lacking and is_all_thoughts(raw):
                    raise UnreadableError("it ends within its thoughts")
                reply = cache.keep(key, raw, READERS[question.reads](raw))
                return Answer(reply.numbers, reply.reasoning)
            except UnreadableError as error:
                lacking = f" ({saying.lacking})" if saying.lacking else ""
                said = " ".join(raw[:1000].split())[:120]
                wrong = f"{error}{lacking}" + (f": {said}" if said else "")
        return Answer(None, self._clean(f"the judge's reply can't be read, also when asked {ROUNDS} times: {wrong}"))

    def _settings(self, question: Question, turn: int) -> dict[str, Any]:
        """The parameters of a question that was asked ``turn`` times before; where it was greedy, it isn't any more."""
        temperature = question.temperature_for(self.declaration)
        if temperature is None:
            return {"max_tokens": question.max_tokens}
        if turn:
            return {"max_tokens": question.max_tokens, "temperature": max(temperature, AGAIN_TEMPERATURE), "seed": turn}
        return {"max_tokens": question.max_tokens, "temperature": temperature}

    def _messages(self, question: Question) -> list[dict[str, Any]]:
        role = question.role_for(self.declaration)
        return messages_of(question.text, question.pictures, self.declaration, role)

    async def _reply(
        self, client: openai.AsyncOpenAI, asked: Callable[[], Coroutine[Any, Any, ModelReply]]
    ) -> ModelReply:
        """What the judge says. Raises OutOfTriesError if it fails at this question alone, JudgeDownError if at any.

        Which of the two it is shows an easy question; if that is answered, the other one is asked again, since the
        server may have come back in between.
        """
        try:
            return await self._persistently(asked, self.pacing)
        except OutOfTriesError as error:
            await self._check_up(client, str(error))
        return await self._persistently(asked, self.pacing)

    async def _check_up(self, client: openai.AsyncOpenAI, failure: str) -> None:
        """Raise JudgeDownError unless the server answers an easy question."""
        easy = Question(EASY, (np.full((32, 32, 3), 128, np.uint8),), max_tokens=4)
        messages = self._messages(easy)

        async def asked() -> ModelReply:
            return await complete(client, self.model, messages, self._settings(easy, 0))

        try:
            await self._persistently(asked, replace(self.pacing, tries=min(3, self.pacing.tries)))
        except OutOfTriesError:
            raise JudgeDownError(
                self._clean(f"the judge doesn't answer: {failure}"),
                where=self.address,
                hint="earl judge check looks at it",
            ) from None
        except ApiRefusedError:  # it is there, and answers
            pass

    # -- the connection ------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """``api_base`` without a password."""
        return plain_address(self.api_base)

    def _client(self) -> openai.AsyncOpenAI:
        return connect(self.api_base, self.api_key_variable, self.timeout)

    async def _persistently(self, work: Callable[[], Coroutine[Any, Any, ResultT]], pacing: Backoff) -> ResultT:
        has_key = key_of(self.api_key_variable) is not None
        refusal = partial(judge_refusal, api_key_variable=self.api_key_variable, has_key=has_key)
        return await persistently(work, pacing, self.timeout, refusal)

    async def _connected(
        self, work: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, ResultT]], pacing: Backoff
    ) -> ResultT:
        try:
            async with self._client() as client:
                return await self._persistently(lambda: work(client), pacing)
        except OutOfTriesError as error:
            what = self._clean(f"the judge doesn't answer: {error}")
            raise JudgeDownError(
                what, where=self.address, hint="is this its address? earl judge serve starts one"
            ) from None
        except ApiRefusedError as error:
            what = self._clean(f"the judge's server refuses what it is asked: {error}")
            raise UsageError(what, where=self.address) from None
        except EarlError as error:
            raise self._discreet(error) from None

    def _discreet(self, error: BaseException) -> BaseException:
        """The error, if it is one of ours with the address and without the key."""
        if isinstance(error, EarlError):
            error.what, error.where = self._clean(error.what), error.where or self.address
            error.__context__ = None  # whose words --debug would show
        return error

    def _clean(self, text: str) -> str:
        """A server's words without secrets, before anything is made of them."""
        return without_secrets(text, self.api_key_variable, self.api_base)


def _sizes(question: Question, messages: Sequence[Mapping[str, Any]]) -> str:
    """How large its pictures are."""
    sizes = " and ".join(f"{picture.shape[1]} x {picture.shape[0]}" for picture in question.pictures)
    return f"its pictures are {sizes}, {len(json.dumps(messages)) / 1e6:.1f} MB as sent; a smaller area makes them less"


def _digest(picture: Pixels) -> str:
    return hashlib.sha256(f"{picture.shape}".encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()
