"""The HTTP side of ``earl serve``: which address means what, and how answers look.

Nothing that a client sends is ever opened as a path or an address, and no answer holds a traceback.
"""

from __future__ import annotations

import json
import re
import socket
import socketserver
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

from earl_cli.console import console
from earl_cli.images.image_file import open_image
from earl_cli.serving.access import check_host, check_key, check_origin, check_rate
from earl_cli.serving.connections import Server
from earl_cli.serving.errors import HttpError, refusal, report
from earl_cli.serving.http1 import HttpConnection, HttpRequest
from earl_cli.serving.limits import give_back_memory
from earl_cli.serving.queue import QueuedEdit
from earl_cli.serving.request import ImageEditRequest, asked, read_form
from earl_cli.serving.response import send_edits
from earl_cli.serving.service import Service

EDITS, MODELS = "/v1/images/edits", "/v1/models"
READ, POST = ("GET", "HEAD", "OPTIONS"), ("POST", "OPTIONS")
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
    """Answers until the process is told to stop; then waiting requests get an answer within seconds."""

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


class Handler(socketserver.BaseRequestHandler):
    """One connection; ``head`` is that of the request that is being answered."""

    service: Service
    server: Server
    head: HttpRequest | None

    def setup(self) -> None:
        self.connection: socket.socket = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.wire = HttpConnection(self.connection, self.service.limits.body_seconds)

    def handle(self) -> None:
        try:
            while self._meet():
                pass
        except OSError:  # gone, or too slow
            pass
        self.server.rest(self.connection)
        self.wire.close(4 * self.service.limits.upload)

    def _meet(self) -> bool:
        """Answer a request, whatever goes wrong with it; whether another may follow."""
        self.server.rest(self.connection)
        try:
            head = self.wire.request(self.service.limits.head_seconds)
            if head is None:
                return False
            self.head, answer = head, partial(self._answer, head)
        except HttpError as broken:
            self.head, answer = None, partial(self._refuse, broken)
        with self.server.answering(self.connection):
            try:
                answer()
            except OSError as failure:
                if self.wire.has_begun or not isinstance(failure, TimeoutError):
                    raise
                self._refuse(HttpError(408, "the request took too long to arrive"))
            except Exception as failure:  # one answer for whatever it is
                refused = refusal(failure)
                if not isinstance(failure, HttpError) and refused.status >= 500:
                    report(failure)
                if self.wire.has_begun:
                    return False
                self._refuse(refused)
            return self.wire.end()

    # -- what there is -------------------------------------------------------------------------------------------

    def _answer(self, head: HttpRequest) -> None:
        check_host(self.service.site, head)
        path = re.sub("//+", "/", head.path)
        prefix = self.service.site.prefix
        if prefix and path == prefix:
            self.begin(308, {"Location": f"{prefix}/", "Content-Length": "0"})
            return
        if self._methods(path) is None:  # a proxy may take the prefix away, or leave it
            path = path.removeprefix(prefix)
        methods = self._methods(path)
        if methods is None:
            raise HttpError(404, "There is nothing here.", code="not_found")
        if head.method not in methods:
            what = "post a form here" if path == EDITS else "nothing can be sent to this address"
            raise HttpError(405, what, allow=", ".join(methods))
        if head.method == "OPTIONS":  # says nothing of other sites, so that no browser lets their pages ask
            self.begin(204, {"Allow": ", ".join(methods)})
        elif path == EDITS:
            self._edit(head)
        else:
            self._get(head, path)

    def _methods(self, path: str) -> tuple[str, ...] | None:
        """What may be done at an address; None if there is nothing."""
        if path in (EDITS, "*"):
            return POST if path == EDITS else ("OPTIONS",)
        is_there = path in self.service.page or path in ("/health", "/settings", MODELS)
        return READ if is_there or path.startswith(f"{MODELS}/") else None

    def _get(self, head: HttpRequest, path: str) -> None:
        service = self.service
        if path in service.page:
            content, kind = service.page[path]
            self.send(200, content, kind, {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})
        elif path == "/health":
            health = service.health()
            self.send_json(200 if health["status"] == "ok" else 503, health)
        elif path == "/settings":
            self.send_json(200, service.settings())
        elif path == MODELS or unquote(path) == f"{MODELS}/{service.about.model}":
            check_key(service, head, self._client(head))
            model = service.model()
            self.send_json(200, {"object": "list", "data": [model]} if path == MODELS else model)
        else:
            raise HttpError(404, "There is no such model here.", param="model", code="model_not_found")

    def _edit(self, head: HttpRequest) -> None:
        service, client = self.service, self._client(head)
        check_origin(service.site, head)
        check_key(service, head, client)
        check_rate(service, client)
        started = time.monotonic()
        with service.places.hold(client) as granted:
            if not granted:
                raise HttpError(503, "too many requests at once; try again in a moment", retry_after=5)
            try:
                what = self._edit_in_turn(head)
            finally:
                give_back_memory()
        console.note(f"{client}: {what} pixels in {time.monotonic() - started:.1f} s")

    def _edit_in_turn(self, head: HttpRequest) -> str:
        """What was drawn, in words. No picture outlives this."""
        order, wanted = self._order(head)
        ticket = self.service.queue.submit(order)
        try:
            send_edits(self, ticket, order, wanted)
        finally:
            self.service.queue.leave(ticket)
        many = f"{len(order.seeds)} edits" if len(order.seeds) > 1 else "an edit"
        return f"{many} of {order.picture.rgb.width} x {order.picture.rgb.height}"

    def _client(self, head: HttpRequest) -> str:
        """The address that asks, a proxy's client if the proxy is trusted."""
        return self.service.client(str(self.client_address[0]), head.header("X-Forwarded-For"))

    def _order(self, head: HttpRequest) -> tuple[QueuedEdit, ImageEditRequest]:
        """The order that the body holds. While it is looked at, its bytes count among those of all requests."""
        service, limits = self.service, self.service.limits
        if head.length == 0:
            raise HttpError(411 if head.header("Content-Length") is None else 400, "there is no form in this request")
        if head.length is not None and head.length > limits.upload:
            what = f"the request has {head.length:,} bytes, more than the limit of {limits.upload:,}"
            raise HttpError(413, what, param="image", code="too_large")
        service.queue.check_room()
        with service.budget.hold() as take:

            def reserve(size: int) -> None:
                if not take(size):
                    raise HttpError(503, "too many uploads at once; try again in a moment", retry_after=5)

            reserve(head.length or 0)
            on_bytes = reserve if head.length is None else lambda _: None
            body = self.wire.body(limits.body_seconds, limits.upload, on_bytes)
            wanted = asked(read_form(head.header("Content-Type") or "", body), service.about.model, limits)
            del body
            with service.opening:
                picture = open_image(wanted.image, name="image", max_pixels=limits.max_pixels)
        width, height = picture.rgb.size
        if wanted.size not in (None, f"{width}x{height}"):
            what = f"an edit has its photo's own size, here {width}x{height}: leave size away, or say auto"
            raise HttpError(400, what, param="size")
        if width * height * len(wanted.seeds) > 2 * limits.max_pixels:
            raise HttpError(400, "too many variants of so large a picture", param="n")
        sampling = service.about.sampling.updated(wanted.sampling)
        return QueuedEdit(picture, wanted.prompt, wanted.seeds, sampling), replace(wanted, image=b"")

    # -- answers -------------------------------------------------------------------------------------------------

    def _refuse(self, refused: HttpError) -> None:
        self.send_json(refused.status, refused.document, refused.headers)

    def send_json(self, status: int, value: Any, more: Mapping[str, str] | None = None) -> None:
        """JSON as an answer."""
        self.send(status, json.dumps(value).encode(), "application/json", more or {})

    def send(self, status: int, content: bytes, kind: str, more: Mapping[str, str]) -> None:
        """A whole answer."""
        self.begin(status, {"Content-Type": kind, "Content-Length": str(len(content)), **more})
        if self.head is None or self.head.method != "HEAD":
            self.write(content)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of an answer."""
        self.wire.begin(status, {**ALWAYS, **headers})

    def write(self, content: bytes) -> None:
        """More of an answer."""
        self.wire.write(content)
