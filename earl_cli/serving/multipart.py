"""Forms as browsers and HTTP clients send them (multipart/form-data, RFC 7578), read from a body that is in memory.

File names are ignored; contents are slices of the body, copied once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from earl_cli.serving.errors import RefusedError

MAX_PARTS = 64
MAX_HEAD = 2048
MAX_TEXT = 65536
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:[ \t]*form-data[ \t]*(;.*)$", re.IGNORECASE | re.MULTILINE)
_PARAMETER = re.compile(rb';[ \t]*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')


@dataclass(frozen=True)
class Field:
    """One field: ``is_file`` where the client gave a file's name."""

    name: str
    content: bytes
    is_file: bool


def read_form(content_type: str, body: bytes) -> tuple[Field, ...]:
    """The form's fields in order. RefusedError (400) for whatever isn't a whole form."""
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/form-data") or found is None:
        raise RefusedError(415, "send a form: multipart/form-data, with the picture as a file", code="wrong_type")
    boundary = f"--{found[1] or found[2]}".encode("latin-1", "replace")
    return tuple(_field(head, content) for head, content in _parts(body, boundary))


def text(field: Field) -> str:
    """A field's text. RefusedError if it is too long or isn't UTF-8."""
    if len(field.content) > MAX_TEXT:
        raise RefusedError(400, f"{field.name} is longer than {MAX_TEXT:,} bytes", param=field.name)
    try:
        return field.content.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(400, f"{field.name} isn't text in UTF-8", param=field.name) from None


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Head and content of every part; what stands before the first boundary and after the last is ignored."""
    delimiter = b"\r\n" + boundary
    at = 0 if body.startswith(boundary) else body.find(delimiter) + 2
    if at == 1:
        raise _broken("it has no part")
    for _ in range(MAX_PARTS + 1):
        at += len(boundary)
        if body[at : at + 2] == b"--":
            return
        line = body.find(b"\r\n", at, at + MAX_HEAD)
        if line < 0 or body[at:line].strip(b" \t"):
            raise _broken("a boundary isn't at the end of its line")
        start = line + 2
        blank = body.find(b"\r\n\r\n", line, start + MAX_HEAD)
        if blank < 0:
            raise _broken("a part has no head")
        end = body.find(delimiter, blank + 2)
        if end < 0:
            raise _broken("it ends in the middle of a part")
        yield body[start:blank], body[min(blank + 4, end) : end]
        at = end + 2
    raise _broken(f"it has more than {MAX_PARTS} parts")


def _field(head: bytes, content: bytes) -> Field:
    found = _DISPOSITION.search(head.replace(b"\r\n", b"\n"))
    parameters = (
        {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(found[1])} if found else {}
    )
    if b"name" not in parameters:
        raise _broken("a part has no name")
    name = re.sub(rb"\\(.)", rb"\1", parameters[b"name"]).decode("utf-8", "replace")
    return Field(name, content, b"filename" in parameters or b"filename*" in parameters)


def _broken(why: str) -> RefusedError:
    return RefusedError(400, f"this form can't be read: {why}", code="broken_form")
