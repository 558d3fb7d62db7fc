"""Connections: their number, who makes room, ports, and the end of a server."""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import Any

import pytest
from serving_servers import Gate, eventually, png, running

from earl_cli.serving.connections import Server, is_gone
from earl_cli.serving.limits import ServerLimits

HEALTH = b"GET /health HTTP/1.0\r\n\r\n"


def test_connections_that_do_nothing_make_room() -> None:
    with running(limits=ServerLimits(rate=0, connections=2)) as server:
        held = [socket.create_connection(server.place) for _ in range(6)]
        for connection in held:
            connection.sendall(b"GET ")
        for _ in range(3):
            assert server.raw(HEALTH).startswith(b"HTTP/1.1 200")
        assert held[0].recv(1) == b""
        for connection in held:
            connection.close()


def test_the_address_with_most_idle_connections_makes_room() -> None:
    server = Server("127.0.0.1", 0, 3)
    pairs = [socket.socketpair() for _ in range(4)]
    try:
        for (here, _), address in zip(pairs, ("10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.3"), strict=True):
            assert server._admit(here, address)
        assert [is_gone(there) for _, there in pairs] == [False, True, False, False]
    finally:
        server.server_close()
        for here, there in pairs:
            here.close()
            there.close()


def test_health_answers_while_one_address_has_all_requests_it_may_have() -> None:
    gate = Gate()
    with running(gate, ServerLimits(rate=0, requests=4, share=3, connections=6)) as server:
        slow = [socket.create_connection(server.place) for _ in range(8)]
        for connection in slow:
            connection.sendall(
                b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            )
        assert eventually(lambda: server.raw(HEALTH).startswith(b"HTTP/1.1 200"))
        refused = server.post(image=png(1))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "6")
        for connection in slow:
            connection.close()
        gate.open.set()
        assert eventually(lambda: server.post().status_code == 200)


def test_a_new_connection_is_refused_while_all_others_are_busy() -> None:
    gate = Gate()
    with running(gate, ServerLimits(rate=0, connections=1)) as server:
        thread = threading.Thread(target=server.post)
        thread.start()
        assert gate.reached.acquire(timeout=10)
        assert server.raw(b"").startswith(b"HTTP/1.1 503")
        gate.open.set()
        thread.join(20)
        assert eventually(lambda: server.raw(HEALTH).startswith(b"HTTP/1.1 200"))


def test_bytes_that_wait_do_not_hide_that_a_client_went_away() -> None:
    here, there = socket.socketpair()
    with here:
        there.sendall(b"GET / HTTP/1.1")
        assert not is_gone(here)
        there.close()
        assert is_gone(here)


def test_a_port_that_is_taken_is_known_at_once() -> None:
    with running() as server, pytest.raises(Exception, match="taken"):
        Server("127.0.0.1", server.server.port, 4)
    first, second = Server("127.0.0.1", 0, 4), None
    try:
        second = Server("127.0.0.1", first.port, 4)  # both may bind before one listens
        first.listen(object)  # type: ignore[arg-type]
        with pytest.raises(Exception, match="taken"):
            second.listen(object)  # type: ignore[arg-type]
    finally:
        first.server_close()
        if second:
            second.server_close()


def test_a_signal_just_after_a_connection_came_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"hello")

    class Watched(Server):
        def process_request_thread(self, *args: Any) -> None:
            super().process_request_thread(*args)
            answered.set()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        assert answered.wait(20)
        raise SystemExit(143)

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    server = Watched("127.0.0.1", 0, 1)
    server.listen(Answer)
    with socket.create_connection((server.host, server.port)), pytest.raises(SystemExit):
        server.handle_request()
    server.server_close()
