"""A picture as data sets hold it (bytes, a path, base64, a Pillow image, a URL) becomes bytes; here nothing is decoded.

A URL is fetched only where that was asked for.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import time
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from earl_cli.data.sources.base import LFS_HINT, LFS_MESSAGE, LFS_POINTER, BadRowError

MAX_BYTES = 256_000_000
ATTEMPTS, TIMEOUT = 3, 30.0
SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "ppm", "avif", "heic", "jxl")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}")
_BASE64_BYTES = re.compile(rb"[A-Za-z0-9+/_-]{32}")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_MAX_PATH_LENGTH = 4096


def image_bytes(value: Any, base: str | None, *, urls: bool = False) -> bytes:
    """The content of a picture's file.

    ``value``: bytes, a Pillow image, a mapping with ``bytes`` or ``path`` (as Parquet data sets have it), a list of one
    of these, or a text: a path from the folder ``base`` on (None: paths are not followed), base64, a data: or an http
    URL (with ``urls``). Raises BadRowError if it is none of these or can't be had.
    """
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise BadRowError("picture", f"a list of {len(value)}, where there must be one picture")
        return image_bytes(value[0], base, urls=urls)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        return _decode_base64(content.decode("ascii", "replace")) if _BASE64_BYTES.match(content) else content
    if isinstance(value, Image.Image):
        encoded = io.BytesIO()
        value.save(encoded, "PNG")
        return encoded.getvalue()
    if not isinstance(value, str):
        raise BadRowError("picture", f"a {type(value).__name__} is no picture and no path of one")
    return _from_text(value, base, urls=urls)


def looks_like_image(value: Any, base: str | None) -> bool:
    """Whether `image_bytes` would take this for a picture and not for words, by its looks alone."""
    if isinstance(value, list | tuple):
        return bool(value) and all(looks_like_image(each, base) for each in value)
    if isinstance(value, Mapping):
        return bool(value.get("bytes") or value.get("path"))
    if not isinstance(value, str):
        return isinstance(value, bytes | bytearray | memoryview | Image.Image)
    if value.startswith("data:image/") or _BASE64.fullmatch(_one_line(value)):
        return True
    if "\n" in value.strip() or len(value) > _MAX_PATH_LENGTH:
        return False
    if _URL.match(value) or value.strip().lower().endswith(tuple(f".{suffix}" for suffix in SUFFIXES)):
        return True
    return base is not None and find_file(Path(base), value) is not None


def _from_text(value: str, base: str | None, *, urls: bool) -> bytes:
    if not value.strip():
        raise BadRowError("picture", "an empty text is no picture and no path of one")
    if value.startswith("data:"):
        _, comma, data = value.partition(",")
        if not comma:
            raise BadRowError("picture", f"{_short(value)} is a data: URL without a comma")
        return _decode_base64(data)
    url = _URL.match(value)
    if url and url[1].lower() in ("http", "https"):
        if not urls:
            raise BadRowError("url", f"{_short(value)} is a URL", hint="--allow-urls fetches it")
        return _fetch(value)
    if url:
        raise BadRowError("url", f"{_short(value)} can't be fetched, only http and https can")
    if base is not None and (path := find_file(Path(base), value)) is not None:
        return _read(path)
    if _BASE64.fullmatch(_one_line(value)):
        return _decode_base64(value)
    if base is None:
        raise BadRowError("picture", f"{_short(value)} is a path, and this data has no folder that it could count from")
    raise BadRowError("picture", "there is no such file", where=_short(str(Path(base) / value)))


def find_file(base: Path, name: str) -> Path | None:
    """The file that a list calls ``name``, also where that was written on another system: Windows separates folders by
    backslashes, and macOS takes letters and their accents apart (NFD) that others write as one (NFC)."""
    if len(name) > _MAX_PATH_LENGTH:
        return None
    for spelled in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
        for path in (base / spelled, _in_stored_form(base, Path(spelled))):
            if path is not None and _is_file(path):
                return path
    return None


def _in_stored_form(base: Path, path: Path) -> Path | None:
    """``path`` as its folders spell it, in whatever Unicode form."""
    if str(path).isascii():
        return None
    for part in path.parts:
        here = base / part
        if not part.isascii() and not os.path.lexists(here):
            here = base / _spellings(base).get(unicodedata.normalize("NFC", part), part)
        base = here
    return base


@lru_cache(64)
def _spellings(folder: Path) -> Mapping[str, str]:
    """The names in a folder by their composed form; of those in ASCII there is one form only."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return {}
    return {unicodedata.normalize("NFC", name): name for name in names if not name.isascii()}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # base64 makes names that are too long
        return False


def _one_line(text: str) -> str:
    return text.strip().replace("\r", "").replace("\n", "")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadRowError("picture", f"the file has more than {MAX_BYTES:,} bytes", where=str(path))
        content = path.read_bytes()
    except OSError as error:
        raise BadRowError("picture", f"this file can't be read: {error.strerror}", where=str(path)) from None
    if content.startswith(LFS_POINTER):
        raise BadRowError("picture", LFS_MESSAGE, where=str(path), hint=LFS_HINT)
    return content


def _decode_base64(text: str) -> bytes:
    try:
        plain = _one_line(text).rstrip("=").translate(str.maketrans("-_", "+/"))
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRowError("picture", f"this base64 is damaged: {error}") from None


def _fetch(url: str) -> bytes:
    for left in reversed(range(ATTEMPTS)):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                content: bytes = answer.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise BadRowError("url", f"more than {MAX_BYTES:,} bytes", where=_short(url))
            return content
        except (OSError, ValueError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if final or not left:
                raise BadRowError("url", f"not fetched: {error}", where=_short(url)) from None
            time.sleep(2.0 ** (ATTEMPTS - 1 - left))
    raise AssertionError("unreachable")


def _short(text: str, length: int = 120) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
