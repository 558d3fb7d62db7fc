"""Retries of calls to an OpenAI-compatible server: which failures are transient, how long to wait, what to report."""

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

RATE_LIMITED = 429
RETRYABLE = (408, 409, RATE_LIMITED)
"""Status codes of transient failures; those from 500 on count as well."""
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, PAYLOAD_TOO_LARGE = 401, 403, 404, 413
MAX_MESSAGE_LENGTH = 300
"""Characters of a server's message that an error shows."""
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with full jitter: the delay before attempt n is uniform in [0, first_delay * 2**n] seconds,
    at most ``max_delay``.

    A call has ``attempts``, and ``rate_limit_attempts`` more that may end in status 429. A server's Retry-After header
    is followed up to ``max_retry_after`` seconds. ``sleep``, ``random`` and ``now`` are replaced in tests.
    """

    attempts: int = 6
    rate_limit_attempts: int = 24
    first_delay: float = 0.5
    max_delay: float = 30.0
    max_retry_after: float = 120.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random
    now: Callable[[], float] = time.time

    def delay(self, failures: int) -> float:
        """Seconds before the next attempt after this many failures."""
        return self.random() * min(self.max_delay, self.first_delay * 2.0**failures)


class RetriesExhaustedError(Exception):
    """Every attempt failed; the message describes the last failure."""


class ApiRefusedError(Exception):
    """The server works and refuses this request; the message says why."""


class NotFoundError(UsageError):
    """The server doesn't know the model, or has nothing at the address."""


class TooLargeError(ApiRefusedError):
    """The request has more bytes than the server accepts."""


async def call_with_retries(
    call: Callable[[], Awaitable[ResultT]],
    backoff: Backoff,
    timeout: float,
    refusal: Callable[[openai.APIStatusError], Exception],
) -> ResultT:
    """The result of ``call``, repeated while it fails in a transient way; each attempt has ``timeout`` seconds.

    Raises RetriesExhaustedError when the failures persist, what ``refusal`` returns for a permanent status, and
    UsageError for a connection that can't work as configured, such as an untrusted certificate. Causes are dropped from
    these errors: they quote the server, which may repeat the key.
    """
    failures = rate_limited = 0
    while True:
        try:
            async with asyncio.timeout(timeout):
                return await call()
        except (openai.OpenAIError, TimeoutError, ValueError, RecursionError) as error:
            status = error.status_code if isinstance(error, openai.APIStatusError) else None
            if isinstance(error, openai.APIStatusError) and status not in RETRYABLE and error.status_code < 500:
                raise refusal(error) from None
            if configuration_error := _configuration_error(error):
                raise configuration_error from None
            retry_after = _retry_after(error, backoff)
            failures += status != RATE_LIMITED
            rate_limited += status == RATE_LIMITED
            exhausted = failures >= backoff.attempts or rate_limited > backoff.rate_limit_attempts
            if exhausted or (retry_after or 0) > backoff.max_retry_after:
                raise RetriesExhaustedError(describe_error(error, timeout)) from None
        if retry_after is None:
            await backoff.sleep(backoff.delay(failures + rate_limited))
        else:
            await backoff.sleep(retry_after + backoff.random() * backoff.first_delay)


def describe_error(error: Exception, timeout: float = 0.0) -> str:
    """The failure of a call in one line."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        text = re.sub(r"<[^<>]*>", " ", str(body.get("message") or body.get("detail") or error))  # a proxy's HTML page
        text = " ".join(text.split())[:MAX_MESSAGE_LENGTH]
        return f"status {error.status_code}: {text}" if error.status_code >= RATE_LIMITED else text
    if isinstance(error, openai.APIConnectionError):
        causes = list(_causes(error))
        if any(isinstance(each, socket.gaierror) for each in causes):
            return "no connection: there is no host of that name, or no network"
        if any(isinstance(each, ConnectionRefusedError) for each in causes):
            return "no connection: nothing listens there"
        return f"no connection: {error.__cause__ or error}"
    return f"no proper answer: {' '.join(str(error).split())[:MAX_MESSAGE_LENGTH]}"


def _configuration_error(error: Exception) -> UsageError | None:
    """What the user has to change before the server can be reached at all."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            what = f"the server's certificate isn't trusted: {cause.verify_message or cause}"
            return UsageError(what, hint="SSL_CERT_FILE names a file with the certificate of its issuer")
        if isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
            return UsageError("the server speaks no TLS", hint="http:// in place of https://")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the last one first; all members of a group."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _causes(each)
        error = error.__cause__ or error.__context__


def _retry_after(error: Exception, backoff: Backoff) -> float | None:
    """Seconds that the header Retry-After gives, as a number or as a date; None without a readable one."""
    if not isinstance(error, openai.APIStatusError):
        return None
    text = error.response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - backoff.now()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)
