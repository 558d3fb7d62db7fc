"""HTTP requests as they come over a connection to `earl serve`, up to the fields of a form."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from fuzzing import Room
from image_files import file_of
from PIL import Image

from earl_cli.errors import EarlError
from earl_cli.images.image_file import open_image
from earl_cli.serving.errors import HttpError
from earl_cli.serving.http1 import HttpConnection
from earl_cli.serving.limits import ServerLimits
from earl_cli.serving.request import parse_request, read_form

PICTURE = file_of(Image.new("RGB", (8, 8), "red"))
BODY = (
    b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nmake it snowy\r\n'
    b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n2\r\n'
    b'--b\r\nContent-Disposition: form-data; name="size"\r\n\r\n64x64\r\n'
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PICTURE + b"\r\n--b--\r\n"
)
HEAD = b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
GOOD = {
    "length": HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
    "two": b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET http://b/?c HTTP/1.1\r\nHost: a\r\n\r\n",
}
SNIPPETS = (
    b"\r\n", b"\n", b"\r", b"\0", b": ", b"Content-Length: 99999999999999999999\r\n", b"Content-Length: -1\r\n",
    b"--b--", b"--b\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Expect: 100-continue\r\n", b"Host: b\r\n", b"ffffffffffffffff\r\n", b"0\r\n\r\n", b"Upgrade: h2c\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\1\2\0", b"HTTP/9.9", b'name="' + b"\\" * 500,
    b'name="' + b"a" * 3000, b";" * 2000, b"filename*=utf-8''%ff", b"boundary=" + b"b" * 100, b" " * 5000,
    b'--b\r\nContent-Disposition: form-data; name="seed"\r\n\r\n' + b"9" * 6000 + b"\r\n",
    b'--b\r\nContent-Disposition: form-data; name="size"\r\n\r\n999999999x999999999\r\n',
    b'--b\r\nContent-Disposition: form-data; name="top_p"\r\n\r\nnan\r\n',
)  # fmt: skip
LIMITS = ServerLimits(upload=100_000)


def read(_name: str, content: bytes, _folder: Path) -> str:
    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=_send, args=(theirs, content))
    sender.start()
    try:
        wire = HttpConnection(ours, 1.0)
        heard = "nothing"
        while (request := wire.request(5.0)) is not None:
            heard = "request"
            _ = request.authority, request.path, request.header("host")
            if request.length != 0:
                body = wire.body(5.0, LIMITS.upload, lambda _count: None)
                form = parse_request(read_form(request.header("content-type") or "", body), "m", LIMITS)
                open_image(form.image, max_pixels=1_000_000)
                heard = "form"
            wire.begin(200, {"Content-Length": "0"})
            if not wire.end():
                break
        return heard
    finally:
        ours.close()
        sender.join()


def _send(theirs: socket.socket, content: bytes) -> None:
    with theirs:
        try:
            theirs.sendall(content)
            theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(65536):
                pass
        except OSError:
            pass


ROOM = Room("requests", GOOD, read, (HttpError, ConnectionError, EarlError), SNIPPETS, (), 400)
