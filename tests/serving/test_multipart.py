"""Forms: whatever clients write is read back, and whatever isn't a form is one clear refusal."""

from __future__ import annotations

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as some

from earl_cli.serving.errors import HttpError
from earl_cli.serving.request import MAX_PARTS, MAX_TEXT, Field, read_form, text

TYPE = "multipart/form-data; boundary=b"
NAMES = some.text(
    some.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1, max_size=20
)


def part(head: str, content: bytes = b"x") -> bytes:
    return f"--b\r\n{head}\r\n\r\n".encode() + content + b"\r\n"


@given(
    fields=some.dictionaries(NAMES, some.text(some.characters(exclude_categories=["Cs"]), max_size=40), max_size=4),
    file=some.binary(max_size=200) | some.lists(some.sampled_from([b"\r\n", b"--", b"-", b"\r", b"b"])).map(b"".join),
    name=NAMES,
)
def test_what_a_client_writes_is_read_back(fields: dict[str, str], file: bytes, name: str) -> None:
    request = httpx.Request("POST", "http://a/", data=fields, files={"image": (name, file)})
    body = request.read()
    found = read_form(request.headers["Content-Type"], body)
    assert found[-1] == Field("image", file, is_file=True)
    values = [text(field) for field in found[:-1]]
    assert values == list(fields.values())
    for field, wanted in zip(found, fields, strict=False):
        if not set(wanted) & set('"\\'):  # which clients escape in their own ways
            assert field.name == wanted


@given(
    body=some.binary(max_size=300)
    | some.lists(some.sampled_from([b"--b", b"\r\n", b"--", b":", b'; name="a"'])).map(b"".join)
)
def test_anything_is_a_form_or_refused(body: bytes) -> None:
    try:
        read_form(TYPE, body)
    except HttpError as refused:
        assert refused.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n",
        part('Content-Disposition: form-data; name="a"'),  # no end
        part("Content-Type: text/plain") + b"--b--",
        part("Content-Disposition: form-data") + b"--b--",
        part("Content-Disposition: form-data; name=a" + "x" * 5000) + b"--b--",
        b"--bb\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--b--",
        b"".join(part(f"Content-Disposition: form-data; name=a{n}") for n in range(MAX_PARTS + 1)) + b"--b--",
    ],
)
def test_broken_forms(body: bytes) -> None:
    with pytest.raises(HttpError, match="can't be read") as caught:
        read_form(TYPE, body)
    assert caught.value.status == 400


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=b"])
def test_other_types_are_named(kind: str) -> None:
    with pytest.raises(HttpError, match="multipart/form-data") as caught:
        read_form(kind, b"{}")
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        ('content-disposition: FORM-DATA; NAME="a"; filename="C:\\\\x"', True),
        ("Content-Disposition: form-data; name=a; filename*=UTF-8''x", True),
        ('Content-Type: text/plain\r\nContent-Disposition: form-data; name="a"', False),
        ('Content-Disposition: form-data; filename="; name=b"; name="a"', True),
    ],
)
def test_heads_in_other_spellings(head: str, wanted: bool) -> None:
    assert read_form(TYPE, b"preamble\r\n" + part(head) + b"--b--\r\nepilogue") == (Field("a", b"x", wanted),)


def test_texts_have_a_length_and_an_encoding() -> None:
    for content, message in ((b"x" * (MAX_TEXT + 1), "longer"), (b"\xff", "UTF-8")):
        with pytest.raises(HttpError, match=message) as caught:
            text(Field("prompt", content, is_file=False))
        assert caught.value.param == "prompt"
