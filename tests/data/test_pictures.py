"""Pictures in every form in which data sets hold them; URLs only where they were asked for."""

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

from earl_cli.data import pictures
from earl_cli.data.pictures import picture_bytes
from earl_cli.data.sources import BadRowError


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
    ],
)
def test_each_form_gives_the_file(value: Any, tmp_path: Path) -> None:
    (tmp_path / "a picture.png").write_bytes(CONTENT)
    assert picture_bytes(value, str(tmp_path)) == CONTENT


def test_a_pillow_image_keeps_its_pixels() -> None:
    image = Image.new("RGBA", (3, 2), (1, 2, 3, 4))
    assert Image.open(io.BytesIO(picture_bytes(image, None))).getpixel((0, 0)) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("value", "base", "message"),
    [
        (None, ".", "a NoneType is no picture"),
        (7, ".", "a int is no picture"),
        ({"bytes": None, "path": None}, ".", "is no picture"),
        ("gone.png", ".", "there is no such file"),
        ("a.png", None, "no folder that it could count from"),
        ("/etc/hostname", None, "no folder that it could count from"),
        ("data:image/png;base64,!!!!", None, "base64 is damaged"),
    ],
)
def test_what_is_no_picture(value: Any, base: str | None, message: str) -> None:
    with pytest.raises(BadRowError, match=message) as caught:
        picture_bytes(value, base)
    assert caught.value.kind == "picture"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server that is down for the first request of every path, and all the paths that it was asked for."""
    asked: list[str] = []
    monkeypatch.setattr(pictures.time, "sleep", lambda _seconds: None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = self.path == "/a.png"
            self.send_response(503 if asked.count(self.path) == 1 else 200 if found else 404)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()
    running.server_close()


def test_urls_are_fetched_only_on_request(server: tuple[str, list[str]]) -> None:
    address, asked = server
    with pytest.raises(BadRowError, match="--allow-urls"):
        picture_bytes(f"{address}/a.png", None)
    assert asked == []
    assert picture_bytes(f"{address}/a.png", None, urls=True) == CONTENT
    assert asked == ["/a.png"] * 2
    with pytest.raises(BadRowError, match="404") as caught:
        picture_bytes(f"{address}/gone.png", None, urls=True)
    assert caught.value.kind == "url"
    assert asked.count("/gone.png") == 2
