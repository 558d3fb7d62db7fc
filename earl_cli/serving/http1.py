"""HTTP/1.1 over one connection: requests in, responses out, each with limits on bytes and seconds.

h11 reads and writes the protocol, and refuses messages that a proxy and a server could read differently.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import responses

import h11

from earl_cli.serving.errors import HttpError

HEAD_BYTES = 65536
MAX_HEADERS = 100
PIECE = 65536
LINGER_SECONDS = 5.0
VERSIONS = ("1.0", "1.1")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


@dataclass(frozen=True)
class HttpRequest:
    """The head of a request; ``length`` is the bytes of its body, None where they come in chunks."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    length: int | None

    def header(self, name: str) -> str | None:
        """The values of all headers of this name; None if there is none."""
        values = [value for each, value in self.headers if each == name.lower()]
        return ", ".join(values) if values else None

    @property
    def authority(self) -> str | None:
        """The host that it is for: in its target where that is a whole address (RFC 9112, 3.2.2), else its Host."""
        found = _ABSOLUTE.match(self.target)
        return found[1] if found else self.header("Host")

    @property
    def path(self) -> str:
        """The path of the target, without a query."""
        found = _ABSOLUTE.match(self.target)
        return self.target[found.end() if found else 0 :].partition("?")[0] or "/"


class HttpConnection:
    """A connection from its first request to its end. Sending a response has a ``timeout`` in seconds."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self.connection, self.timeout = connection, timeout
        self.has_begun = False  # the response
        self._is_whole = True  # the request, if one has begun
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._expect(0, 0, 0)

    def request(self, seconds: float) -> HttpRequest | None:
        """The head of the next request, None if there is none. HttpError for a malformed one.

        TimeoutError if it isn't there after so many seconds, the pause before it included.
        """
        self.has_begun = False
        self._expect(seconds, HEAD_BYTES, 431)
        event = self._event()
        if not isinstance(event, h11.Request):
            return None
        version = event.http_version.decode("ascii")
        if version not in VERSIONS:
            raise HttpError(505, "this server speaks HTTP/1.1")
        if len(event.headers) > MAX_HEADERS:
            raise HttpError(431, f"the request has more than {MAX_HEADERS} headers")
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
        fields = dict(headers)
        in_chunks = "transfer-encoding" in fields
        if in_chunks and ("content-length" in fields or version == "1.0"):
            raise HttpError(400, "the length of this request's body is given in two ways")
        length = None if in_chunks else int(fields.get("content-length", 0))
        if length == 0:
            self._event()  # its end
        return HttpRequest(event.method.decode("ascii"), event.target.decode("ascii"), version, headers, length)

    def body(self, seconds: float, most: int, on_bytes: Callable[[int], None]) -> bytes:
        """The body of the request. HttpError if it has more than ``most`` bytes, or malformed chunks.

        ``on_bytes`` is called with the number of bytes before they are kept. TimeoutError after so many seconds,
        ConnectionError if the client disconnects.
        """
        self._expect(seconds, 2 * most + PIECE, 413)  # the framing of chunks counts as well
        if self._http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        pieces: list[bytes] = []
        left = most
        while isinstance(event := self._event(), h11.Data):
            left -= len(event.data)
            if left < 0:
                raise HttpError(413, f"the request has more than {most:,} bytes, the limit", code="too_large")
            on_bytes(len(event.data))
            pieces.append(bytes(event.data))
        return b"".join(pieces)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of a response. The connection ends after it unless the whole request has been read."""
        self.has_begun = True
        fields = dict(headers)
        if not self._is_whole:
            fields["Connection"] = "close"
        reason = responses.get(status, "").encode()
        self._send(h11.Response(status_code=status, headers=[*fields.items()], reason=reason))

    def write(self, content: bytes) -> None:
        """More of the response's body."""
        self._send(h11.Data(data=content))

    def end(self) -> bool:
        """The end of a response; whether another request may follow."""
        self._send(h11.EndOfMessage())
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def close(self, most: int) -> None:
        """Ends the connection, and reads at most so many bytes that the client still sends.

        A connection that is closed with bytes unread is reset, and then its client may never see the response.
        """
        is_sending = self.has_begun and (not self._is_whole or self._http.trailing_data[0])
        self._expect(LINGER_SECONDS, most, 413)
        with suppress(OSError, HttpError):
            self.connection.shutdown(socket.SHUT_WR)
            while is_sending and self._receive():
                pass

    def _expect(self, seconds: float, size: int, status: int) -> None:
        """From now on accept ``size`` bytes in so many seconds, however they are spread; more get the ``status``."""
        self._deadline, self._left, self._beyond = time.monotonic() + seconds, size, status

    def _receive(self) -> bytes:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        if self._left <= 0:
            raise HttpError(self._beyond, "more bytes came than a request may have", code="too_large")
        self.connection.settimeout(seconds)
        data = self.connection.recv(min(PIECE, self._left))
        self._left -= len(data)
        return data

    def _event(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = self._receive()
                if not data and (not self._is_whole or self._http.trailing_data[0]):
                    raise ConnectionError
                self._http.receive_data(data)
        except h11.RemoteProtocolError as failure:
            self._is_whole = False
            raise HttpError(failure.error_status_hint, str(failure).partition(": ")[0]) from None
        except HttpError:
            self._is_whole = False
            raise
        self._is_whole = isinstance(event, h11.EndOfMessage | h11.ConnectionClosed)
        return event

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        self.connection.settimeout(self.timeout)
        if data:
            self.connection.sendall(data)
