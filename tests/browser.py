"""A headless browser for tests of pages: found on this machine, or the test is skipped and says how to get one.

EARL_BROWSER names another program; with EARL_NEEDS_BROWSER=1 a test without a browser fails instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_browser() -> str | None:
    """The program of a Chromium, None if there is none."""
    named = os.environ.get("EARL_BROWSER")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A running browser. Its event loop runs as long, so that asyncio can't start another in this thread."""
    program = find_browser()
    if program is None:
        missing = "no Chromium was found: `make browser` installs one on Debian, EARL_BROWSER names another"
        if os.environ.get("EARL_NEEDS_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*QUIET, *as_root])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser,
    address: str,
    size: tuple[int, int] = (1280, 900),
    scheme: Literal["light", "dark"] = "light",
    script: bool = True,
    touch: bool = False,
) -> Iterator[Page]:
    """A page at a ``file:`` or local address. At the end it must have logged no error and requested nothing else."""
    errors: list[str] = []
    requested: list[str] = []
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        java_script_enabled=script,
        has_touch=touch,
        is_mobile=touch,
        ignore_https_errors=True,  # a test's server vouches for itself
    )
    page = context.new_page()

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            errors.append(message.text)

    def note(request: Request) -> None:
        requested.append(request.url)

    page.on("console", listen)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", note)
    page.set_default_timeout(10_000)
    page.goto(address)
    yield page
    elsewhere = [url for url in requested if not url.startswith(("data:", "blob:", address.partition("#")[0]))]
    context.close()
    assert not errors
    assert not elsewhere


def address(file: Path, fragment: str = "") -> str:
    return file.resolve().as_uri() + (f"#{fragment}" if fragment else "")
