"""What each client of an OpenAI-compatible server needs: its address, a key that no message shows, its own loop."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import openai

from earl_cli.errors import UsageError
from earl_cli.openai_client.transport import LARGEST_REPLY, client_of

USUAL_KEY = "OPENAI_API_KEY"
"""The variable of the key unless another one is named; only this one may be missing, as local servers want none."""
NO_KEY = "none"  # servers that want no key don't look at it
SHORTEST_SECRET = 8  # characters; "EMPTY" and its like, which local servers want, hide nothing
CALLS = ("/chat/completions", "/completions", "/models", "/images/edits")
ResultT = TypeVar("ResultT")


def checked_address(api_base: str, whose: str) -> str:
    """The address without what people copy with it: blanks, slashes and a call's name at its end.

    Raises UsageError unless this can be the address of ``whose`` server.
    """
    address = api_base.strip().rstrip("/")
    for call in CALLS:
        address = address.removesuffix(call).rstrip("/")
    try:
        parts = urlsplit(address)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket without its other half
        right = False
    if not right:
        what = f"this is no address of {whose} server"
        raise UsageError(what, where=plain_address(api_base) or "''", hint="it looks like http://localhost:4877/v1")
    return address


def plain_address(api_base: str) -> str:
    """``api_base`` without a password."""
    try:
        parts = urlsplit(api_base)
    except ValueError:
        return api_base.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def key_of(api_key_variable: str) -> str | None:
    """The key in this environment variable, None if it is unset or blank. Raises UsageError for what can be no key."""
    key = os.environ.get(api_key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        what = "there are characters in it that no key has"
        raise UsageError(what, where=api_key_variable, hint="set it again, as ASCII on one line")
    return key or None


def without_key(api_key_variables: Collection[str]) -> list[str]:
    """Those of these variables that were chosen by a person and hold no key."""
    chosen = dict.fromkeys(each for each in api_key_variables if each != USUAL_KEY)
    return [each for each in chosen if key_of(each) is None]


def check_keys(api_key_variables: Collection[str]) -> None:
    """Raise UsageError that names all variables that are `without_key`."""
    if missing := without_key(api_key_variables):
        some = "variables are" if len(missing) > 1 else "variable is"
        what = f"the environment {some} not set, or empty: {', '.join(missing)}"
        raise UsageError(what, hint=" ".join(f"export {each}=…" for each in missing))


def connect(api_base: str, api_key_variable: str, timeout: float, largest: int = LARGEST_REPLY) -> openai.AsyncOpenAI:
    """A client that tries everything once and reads ``largest`` bytes of a reply; it connects when it is used.

    Raises UsageError as `key_of`, and for a proxy that can't be used.
    """
    key = key_of(api_key_variable) or NO_KEY
    client = client_of(api_base, timeout, largest)
    return openai.AsyncOpenAI(base_url=api_base, api_key=key, max_retries=0, timeout=timeout, http_client=client)


def without_secrets(text: str, api_key_variable: str, api_base: str = "") -> str:
    """``text``, which may be a server's words, with *** for the key, and for a password that is in the address."""
    parts = urlsplit(api_base)
    secrets = [os.environ.get(api_key_variable, "").strip()]
    if parts.password:
        user, password = unquote(parts.username or ""), unquote(parts.password)
        secrets += [base64.b64encode(f"{user}:{password}".encode()).decode(), password, parts.password]
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET or secret == parts.password:
            text = text.replace(secret, "***")
    return text


def apart(work: Callable[[], ResultT]) -> ResultT:
    """``work()``, on another thread if this one has a running event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as beside:
        return beside.submit(work).result()
