"""The HTTP side of ``earl serve``: who is let in, which address means what, and how answers look.

Nothing that a client sends is ever opened as a path or an address, and no answer holds a traceback.
"""

from __future__ import annotations

import hmac
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from earl_cli.console import console
from earl_cli.generation.loading import sampling_of
from earl_cli.images.picture import open_picture
from earl_cli.serving.answering import send_edits
from earl_cli.serving.asking import Asked, asked
from earl_cli.serving.connections import PatientReader, Server, TooLargeError
from earl_cli.serving.multipart import read_form
from earl_cli.serving.queue import Order
from earl_cli.serving.refusing import RefusedError, refusal, report
from earl_cli.serving.service import Service, is_loopback

HEAD_BYTES = 65536
LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
DRAIN_SECONDS = 5
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(server: Server, service: Service, on_ready: Callable[[], None]) -> None:
    """Answers until the process is told to stop; then whoever waits gets an answer within seconds."""

    class Bound(Handler):
        pass

    Bound.service = service
    server.listen(Bound)
    service.queue.start()
    try:
        on_ready()
        server.serve_forever(poll_interval=0.2)
    finally:
        service.queue.close()
        server.settle(seconds=2)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: Service
    server: Server

    def setup(self) -> None:
        super().setup()
        self.patience = PatientReader(self.connection)
        self.rfile = io.BufferedReader(self.patience)

    def handle(self) -> None:
        try:
            super().handle()
        except TooLargeError:
            self.requestline, self.request_version, self.command = "", self.protocol_version, "GET"
            self.send_error(431, "the head of the request is too large")
        except OSError:  # gone, or too slow
            return

    def handle_one_request(self) -> None:
        self.patience.expect(self.service.limits.head_seconds, HEAD_BYTES)
        self.has_begun, self.wants_continue, self.unread = False, False, 0
        super().handle_one_request()

    def handle_expect_100(self) -> bool:
        self.wants_continue = True  # said when the body is wanted
        return True

    def version_string(self) -> str:
        return "earl"

    def log_message(self, format: str, *args: Any) -> None:
        """What is worth a line is said where it happens."""

    def send_error(self, code: int, message: str | None = None, _explain: str | None = None) -> None:
        """Python's own complaints about a request, in the protocol's shape."""
        self.close_connection, self.request_version = True, self.protocol_version
        code = 405 if code == 501 else code
        self.send_refusal(RefusedError(code, message or self.responses.get(code, ("refused", ""))[0]))

    def do_GET(self) -> None:
        self._meet(self._get)

    def do_HEAD(self) -> None:
        self._meet(self._get)

    def do_POST(self) -> None:
        self._meet(self._post)

    # -- who is let in -------------------------------------------------------------------------------------------

    def _meet(self, meet: Callable[[str], None]) -> None:
        """Answer a request by ``meet``; whatever goes wrong is one answer, or the end of the connection."""
        with self.server.answering():
            try:
                self.unread = self._length()
                self._check_host()
                meet(self.path.partition("?")[0])
            except OSError as failure:
                self.close_connection = True
                if isinstance(failure, TimeoutError) and not self.has_begun:
                    self.send_refusal(RefusedError(408, "the request took too long to arrive"))
                return
            except Exception as failure:  # one answer for whatever it is
                refused = refusal(failure)
                if not isinstance(failure, RefusedError) and refused.status >= 500:
                    report(failure)
                self.close_connection = self.close_connection or self.has_begun
                if not self.has_begun:
                    self.send_refusal(refused)
            self._drain()

    def _length(self) -> int:
        """Bytes of the body."""
        said = self.headers.get_all("Content-Length", [])
        if self.headers.get("Transfer-Encoding") or len(set(said)) > 1:
            self.close_connection = True
            raise RefusedError(411, "send the body with one Content-Length")
        if said and not (said[0].isascii() and said[0].isdigit() and len(said[0]) < 20):
            self.close_connection = True
            raise RefusedError(400, "Content-Length isn't a number")
        return int(said[0]) if said else 0

    def _check_host(self) -> None:
        """Against pages elsewhere whose names are made to point here: a server of this machine has this machine's."""
        host = self.headers.get("Host", "").strip().lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self.service.is_local and name not in LOOPBACK_NAMES and not is_loopback(name):
            raise RefusedError(403, "this server answers to localhost only", code="wrong_host")

    def _check_origin(self) -> None:
        """Against pages elsewhere that post here; programs send neither of these."""
        origin = self.headers.get("Origin")
        host = self.headers.get("Host", "").strip().lower()
        foreign = origin is not None and urlsplit(origin.strip().lower()).netloc != host
        if foreign or self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise RefusedError(403, "pages of other sites may not ask this server", code="wrong_origin")

    def _check_key(self) -> None:
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        key = self.service.key
        if key is not None and not (
            kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), key.encode())
        ):
            raise RefusedError(401, "Incorrect API key provided.", code="invalid_api_key")

    def _check_rate(self) -> None:
        wait = self.service.rate.wait(str(self.client_address[0]))
        if wait > 0:
            what = f"more than {self.service.limits.rate} edits a minute; try again in {wait:.0f} s"
            raise RefusedError(429, what, code="rate_limit_exceeded", retry_after=wait)

    # -- what there is -------------------------------------------------------------------------------------------

    def _get(self, path: str) -> None:
        service = self.service
        if path in service.page:
            content, kind = service.page[path]
            self.send(200, content, kind, {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})
        elif path == "/health":
            health = service.health()
            self.send_json(200 if health["status"] == "ok" else 503, health)
        elif path == "/settings":
            self.send_json(200, service.settings())
        elif unquote(path) in ("/v1/models", f"/v1/models/{service.about.model}"):
            self._check_key()
            model = service.model()
            self.send_json(200, {"object": "list", "data": [model]} if path == "/v1/models" else model)
        elif path == "/v1/images/edits":
            raise RefusedError(405, "post a form here")
        elif path.startswith("/v1/models/"):
            raise RefusedError(404, "There is no such model here.", param="model", code="model_not_found")
        else:
            raise RefusedError(404, "There is nothing here.", code="not_found")

    def _post(self, path: str) -> None:
        if path != "/v1/images/edits":
            raise RefusedError(404, "There is nothing to post to here.", code="not_found")
        self._check_origin()
        self._check_key()
        self._check_rate()
        started = time.monotonic()
        order, wanted = self._order()
        ticket = self.service.queue.submit(order)
        try:
            send_edits(self, ticket, order, wanted)
        finally:
            self.service.queue.leave(ticket)
        size = f"{order.picture.rgb.width} x {order.picture.rgb.height}"
        many = f"{len(order.seeds)} edits" if len(order.seeds) > 1 else "an edit"
        console.note(f"{self.client_address[0]}: {many} of {size} pixels in {time.monotonic() - started:.1f} s")

    def _order(self) -> tuple[Order, Asked]:
        """The order that the body holds. While it is looked at, its bytes count among those of all requests."""
        service, limits = self.service, self.service.limits
        if not self.unread:
            raise RefusedError(411 if "Content-Length" not in self.headers else 400, "there is no form in this request")
        if self.unread > limits.upload:
            what = f"the request has {self.unread:,} bytes, more than the limit of {limits.upload:,}"
            raise RefusedError(413, what, param="image", code="too_large")
        service.queue.check_room()
        with service.budget.hold(self.unread) as granted:
            if not granted:
                raise RefusedError(503, "too many uploads at once; try again in a moment", retry_after=5)
            wanted = asked(read_form(self.headers.get("Content-Type", ""), self._body()), service.about.model, limits)
            with service.opening:
                picture = open_picture(wanted.image, name="image", max_pixels=limits.max_pixels)
        width, height = picture.rgb.size
        if wanted.size not in (None, f"{width}x{height}"):
            what = f"an edit has its photo's own size, here {width}x{height}: leave size away, or say auto"
            raise RefusedError(400, what, param="size")
        if width * height * len(wanted.seeds) > 2 * limits.max_pixels:
            raise RefusedError(400, "too many variants of so large a picture", param="n")
        sampling = sampling_of(asdict(service.about.sampling), wanted.sampling)
        return Order(picture, wanted.prompt, wanted.seeds, sampling), replace(wanted, image=b"")

    def _body(self) -> bytes:
        self.patience.expect(self.service.limits.body_seconds, self.unread)
        if self.wants_continue:
            self.connection.settimeout(self.service.limits.head_seconds)
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(self.unread)
        if len(body) < self.unread:
            raise ConnectionError
        self.unread = 0
        return body

    def _drain(self) -> None:
        """Take what is left of a body that isn't wanted, for a while, so that the client comes to read the answer."""
        if not self.unread:
            return
        self.close_connection = True
        try:
            self.patience.expect(DRAIN_SECONDS, 4 * self.service.limits.upload)
            while self.unread > 0 and (chunk := self.rfile.read1(65536)):
                self.unread -= len(chunk)
        except OSError:
            return

    # -- answers -------------------------------------------------------------------------------------------------

    def send_refusal(self, refused: RefusedError) -> None:
        """The error as an answer."""
        more = {} if refused.retry_after is None else {"Retry-After": str(max(1, round(refused.retry_after + 0.5)))}
        if refused.status == 401:
            more["WWW-Authenticate"] = "Bearer"
        self.send_json(refused.status, refused.document, more)

    def send_json(self, status: int, value: Any, more: Mapping[str, str] | None = None) -> None:
        """JSON as an answer."""
        self.send(status, json.dumps(value).encode(), "application/json", more or {})

    def send(self, status: int, content: bytes, kind: str, more: Mapping[str, str]) -> None:
        """A whole answer."""
        headers = {**ALWAYS, "Content-Type": kind, "Content-Length": str(len(content)), **more}
        if getattr(self, "unread", 0):
            self.close_connection = True
        if self.close_connection:
            headers["Connection"] = "close"
        self.begin(status, headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of an answer; taking it and what follows has a limit in time."""
        self.has_begun = True
        self.connection.settimeout(self.service.limits.body_seconds)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
