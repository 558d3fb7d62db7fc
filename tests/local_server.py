"""A web server on this machine for tests: a free port, a thread of its own, nothing that outlives `stop`."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOMENT = 0.01
PORTS = iter(range(20_000 + os.getpid() * 37 % 10_000, 32_000))
"""Below those that a system gives to connections; every process of the tests begins elsewhere."""


def free_port() -> int:
    """A free one that no other caller gets before it is used."""
    for port in PORTS:
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


class LocalServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1 until `stop`; ``owner`` decides what is answered."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: Any, handler: type[LocalHandler]) -> None:
        self.owner = owner
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> LocalServer:
        threading.Thread(target=self.serve_forever, args=(MOMENT,), daemon=True).start()
        return self

    def stop(self) -> None:
        """End every connection and listen no more; a second time is nothing."""
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is nothing to report."""


class LocalHandler(BaseHTTPRequestHandler):
    """Answers one connection; subclasses have do_GET and the like."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LocalServer

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """The owner keeps its own log."""

    def drop(self) -> None:
        """End the connection as if the server had died."""
        self.close_connection = True
        hang_up(self.connection)

    def send_error_of(self, status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        """An error in OpenAI's shape."""
        self.send_json(status, {"error": {"message": message, "type": "error", "code": status, **more}}, headers)

    def send_json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), headers or {})

    def send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        """``headers`` win over JSON's type and the true length."""
        self.send_response(status)
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in {**defaults, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was first
        return
