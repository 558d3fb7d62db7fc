"""An editor behind any OpenAI-compatible server that edits images (`/images/edits`), several at a time.

Faults of the server are retried; an edit that it refuses has a problem; a server that refuses every edit is an error.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urljoin, urlsplit

import openai
from PIL import Image

from earl_cli.errors import EarlError, InputError, UsageError
from earl_cli.evaluation.editors import BenchmarkEditor, EditorOutput, EditTask, OnFraction
from earl_cli.images.image_file import open_image, save_image
from earl_cli.openai_client.client import (
    DEFAULT_KEY_VARIABLE,
    RedirectedError,
    address_without_password,
    checked_address,
    make_client,
    outside_event_loop,
    redact,
)
from earl_cli.openai_client.retry import (
    NOT_FOUND,
    PAYLOAD_TOO_LARGE,
    UNAUTHORIZED,
    ApiRefusedError,
    Backoff,
    RetriesExhaustedError,
    call_with_retries,
    describe_error,
)

AUTO = "auto"
EASY = EditTask("easy", Image.new("RGB", (256, 256), (128, 128, 128)), "make it a little brighter", 0)
EASY_TRIES = 3
LARGEST_IMAGE = 200_000_000
"""Bytes of a response, with its image in base64."""


def open_endpoint(
    api_base: str,
    model: str,
    api_key_variable: str = DEFAULT_KEY_VARIABLE,
    batch_size: int = 4,
    timeout: float = 300.0,
    size: str = AUTO,
    *,
    send_seed: bool = True,
    backoff: Backoff | None = None,
) -> BenchmarkEditor:
    """The ``model`` of a server at ``api_base``, such as http://localhost:8000/v1, as an editor of the model's name.

    Each try of an edit takes ``timeout`` seconds at most. ``size`` is the size of its images, such as 512x512;
    auto leaves it to the server. ``send_seed`` gives it each task's seed, which OpenAI's own models don't take.
    Raises UsageError for what is no address.
    """
    api_base = checked_address(api_base, "an editor's")
    return _Endpoint(model, batch_size, api_base, api_key_variable, timeout, size, send_seed, backoff or Backoff())


@dataclass(eq=False)
class _Endpoint:
    name: str
    batch_size: int
    api_base: str
    api_key_variable: str
    timeout: float
    size: str
    send_seed: bool
    backoff: Backoff
    _has_succeeded: bool = field(default=False, init=False)

    def describe(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "kind": "endpoint",
            "address": address_without_password(self.api_base),
            "model": self.name,
            "size": self.size,
            "seeds": self.send_seed,
        }

    def edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None = None) -> list[EditorOutput]:
        return outside_event_loop(lambda: asyncio.run(self._edit(tasks, on_progress))) if tasks else []

    async def _edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None) -> list[EditorOutput]:
        outputs: dict[int, EditorOutput] = {}
        turn = asyncio.Semaphore(self.batch_size)

        async def one(client: openai.AsyncOpenAI, number: int) -> None:
            async with turn:
                outputs[number] = await self._edit_one(client, tasks[number])
            if on_progress is not None:
                on_progress(len(outputs) / len(tasks))

        async with make_client(self.api_base, self.api_key_variable, self.timeout, LARGEST_IMAGE) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(len(tasks)):
                        group.create_task(one(client, number))
            except BaseExceptionGroup as failures:
                raise self._discreet(failures.exceptions[0]) from None
        return [outputs[number] for number in range(len(tasks))]

    async def _edit_one(self, client: openai.AsyncOpenAI, task: EditTask) -> EditorOutput:
        try:
            answer = await self._answer(client, task)
        except RetriesExhaustedError as error:
            return self._failed(f"the server fails for this image alone: {error}")
        except ApiRefusedError as error:
            if not self._has_succeeded:
                await self._check_up(client, error)
            return self._failed(f"the server refuses this: {error}")
        self._has_succeeded = True
        try:
            image = await asyncio.to_thread(open_image, answer, name="the server's answer")
            return EditorOutput(image.rgb)
        except InputError as error:
            return self._failed(str(error))

    async def _answer(self, client: openai.AsyncOpenAI, task: EditTask) -> bytes:
        """The server's image file. Raises RetriesExhaustedError if it fails for this image alone, EarlError if for
        every one.

        An easy image decides which of the two it is; if that succeeds, the task is tried again, since the server
        may have recovered in between.
        """
        try:
            return await self._request(client, task, self.backoff)
        except RetriesExhaustedError as error:
            await self._check_up(client, error)
        return await self._request(client, task, self.backoff)

    async def _check_up(self, client: openai.AsyncOpenAI, failure: Exception) -> None:
        """Raise EarlError unless the server edits an easy image, or refuses it where ``failure`` is no refusal."""
        try:
            await self._request(client, EASY, replace(self.backoff, attempts=min(EASY_TRIES, self.backoff.attempts)))
            self._has_succeeded = True
        except RetriesExhaustedError:
            raise EarlError(
                f"the server makes no images: {failure}", where=self._address, hint="when it does, start again"
            ) from None
        except ApiRefusedError:
            if isinstance(failure, ApiRefusedError):
                raise UsageError(f"the server refuses every request: {failure}", where=self._address) from None

    async def _request(self, client: openai.AsyncOpenAI, task: EditTask, backoff: Backoff) -> bytes:
        png = await asyncio.to_thread(_png, task.image)
        seed: dict[str, Any] = {"extra_body": {"seed": task.seed}} if self.send_seed else {}
        size: dict[str, Any] = {} if self.size == AUTO else {"size": self.size}

        async def post() -> str | bytes:
            answer = await client.images.edit(
                image=("image.png", png, "image/png"), prompt=task.instruction, model=self.name, **size, **seed
            )
            return _content(answer)

        async def fetch() -> bytes:
            found = await client.get(address, cast_to=openai.HttpxBinaryResponseContent)
            return bytes(found.content)

        content = await call_with_retries(post, backoff, self.timeout, lambda error: self._refusal(error, task))
        if isinstance(content, bytes):
            return content
        address = urljoin(self.api_base, content)
        if _server(address) != _server(self.api_base):
            raise ApiRefusedError(f"its images are on another server, {urlsplit(address).hostname}")
        try:
            return await call_with_retries(fetch, backoff, self.timeout, _lost)
        except RedirectedError as error:
            raise ApiRefusedError(f"its image can't be fetched: {error.what}") from None

    def _refusal(self, error: openai.APIStatusError, task: EditTask) -> Exception:
        reason = f"status {error.status_code}: {describe_error(error)}"
        if error.status_code == UNAUTHORIZED:  # its message may hold the key
            what = f"the server doesn't accept this key (status {UNAUTHORIZED})"
            return UsageError(what, where=self._address, hint=f"the key is the value of {self.api_key_variable}")
        if error.status_code == NOT_FOUND:
            what = f"the server doesn't know the model or the address ({reason})"
            return UsageError(what, where=self._address, hint="an address usually ends in /v1")
        if self.send_seed and _names_seed(error, task):
            return UsageError(
                f"the server takes no seed ({reason})",
                where=self._address,
                hint="earl eval --no-endpoint-seed sends none",
            )
        if error.status_code == PAYLOAD_TOO_LARGE:
            reason += f": the image is {task.image.width} x {task.image.height}"
        return ApiRefusedError(reason)

    @property
    def _address(self) -> str:
        return address_without_password(self.api_base)

    def _failed(self, problem: str) -> EditorOutput:
        return EditorOutput(None, problem=self._clean(problem))

    def _discreet(self, error: BaseException) -> BaseException:
        """The error; an EarlError gets the address and loses the key."""
        if isinstance(error, EarlError):
            error.what, error.where = self._clean(error.what), error.where or self._address
            error.__context__ = None  # whose message --debug would show
        return error

    def _clean(self, text: str) -> str:
        return redact(text, self.api_key_variable, self.api_base)


def _server(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port


def _lost(error: openai.APIStatusError) -> Exception:
    return ApiRefusedError(f"its image isn't at the address that it gives (status {error.status_code})")


def _names_seed(error: openai.APIStatusError, task: EditTask) -> bool:
    """Whether the error is about the field `seed`; its message may quote the instruction, which may have seeds."""
    text = f"{error} {error.body}".replace(task.instruction, "")
    return error.param == "seed" or re.search(r"\bseed\b", text) is not None


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    save_image(image, out, format="png")
    return out.getvalue()


def _content(answer: Any) -> str | bytes:
    """The image's file, or the URL that it is at. Raises ValueError if the answer has neither."""
    try:
        first = answer.data[0]
        code, url = first.b64_json or "", first.url or ""
    except (AttributeError, IndexError, TypeError):
        code = url = ""
    if not code and url.startswith("data:"):
        code = url
    if code:
        try:
            return base64.b64decode(code.rpartition(",")[2], validate=True)
        except binascii.Error:
            return b"no base64"  # not an image either
    if not url:
        raise ValueError("the server's response holds no image")
    return str(url)
