"""Requests for edits: multipart/form-data (RFC 7578) parsed in memory, then every field of the protocol checked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from earl_cli.config.sampling import PARAMETERS, SEEDS, kind_of, problem
from earl_cli.models.abilities import MAX_INSTRUCTION
from earl_cli.serving.errors import HttpError
from earl_cli.serving.limits import ServerLimits

MAX_PARTS = 64
MAX_HEAD = 2048
MAX_TEXT = 65536
MAX_DIGITS = 32
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:[ \t]*form-data[ \t]*(;.*)$", re.IGNORECASE | re.MULTILINE)
_PARAMETER = re.compile(rb';[ \t]*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')
OutputFormat = Literal["png", "jpeg", "webp"]
FORMATS: tuple[OutputFormat, ...] = ("png", "jpeg", "webp")
IMAGES = ("image", "image[]")
IGNORED = frozenset(("user", "quality", "moderation", "input_fidelity", "output_compression", "partial_images"))
KNOWN = (
    *("prompt", "n", "model", "size", "response_format", "output_format", "background", "stream"),
    *("seed", "progress", *(each.name for each in PARAMETERS)),
)
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Field:
    """One field: ``is_file`` where the client gave a file's name."""

    name: str
    content: bytes
    is_file: bool


def read_form(content_type: str, body: bytes) -> tuple[Field, ...]:
    """The form's fields in order. HttpError (400) for an incomplete or malformed form."""
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/form-data") or found is None:
        raise HttpError(415, "send a form: multipart/form-data, with the image as a file", code="wrong_type")
    boundary = f"--{found[1] or found[2]}".encode("latin-1", "replace")
    return tuple(_field(head, content) for head, content in _parts(body, boundary))


def text(field: Field) -> str:
    """A field's text. HttpError if it is too long or isn't UTF-8."""
    if len(field.content) > MAX_TEXT:
        raise HttpError(400, f"{field.name} is longer than {MAX_TEXT:,} bytes", param=field.name)
    try:
        return field.content.decode("utf-8")
    except UnicodeDecodeError:
        raise HttpError(400, f"{field.name} isn't text in UTF-8", param=field.name) from None


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Head and content of every part; bytes before the first boundary and after the last are ignored."""
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


def _broken(why: str) -> HttpError:
    return HttpError(400, f"this form can't be read: {why}", code="broken_form")


@dataclass(frozen=True)
class ImageEditRequest:
    """A parsed form. ``sampling`` has only the fields that were sent; ``size`` is "WxH", None for the photo's own.

    ``format`` None stands for that of the photo. With ``stream`` the response is a stream of events instead of one
    document, with ``progress`` also progress events.
    """

    image: bytes
    prompt: str
    seeds: tuple[int, ...]
    sampling: Mapping[str, float]
    size: str | None
    format: OutputFormat | None
    stream: bool
    progress: bool


def parse_request(fields: Sequence[Field], model: str, limits: ServerLimits) -> ImageEditRequest:
    """The request in a form for ``model``. HttpError (400, or 404 for another model) names the field at fault."""
    images = [field for field in fields if field.name in IMAGES]
    values: dict[str, str] = {}
    for field in fields:
        if field.name in IMAGES or field.name in IGNORED:
            continue
        if field.name == "mask":
            raise HttpError(400, "masks aren't supported: describe in the prompt what to change", param="mask")
        if field.name not in KNOWN:
            name = field.name[:64]
            raise HttpError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        if field.name in values:
            raise HttpError(400, f"{field.name} is given more than once", param=field.name)
        values[field.name] = text(field).strip() if field.name != "prompt" else text(field)
    _check_model(values.get("model"), model)
    prompt = values.get("prompt", "")
    if not prompt.strip():
        raise HttpError(400, "the instruction is missing: describe in prompt what to change", param="prompt")
    if len(prompt) > MAX_INSTRUCTION:
        raise HttpError(400, f"the instruction is longer than {MAX_INSTRUCTION:,} characters", param="prompt")
    _check_choice(values, "response_format", ("b64_json",), "images are returned as b64_json, never as a URL")
    _check_choice(values, "background", ("auto", "opaque"), "a background can't be made transparent")
    count = _whole_number(values, "n", 1, limits.max_variants)
    first = _whole_number(values, "seed", 0, SEEDS - 1)
    first = secrets.randbelow(SEEDS) if first is None else first
    return ImageEditRequest(
        image=_only(images),
        prompt=prompt,
        seeds=tuple((first + index) % SEEDS for index in range(count or 1)),
        sampling=_sampling(values),
        size=None if values.get("size", "") in ("", "auto") else values["size"],
        format=_format(values.get("output_format", "png")),
        stream=_flag(values, "stream"),
        progress=_flag(values, "progress"),
    )


def _only(images: Sequence[Field]) -> bytes:
    if not images:
        raise HttpError(400, "the image is missing: send it as a file named image", param="image")
    if len(images) > 1:
        raise HttpError(400, f"one image at a time, not {len(images)}", param="image")
    if not images[0].is_file:
        what = "image is text, not a file: send the image itself, no address and no path"
        raise HttpError(400, what, param="image")
    return images[0].content


def _check_model(named: str | None, model: str) -> None:
    if named and named != model:
        name = named[:100]
        what = f"The model `{name}` does not exist. This server has `{model}`."
        raise HttpError(404, what, param="model", code="model_not_found")


def _check_choice(values: Mapping[str, str], name: str, choices: tuple[str, ...], why: str) -> None:
    if values.get(name) and values[name] not in choices:
        raise HttpError(400, why, param=name)


def _format(value: str) -> OutputFormat | None:
    if value in ("", "source"):
        return None if value else "png"
    for known in FORMATS:
        if value.lower() == known or (value.lower(), known) == ("jpg", "jpeg"):
            return known
    raise HttpError(400, f"output_format is one of {', '.join(FORMATS)}", param="output_format")


def _flag(values: Mapping[str, str], name: str) -> bool:
    value = values.get(name, "").lower()
    if value not in ("", "true", "false", "1", "0"):
        raise HttpError(400, f"{name} is true or false", param=name)
    return value in ("true", "1")


def _whole_number(values: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    """The field's value; None where it is absent or empty."""
    text = values.get(name)
    if not text:
        return None
    number = _parsed(text, int)
    if number is None or not least <= number <= most:
        raise HttpError(400, f"{name} is a whole number from {least} to {most}", param=name)
    return number


def _sampling(values: Mapping[str, str]) -> dict[str, float]:
    """The sampling parameters that the form has; an empty field counts as absent."""
    found = {}
    for parameter in PARAMETERS:
        if text := values.get(parameter.name):
            value = _parsed(text, kind_of(parameter))
            wrong = problem(parameter, text if value is None else value)
            if value is None or wrong:
                raise HttpError(400, f"{parameter.name} {wrong}", param=parameter.name)
            found[parameter.name] = value
    return found


def _parsed(text: str, kind: Callable[[str], Number]) -> Number | None:
    try:
        return kind(text) if len(text) <= MAX_DIGITS else None
    except ValueError:
        return None
