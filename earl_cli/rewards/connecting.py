"""What each client of an OpenAI-compatible server needs: its address, a key that no message shows, its own loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import openai

from earl_cli.errors import UsageError

NO_KEY = "none"  # servers that want no key don't look at it
Result = TypeVar("Result")


def check_address(api_base: str, whose: str) -> None:
    """Raise UsageError unless this can be the address of ``whose`` server."""
    parts = urlsplit(api_base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        what = f"this is no address of {whose} server"
        raise UsageError(what, where=plain_address(api_base), hint="it looks like http://localhost:4877/v1")


def plain_address(api_base: str) -> str:
    """``api_base`` without a password."""
    parts = urlsplit(api_base)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def connect(api_base: str, api_key_variable: str, timeout: float) -> openai.AsyncOpenAI:
    """A client that tries everything once. It connects to nothing before it is used."""
    key = os.environ.get(api_key_variable) or NO_KEY
    return openai.AsyncOpenAI(base_url=api_base, api_key=key, max_retries=0, timeout=timeout)


def without_key(text: str, api_key_variable: str) -> str:
    """``text``, which may be a server's words, with *** for the key."""
    key = os.environ.get(api_key_variable)
    return text.replace(key, "***") if key else text


def apart(work: Callable[[], Result]) -> Result:
    """``work()``, on another thread if this one has a running event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as beside:
        return beside.submit(work).result()
