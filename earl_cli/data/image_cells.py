"""An image as data sets hold it (bytes, a path, base64, a Pillow image, a URL), as bytes; nothing is decoded here.

URLs are fetched only if the caller allows it.
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
    """The content of an image file.

    ``value`` is bytes, a Pillow image, a mapping with ``bytes`` or ``path`` (as in Parquet data sets), a list of one of
    these, or a text: a path relative to the folder ``base`` (None: no paths), base64, a data: URL or, with ``urls``, an
    http URL. Raises BadRowError for anything else and for what can't be read.
    """
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise BadRowError("image", f"a list of {len(value)}, where one image is expected")
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
        raise BadRowError("image", f"a {type(value).__name__} is neither an image nor a path")
    return _from_text(value, base, urls=urls)


def looks_like_image(value: Any, base: str | None) -> bool:
    """Whether `image_bytes` would take this for an image and not for text, without reading it."""
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
        raise BadRowError("image", "an empty text is neither an image nor a path")
    if value.startswith("data:"):
        _, comma, data = value.partition(",")
        if not comma:
            raise BadRowError("image", f"{_short(value)} is a data: URL without a comma")
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
        raise BadRowError("image", f"{_short(value)} is a path, and this data has no folder for relative paths")
    raise BadRowError("image", "there is no such file", where=_short(str(Path(base) / value)))


def find_file(base: Path, name: str) -> Path | None:
    """The file that a list names, also in another system's spelling: backslashes as on Windows, or letters and accents
    as separate characters (NFD) as on macOS.
    """
    if len(name) > _MAX_PATH_LENGTH:
        return None
    for spelling in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
        for path in (base / spelling, _in_stored_form(base, Path(spelling))):
            if path is not None and _is_file(path):
                return path
    return None


def _in_stored_form(base: Path, path: Path) -> Path | None:
    """``path`` in the Unicode form in which its folders spell it."""
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
    """The names in a folder that aren't ASCII, by their composed form (NFC)."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return {}
    return {unicodedata.normalize("NFC", name): name for name in names if not name.isascii()}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # base64 is too long for a name
        return False


def _one_line(text: str) -> str:
    return text.strip().replace("\r", "").replace("\n", "")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadRowError("image", f"the file has more than {MAX_BYTES:,} bytes", where=str(path))
        content = path.read_bytes()
    except OSError as error:
        raise BadRowError("image", f"this file can't be read: {error.strerror}", where=str(path)) from None
    if content.startswith(LFS_POINTER):
        raise BadRowError("image", LFS_MESSAGE, where=str(path), hint=LFS_HINT)
    return content


def _decode_base64(text: str) -> bytes:
    try:
        plain = _one_line(text).rstrip("=").translate(str.maketrans("-_", "+/"))
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRowError("image", f"this base64 is damaged: {error}") from None


def _fetch(url: str) -> bytes:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                content: bytes = response.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise BadRowError("url", f"more than {MAX_BYTES:,} bytes", where=_short(url))
            return content
        except (OSError, ValueError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if final or attempt == ATTEMPTS:
                raise BadRowError("url", f"not fetched: {error}", where=_short(url)) from None
            time.sleep(2.0 ** (attempt - 1))
    raise AssertionError("unreachable")


def _short(text: str, length: int = 120) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
