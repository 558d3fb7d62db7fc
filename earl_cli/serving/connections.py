"""TCP connections, with a limit on how many are open: at the limit, an idle one is closed for a new one."""

from __future__ import annotations

import errno
import select
import socket
import socketserver
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from earl_cli.errors import UsageError
from earl_cli.serving.errors import report
from earl_cli.serving.limits import network

FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
POLL_GONE: int | None = getattr(select, "POLLRDHUP", None)  # of Linux; also true while there are unread bytes


def is_gone(connection: socket.socket) -> bool:
    """Whether the other side has closed; its unread bytes are kept."""
    if POLL_GONE is not None:
        poll = select.poll()
        poll.register(connection, POLL_GONE)
        return bool(poll.poll(0))
    timeout = connection.gettimeout()
    try:
        connection.settimeout(0)
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(timeout)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each connection, ``most`` at once; the port is bound at once, connections come after `listen`.

    At the limit, a new connection closes the one that has been idle longest, of the address with most idle ones.

    Raises UsageError for a port or host that can't be had.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, most: int) -> None:
        self._most = most
        self._open: dict[socket.socket, str] = {}
        self._idle: dict[socket.socket, str] = {}  # their addresses, the longest idle first
        self._busy, self._changed = 0, threading.Condition()
        with _explained(host, port):
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, address = found[0][0], found[0][4]
            super().__init__((str(address[0]), port), socketserver.BaseRequestHandler, bind_and_activate=False)
            try:
                self.server_bind()
            except OSError:
                self.server_close()
                raise

    @property
    def host(self) -> str:
        """The address that it is bound to."""
        return str(self.server_address[0])

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        return int(self.server_address[1])

    @property
    def page_address(self) -> str:
        """Where a browser on this machine finds it, with a slash at the end."""
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"

    def listen(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        """Accept connections, once `serve_forever` runs."""
        self.RequestHandlerClass = handler
        with _explained(self.host, self.port):
            self.server_activate()

    def mark_idle(self, connection: socket.socket) -> None:
        """This connection has no request: it may be closed for another one at any time."""
        with self._changed:
            if connection in self._open:
                self._idle[connection] = self._open[connection]

    @contextmanager
    def answering(self, connection: socket.socket) -> Iterator[None]:
        """A request is being answered, which `drain` waits for. ConnectionError if its connection was closed."""
        with self._changed:
            if self._idle.pop(connection, None) is None:
                raise ConnectionError
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def drain(self, timeout: float) -> None:
        """Accepts no new connection, and waits until every request is answered, at most ``timeout`` seconds."""
        self.server_close()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, timeout)

    def process_request(self, request: Any, client_address: Any) -> None:
        """As for any server with threads; at the limit of connections the client gets the status 503."""
        if not self._admit(request, str(client_address[0])):
            request.setblocking(False)
            try:
                request.send(FULL)
            except OSError:
                pass
            finally:
                self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As for any server with threads."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _admit(self, connection: socket.socket, address: str) -> bool:
        with self._changed:
            if len(self._open) >= self._most:
                if not self._idle:
                    return False
                most = Counter(self._idle.values()).most_common(1)[0][0]
                oldest = next(each for each, address_of in self._idle.items() if address_of == most)
                self._forget(oldest)
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread closes it
            self._open[connection] = self._idle[connection] = network(address)
        return True

    def _forget(self, connection: socket.socket) -> None:
        with self._changed:
            self._open.pop(connection, None)
            self._idle.pop(connection, None)

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """A client that disconnects is not reported."""
        if (failure := sys.exception()) is not None and not isinstance(failure, OSError):
            report(failure)


@contextmanager
def _explained(host: str, port: int) -> Iterator[None]:
    """Failures to get an address, as messages."""
    try:
        yield
    except socket.gaierror:
        raise UsageError("this machine has no such name or address", where=f"--host {host}") from None
    except OverflowError:
        raise UsageError("no such port", where=f"--port {port}") from None
    except OSError as error:
        whys = {errno.EADDRINUSE: "this port is taken", errno.EACCES: "this port needs more rights"}
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError("this machine doesn't have this address", where=f"--host {host}") from None
        if error.errno not in whys:
            raise
        hint = f"--port {port + 1 if port > 1023 else 8360}, or --port 0 for any that is free"
        raise UsageError(whys[error.errno], where=f"--port {port}", hint=hint) from None
