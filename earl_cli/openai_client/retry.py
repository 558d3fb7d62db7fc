"""When a judge's server is asked again, and what its failures mean: patience, a mistake of a person, a dead server."""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import openai

from earl_cli.errors import UsageError

PASSING = (408, 409, 429)  # and 5xx: the server's trouble, which passes
LIMITED = 429
UNKNOWN_TO_YOU, FORBIDDEN, NOT_THERE, TOO_LARGE = 401, 403, 404, 413
LONGEST_WORDS = 300  # characters of what a server says that a message shows
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with full jitter: before try n, a random part of ``first`` * 2**n seconds, at most ``most``.

    A question has ``tries``, and ``limits`` more answers that it came too often (429). A server that says when it wants
    to be asked again is believed up to ``patience`` seconds. The last three are the world's, or a test's.
    """

    tries: int = 6
    limits: int = 24
    first: float = 0.5
    most: float = 30.0
    patience: float = 120.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    draw: Callable[[], float] = random.random
    now: Callable[[], float] = time.time

    def wait(self, failed: int) -> float:
        """Seconds before the next try after ``failed`` ones."""
        return self.draw() * min(self.most, self.first * 2.0**failed)


class OutOfTriesError(Exception):
    """A server that failed at every try; the message says how the last time."""


class ApiRefusedError(Exception):
    """A server that works and doesn't take this request; the message says why."""


class NotThereError(UsageError):
    """A server that doesn't know the model, or has nothing at the address."""


class TooLargeError(ApiRefusedError):
    """A request of more bytes than the server takes."""


def judge_refusal(error: openai.APIStatusError, api_key_variable: str, has_key: bool) -> Exception:
    """What it means that a judge's server takes no such request, which doesn't pass."""
    status = error.status_code
    if status in (UNKNOWN_TO_YOU, FORBIDDEN):  # whose own words may hold the key
        wrong = "doesn't accept the key in" if has_key else "wants a key, and there is none in"
        return UsageError(
            f"the judge's server {wrong} {api_key_variable} (status {status})",
            hint="judge_api_key_variable, or its option, names the environment variable that holds it",
        )
    if status == NOT_THERE:
        return NotThereError(
            f"the judge's server doesn't know the model or the address (status {status}): {in_words(error)}",
            hint="earl judge check lists its models; an address usually ends in /v1",
        )
    kind = TooLargeError if status == TOO_LARGE else ApiRefusedError
    return kind(f"status {status}: {in_words(error)}")


async def persistently(
    call: Callable[[], Awaitable[ResultT]],
    pacing: Backoff,
    timeout: float,
    refusal: Callable[[openai.APIStatusError], Exception],
) -> ResultT:
    """What ``call`` gives within ``timeout`` seconds, called again while the failures are of the passing kind.

    Raises OutOfTriesError when they don't pass, and what ``refusal`` makes of others: RefusedError, and UsageError for
    a wrong key, address or model, or for a certificate that isn't trusted. Their causes are left out: they hold the
    server's words, which may repeat the key.
    """
    failed = limited = 0
    while True:
        try:
            async with asyncio.timeout(timeout):
                return await call()
        except (openai.OpenAIError, TimeoutError, ValueError, RecursionError) as error:
            status = error.status_code if isinstance(error, openai.APIStatusError) else None
            if isinstance(error, openai.APIStatusError) and status not in PASSING and error.status_code < 500:
                raise refusal(error) from None
            if mistake := _mistake(error):
                raise mistake from None
            wait = _wished(error, pacing)
            failed, limited = failed + (status != LIMITED), limited + (status == LIMITED)
            last = in_words(error, timeout)
            if failed >= pacing.tries or limited > pacing.limits or (wait or 0) > pacing.patience:
                raise OutOfTriesError(last) from None
        await pacing.sleep(pacing.wait(failed + limited) if wait is None else wait + pacing.draw() * pacing.first)


def in_words(error: Exception, timeout: float = 0.0) -> str:
    """The failure in one line."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        words = re.sub(r"<[^<>]*>", " ", str(body.get("message") or body.get("detail") or error))  # a page of a proxy
        words = " ".join(words.split())[:LONGEST_WORDS]
        return f"status {error.status_code}: {words}" if error.status_code >= LIMITED else words
    if isinstance(error, openai.APIConnectionError):
        causes = list(_causes(error))
        if any(isinstance(each, socket.gaierror) for each in causes):
            return "no connection: there is no host of that name, or no network"
        if any(isinstance(each, ConnectionRefusedError) for each in causes):
            return "no connection: nothing listens there"
        return f"no connection: {error.__cause__ or error}"
    return f"no proper answer: {' '.join(str(error).split())[:LONGEST_WORDS]}"


def _mistake(error: Exception) -> UsageError | None:
    """What a person has to change before the server can be reached at all."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            what = f"the server's certificate isn't trusted: {cause.verify_message or cause}"
            return UsageError(what, hint="SSL_CERT_FILE names a file with the certificate of who signed it")
        if isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
            return UsageError("the server speaks no TLS", hint="http:// in place of https://")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, the last one first; of several attempts all."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _causes(each)
        error = error.__cause__ or error.__context__


def _wished(error: Exception, pacing: Backoff) -> float | None:
    """The seconds that the server asks to wait, in its header Retry-After: as a number or as a date."""
    if not isinstance(error, openai.APIStatusError):
        return None
    text = error.response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - pacing.now()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)
