"""When a judge's server is asked again, and what its failures mean: patience, a mistake of a person, a dead server."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import openai

from earl_cli.errors import UsageError

PASSING = (408, 409, 429)  # and 5xx: the server's trouble, which passes
LIMITED = 429
UNKNOWN_TO_YOU, FORBIDDEN, NOT_THERE = 401, 403, 404
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pacing:
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


class RefusedError(Exception):
    """A server that works and doesn't take this request; the message says why."""


def judge_refusal(error: openai.APIStatusError) -> Exception:
    """What it means that a judge's server takes no such request, which doesn't pass."""
    status = error.status_code
    if status in (UNKNOWN_TO_YOU, FORBIDDEN):  # whose own words may hold the key
        return UsageError(
            f"the judge's server doesn't accept this key (status {status})",
            hint="judge_api_key_variable names the environment variable that holds the key",
        )
    if status == NOT_THERE:
        return UsageError(
            f"the judge's server doesn't know the model or the address (status {status}): {in_words(error)}",
            hint="earl judge check lists its models; an address usually ends in /v1",
        )
    return RefusedError(f"status {status}: {in_words(error)}")


async def persistently(
    call: Callable[[], Awaitable[Result]],
    pacing: Pacing,
    timeout: float,
    refusal: Callable[[openai.APIStatusError], Exception] = judge_refusal,
) -> Result:
    """What ``call`` gives within ``timeout`` seconds, called again while the failures are of the passing kind.

    Raises OutOfTriesError when they don't pass, and what ``refusal`` makes of others: RefusedError, and UsageError for
    a wrong key, address or model.
    """
    failed = limited = 0
    while True:
        try:
            async with asyncio.timeout(timeout):
                return await call()
        except (openai.OpenAIError, TimeoutError, ValueError) as error:
            status = error.status_code if isinstance(error, openai.APIStatusError) else None
            if isinstance(error, openai.APIStatusError) and status not in PASSING and error.status_code < 500:
                raise refusal(error) from error
            wait = _wished(error, pacing)
            failed, limited = failed + (status != LIMITED), limited + (status == LIMITED)
            last = in_words(error, timeout)
            if failed >= pacing.tries or limited > pacing.limits or (wait or 0) > pacing.patience:
                raise OutOfTriesError(last) from error
        await pacing.sleep(pacing.wait(failed + limited) if wait is None else wait + pacing.draw() * pacing.first)


def in_words(error: Exception, timeout: float = 0.0) -> str:
    """The failure in one line."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        words = body.get("message") or str(error)
        return f"status {error.status_code}: {words}" if error.status_code >= LIMITED else str(words)[:300]
    if isinstance(error, openai.APIConnectionError):
        return f"no connection: {error.__cause__ or error}"
    return f"no proper answer: {error}"


def _wished(error: Exception, pacing: Pacing) -> float | None:
    """The seconds that the server asks to wait, in its header Retry-After: as a number or as a date."""
    if not isinstance(error, openai.APIStatusError):
        return None
    text = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - pacing.now())
    except ValueError:
        return None
