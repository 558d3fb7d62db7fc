"""A picture as data sets hold it (bytes, a path, base64, a Pillow image, a URL) becomes bytes; here nothing is decoded.

A URL is fetched only where that was asked for.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from earl_cli.data.sources import BadRowError

MOST_BYTES = 256_000_000
TRIES, PATIENCE = 3, 30.0
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}\s*")


def picture_bytes(value: Any, base: str | None, *, urls: bool = False) -> bytes:
    """The content of a picture's file.

    ``value``: bytes, a Pillow image, a mapping with ``bytes`` or ``path`` (as Parquet data sets have it), or a text:
    a path from the folder ``base`` on (None: paths are not followed), base64, a data: or an http URL (with ``urls``).
    Raises BadRowError if it is none of these or can't be had.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        encoded = io.BytesIO()
        value.save(encoded, "PNG")
        return encoded.getvalue()
    if not isinstance(value, str) or not value:
        raise BadRowError("picture", f"a {type(value).__name__} is no picture and no path of one")
    if value.startswith("data:"):
        return _decoded(value.partition(",")[2])
    if re.match(r"https?://", value):
        if not urls:
            raise BadRowError("url", f"{_short(value)} is a URL", hint="--allow-urls fetches it")
        return _fetched(value)
    if base is not None and (len(value) < 4096 and (Path(base) / value).is_file()):
        return _read(Path(base) / value)
    if _BASE64.fullmatch(value):
        return _decoded(value)
    if base is None:
        raise BadRowError("picture", f"{_short(value)} is a path, and this data has no folder that it could count from")
    raise BadRowError("picture", "there is no such file", where=_short(str(Path(base) / value)))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadRowError("picture", f"the file has more than {MOST_BYTES:,} bytes", where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise BadRowError("picture", f"this file can't be read: {error.strerror}", where=str(path)) from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip().translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRowError("picture", f"this base64 is damaged: {error}") from None


def _fetched(url: str) -> bytes:
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                content: bytes = answer.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise BadRowError("url", f"more than {MOST_BYTES:,} bytes", where=_short(url))
            return content
        except (OSError, ValueError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if final or not left:
                raise BadRowError("url", f"not fetched: {error}", where=_short(url)) from None
            time.sleep(2.0 ** (TRIES - 1 - left))
    raise AssertionError("unreachable")


def _short(text: str, length: int = 120) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
