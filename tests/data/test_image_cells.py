"""Images in every form in which data sets hold them; URLs only where they are allowed."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from earl_cli.data import image_cells as pictures
from earl_cli.data.image_cells import image_bytes, looks_like_image
from earl_cli.data.sources.base import BadRowError


def png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(encoded, "PNG")
    return encoded.getvalue()


CONTENT = png()
BASE64 = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "value",
    [
        CONTENT,
        bytearray(CONTENT),
        {"bytes": CONTENT, "path": "elsewhere.png"},
        {"bytes": None, "path": "a picture.png"},
        "a picture.png",
        BASE64,
        base64.urlsafe_b64encode(CONTENT).decode(),
        f"data:image/png;base64,{BASE64}",
        BASE64.rstrip("="),
        BASE64.encode(),
        "\r\n".join(BASE64[start : start + 60] for start in range(0, len(BASE64), 60)),
        [CONTENT],
        [{"bytes": CONTENT, "path": None}],
        ("a picture.png",),
        " a picture.png\n",
        "sub\\a.png",
        "fu\u0308r/e\u0301.png",  # as macOS spells them: NFD
        "f\u00fcr/\u00e9.png",
    ],
)
def test_each_form_gives_the_file(value: Any, tmp_path: Path) -> None:
    for name in ("a picture.png", "sub/a.png", "f\u00fcr/e\u0301.png"):  # the folder NFC, the file NFD
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CONTENT)
    assert image_bytes(value, str(tmp_path)) == CONTENT
    assert looks_like_image(value, str(tmp_path))


def test_a_git_lfs_pointer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(BadRowError, match=r"only a pointer of Git LFS.*git lfs pull"):
        image_bytes("a.png", str(tmp_path))


def test_base64_may_be_longer_than_a_file_name() -> None:
    content = bytes(range(256)) * 3
    assert image_bytes(base64.b64encode(content).decode(), "/") == content


@pytest.mark.parametrize("value", ["", "a cup of coffee", "make it snowy", 7, None, [], ["a cup"], {"bytes": None}])
def test_values_that_dont_look_like_an_image(value: Any, tmp_path: Path) -> None:
    assert not looks_like_image(value, str(tmp_path))


def test_a_pillow_image_keeps_its_pixels() -> None:
    image = Image.new("RGBA", (3, 2), (1, 2, 3, 4))
    assert Image.open(io.BytesIO(image_bytes(image, None))).getpixel((0, 0)) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("value", "base", "message"),
    [
        (None, ".", "a NoneType is neither an image"),
        (7, ".", "a int is neither an image"),
        ({"bytes": None, "path": None}, ".", "is neither an image"),
        ("", ".", "an empty text is neither an image"),
        ([], ".", "a list of 0, where"),
        ([CONTENT] * 3, ".", "a list of 3, where one image is expected"),
        ("gone.png", ".", "there is no such file"),
        ("a.png", None, "no folder for relative paths"),
        ("/etc/hostname", None, "no folder for relative paths"),
        ("data:image/png;base64", ".", "a data: URL without a comma"),
        ("data:image/png;base64,!!!!", None, "base64 is damaged"),
    ],
)
def test_values_that_are_no_image(value: Any, base: str | None, message: str) -> None:
    with pytest.raises(BadRowError, match=message) as caught:
        image_bytes(value, base)
    assert caught.value.kind == "image"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server that is down for the first request of every path, and all the paths that were requested."""
    requested: list[str] = []
    monkeypatch.setattr(pictures.time, "sleep", lambda _seconds: None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            found = self.path == "/a.png"
            self.send_response(503 if requested.count(self.path) == 1 else 200 if found else 404)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", requested
    running.shutdown()
    running.server_close()


def test_urls_are_fetched_only_on_request(server: tuple[str, list[str]]) -> None:
    address, requested = server
    with pytest.raises(BadRowError, match="--allow-urls"):
        image_bytes(f"{address}/a.png", None)
    assert requested == []
    assert image_bytes(f"{address}/a.png", None, urls=True) == CONTENT
    assert requested == ["/a.png"] * 2
    with pytest.raises(BadRowError, match="only http and https"):
        image_bytes("s3://bucket/a.png", ".", urls=True)
    with pytest.raises(BadRowError, match="404") as caught:
        image_bytes(f"{address}/gone.png", None, urls=True)
    assert caught.value.kind == "url"
    assert requested.count("/gone.png") == 2
