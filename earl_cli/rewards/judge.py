"""A judge: a model behind any OpenAI-compatible server that is asked about pictures, many questions at once.

Faults of the server are waited out, unreadable replies asked again, and answers kept, so that none is paid twice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import openai
from PIL import Image

from earl_cli.errors import EarlError, UsageError
from earl_cli.rewards.cache import AnswerCache
from earl_cli.rewards.connecting import apart, check_address, connect, plain_address, without_key
from earl_cli.rewards.replies import Reply, UnreadableError, read_choice, read_scores, read_tag
from earl_cli.rewards.retrying import OutOfTriesError, Pacing, RefusedError, persistently
from earl_cli.rewards.reward import JudgeDownError, Pixels

JPEG_QUALITY = 95
ROUNDS = 5  # times that a question is asked until the reply is readable
AGAIN_TEMPERATURE = 0.5  # at least, from the second round on: at 0 the reply would be the same
READERS: Mapping[str, Callable[[str], Reply]] = {"scores": read_scores, "tag": read_tag, "choice": read_choice}
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Question:
    """Pictures uint8[h, w, 3] and a text below them; ``reads`` names the one of `READERS` that the reply is for."""

    text: str
    pictures: tuple[Pixels, ...]
    reads: Literal["scores", "tag", "choice"] = "scores"
    max_tokens: int = 1400
    temperature: float = 0.0

    def key(self, model: str) -> str:
        """64 hex digits of all that an answer of ``model`` depends on; the server's address isn't part of it."""
        sampling = [self.reads, self.max_tokens, self.temperature, ROUNDS, AGAIN_TEMPERATURE, JPEG_QUALITY]
        content = json.dumps([model, self.text, sampling, [_digest(picture) for picture in self.pictures]])
        return hashlib.sha256(content.encode()).hexdigest()


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
    api_key_variable: str = "OPENAI_API_KEY"
    at_once: int = 64
    timeout: float = 120.0
    pacing: Pacing = field(default_factory=Pacing)
    _has_answered: bool = False

    def __post_init__(self) -> None:
        check_address(self.api_base, "a judge's")

    def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question, in order; equal questions are asked once.

        Raises JudgeDownError if the server as such doesn't answer (what it answered until then is kept), UsageError for
        what a person has to change. A question that alone fails gets an answer without numbers.
        """
        return apart(lambda: self._ask_all(questions))

    def models(self) -> list[str]:
        """Names of the models that the server has. Raises JudgeDownError after a few tries, or UsageError."""

        async def listed(client: openai.AsyncOpenAI) -> list[str]:
            return [each.id async for each in client.models.list()]

        return apart(lambda: asyncio.run(self._connected(listed, self.pacing)))

    # -- one pass over questions ---------------------------------------------------------------------------------

    def _ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        keys = [question.key(self.model) for question in questions]
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
                except RefusedError as error:
                    refusals[key] = str(error)

        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for key, question in missing.items():
                        group.create_task(one(client, key, question))
            except BaseExceptionGroup as failures:
                raise self._discreet(failures.exceptions[0]) from failures.exceptions[0].__cause__
        self._has_answered |= bool(answers)
        if refusals and not self._has_answered:
            what = f"the judge's server refuses what it is asked: {next(iter(refusals.values()))}"
            raise self._discreet(UsageError(what, where=self.address))
        return answers | {
            key: Answer(None, self._clean(f"the judge refuses this: {said}")) for key, said in refusals.items()
        }

    async def _answer(self, client: openai.AsyncOpenAI, key: str, question: Question, cache: AnswerCache) -> Answer:
        content = await asyncio.to_thread(_content, question)
        wrong = ""
        for turn in range(ROUNDS):
            again: dict[str, Any] = {"seed": turn} if turn else {}
            temperature = max(question.temperature, AGAIN_TEMPERATURE) if turn else question.temperature

            async def asked(more: dict[str, Any] = again, temperature: float = temperature) -> str:
                return await _complete(client, self.model, content, question.max_tokens, temperature, more)

            try:
                raw = await self._reply(client, asked)
            except OutOfTriesError as error:
                return Answer(None, self._clean(f"the judge fails at this question alone: {error}"))
            try:
                reply = cache.keep(key, raw, READERS[question.reads](raw))
                return Answer(reply.numbers, reply.reasoning)
            except UnreadableError as error:
                wrong = f"{error}: {' '.join(raw.split())[:120]}"
        return Answer(None, self._clean(f"the judge's reply can't be read, also when asked {ROUNDS} times: {wrong}"))

    async def _reply(self, client: openai.AsyncOpenAI, asked: Callable[[], Coroutine[Any, Any, str]]) -> str:
        """What the judge says. Raises OutOfTriesError if it fails at this question alone, JudgeDownError if at any.

        Which of the two it is shows an easy question; if that is answered, the other one is asked again, since the
        server may have come back in between.
        """
        try:
            return await persistently(asked, self.pacing, self.timeout)
        except OutOfTriesError as error:
            await self._check_up(client, str(error))
        return await persistently(asked, self.pacing, self.timeout)

    async def _check_up(self, client: openai.AsyncOpenAI, failure: str) -> None:
        """Raise JudgeDownError unless the server answers an easy question."""
        easy = _content(Question("Which colour is this? Say one word.", (np.full((32, 32, 3), 128, np.uint8),)))

        async def asked() -> str:
            return await _complete(client, self.model, easy, 4, 0.0, {})

        try:
            await persistently(asked, replace(self.pacing, tries=min(3, self.pacing.tries)), self.timeout)
        except OutOfTriesError:
            raise JudgeDownError(
                self._clean(f"the judge doesn't answer: {failure}"),
                where=self.address,
                hint="earl judge check looks at it",
            ) from None
        except RefusedError:  # it is there, and answers
            pass

    # -- the connection ------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """``api_base`` without a password."""
        return plain_address(self.api_base)

    def _client(self) -> openai.AsyncOpenAI:
        return connect(self.api_base, self.api_key_variable, self.timeout)

    async def _connected(
        self, work: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, Result]], pacing: Pacing
    ) -> Result:
        try:
            async with self._client() as client:
                return await persistently(lambda: work(client), pacing, self.timeout)
        except OutOfTriesError as error:
            what = self._clean(f"the judge doesn't answer: {error}")
            raise JudgeDownError(what, where=self.address, hint="earl judge serve starts one") from None
        except RefusedError as error:
            what = self._clean(f"the judge's server refuses what it is asked: {error}")
            raise UsageError(what, where=self.address) from None
        except EarlError as error:
            raise self._discreet(error) from None

    def _discreet(self, error: BaseException) -> BaseException:
        """The error, if it is one of ours with the address and without the key."""
        if isinstance(error, EarlError):
            error.what, error.where = self._clean(error.what), error.where or self.address
        return error

    def _clean(self, text: str) -> str:
        return without_key(text, self.api_key_variable)


async def _complete(
    client: openai.AsyncOpenAI,
    model: str,
    content: list[dict[str, Any]],
    max_tokens: int,
    temperature: float,
    more: Mapping[str, Any],
) -> str:
    """The text of one reply, "" where there is none. Raises what openai raises, and ValueError for another answer."""
    completion: Any = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
        max_tokens=max_tokens,
        temperature=temperature,
        **more,
    )
    try:
        text = completion.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        raise ValueError("the server's answer is no chat completion") from None
    return text if isinstance(text, str) else ""


def _content(question: Question) -> list[dict[str, Any]]:
    pictures = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in question.pictures]
    return [*pictures, {"type": "text", "text": question.text}]


def data_url(picture: Pixels) -> str:
    """A picture uint8[h, w, 3] as a data URL: JPEG of quality 95, colours not subsampled; equal for equal pictures."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _digest(picture: Pixels) -> str:
    return hashlib.sha256(f"{picture.shape}".encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()
