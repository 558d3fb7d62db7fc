"""The HTTP side of ``earl serve``: routes and their responses, and the checks of host, origin, key and rate.

Nothing that a client sends is ever opened as a path or an address, and no response holds a traceback.
"""

from __future__ import annotations

import hmac
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
from earl_cli.serving.connections import Server
from earl_cli.serving.errors import HttpError, refusal, report
from earl_cli.serving.http1 import HttpConnection, HttpRequest
from earl_cli.serving.limits import give_back_memory
from earl_cli.serving.queue import QueuedEdit
from earl_cli.serving.request import ImageEditRequest, parse_request, read_form
from earl_cli.serving.response import send_edits
from earl_cli.serving.service import Service
from earl_cli.serving.site import DEFAULT_PORTS, Site, host_and_port, is_loopback, origin

EDITS, MODELS = "/v1/images/edits", "/v1/models"
READ, POST = ("GET", "HEAD", "OPTIONS"), ("POST", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(server: Server, service: Service, on_ready: Callable[[], None]) -> None:
    """Serves until the process gets a signal to stop; then waiting requests are answered within seconds."""

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
        server.drain(timeout=2)


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
            while self._serve_request():
                pass
        except OSError:  # gone, or too slow
            pass
        self.server.mark_idle(self.connection)
        self.wire.close(4 * self.service.limits.upload)

    def _serve_request(self) -> bool:
        """Answer one request, also if anything fails; whether another may follow."""
        self.server.mark_idle(self.connection)
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
            except Exception as failure:  # any failure gets a response
                refused = refusal(failure)
                if not isinstance(failure, HttpError) and refused.status >= 500:
                    report(failure)
                if self.wire.has_begun:
                    return False
                self._refuse(refused)
            return self.wire.end()

    # -- routes --------------------------------------------------------------------------------------------------

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
        if head.method == "OPTIONS":  # without CORS headers, so that browsers refuse other sites' pages
            self.begin(204, {"Allow": ", ".join(methods)})
        elif path == EDITS:
            self._edit(head)
        else:
            self._get(head, path)

    def _methods(self, path: str) -> tuple[str, ...] | None:
        """The methods of an address; None if there is no such address."""
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
                summary = self._queue_edit(head)
            finally:
                give_back_memory()
        console.note(f"{client}: {summary} pixels in {time.monotonic() - started:.1f} s")

    def _queue_edit(self, head: HttpRequest) -> str:
        """What was edited, for the log. No image is held after this call."""
        edit, request = self._read_edit(head)
        ticket = self.service.queue.submit(edit)
        try:
            send_edits(self, ticket, edit, request)
        finally:
            self.service.queue.cancel(ticket)
        many = f"{len(edit.seeds)} edits" if len(edit.seeds) > 1 else "an edit"
        return f"{many} of {edit.image.rgb.width} x {edit.image.rgb.height}"

    def _client(self, head: HttpRequest) -> str:
        """The client's address, behind a trusted proxy the one that it gives."""
        return self.service.client(str(self.client_address[0]), head.header("X-Forwarded-For"))

    def _read_edit(self, head: HttpRequest) -> tuple[QueuedEdit, ImageEditRequest]:
        """The edit that the body asks for. While it is parsed, its bytes count among those of all requests."""
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
            request = parse_request(read_form(head.header("Content-Type") or "", body), service.about.model, limits)
            del body
            with service.opening:
                image = open_image(request.image, name="image", max_pixels=limits.max_pixels)
        width, height = image.rgb.size
        if request.size not in (None, f"{width}x{height}"):
            what = f"an edit has its photo's own size, here {width}x{height}: leave size out, or set it to auto"
            raise HttpError(400, what, param="size")
        if width * height * len(request.seeds) > 2 * limits.max_pixels:
            raise HttpError(400, "too many variants of so large an image", param="n")
        sampling = service.about.sampling.updated(request.sampling)
        return QueuedEdit(image, request.prompt, request.seeds, sampling), replace(request, image=b"")

    # -- responses -----------------------------------------------------------------------------------------------

    def _refuse(self, refused: HttpError) -> None:
        self.send_json(refused.status, refused.document, refused.headers)

    def send_json(self, status: int, value: Any, more: Mapping[str, str] | None = None) -> None:
        """A JSON response."""
        self.send(status, json.dumps(value).encode(), "application/json", more or {})

    def send(self, status: int, content: bytes, kind: str, more: Mapping[str, str]) -> None:
        """A whole response."""
        self.begin(status, {"Content-Type": kind, "Content-Length": str(len(content)), **more})
        if self.head is None or self.head.method != "HEAD":
            self.write(content)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of a response."""
        self.wire.begin(status, {**HEADERS, **headers})

    def write(self, content: bytes) -> None:
        """More of a response."""
        self.wire.write(content)


# -- which requests are accepted: by host, origin, key and rate ------------------------------------------------------


def check_host(site: Site, request: HttpRequest) -> None:
    """Against DNS rebinding: a server that only this machine reaches must be addressed by a name of this machine.

    A request of HTTP/1.0, which no browser sends, needs no Host.
    """
    authority = request.authority
    if not authority and request.version == "1.0":
        return
    found = host_and_port(authority or "")
    if found is None:
        raise HttpError(400, "the Host of this request is no valid name", code="wrong_host")
    host = found[0]
    if site.public is not None and host == site.public.origin.host:
        return
    if site.is_local and host not in LOOPBACK_NAMES and not is_loopback(host):
        more = "; behind a proxy, start it with --public-url" if site.public is None else " and to its public name"
        raise HttpError(403, f"this server answers to localhost only{more}", code="wrong_host")


def check_origin(site: Site, request: HttpRequest) -> None:
    """Against cross-site requests: browsers send these headers, programs send neither."""
    given = request.header("Origin")
    is_own = given is None or _is_own(site, given, request.authority or "")
    if not is_own or request.header("Sec-Fetch-Site") not in (None, "none", "same-origin"):
        more = "" if site.public else "; if this is its own page behind a proxy, start it with --public-url"
        raise HttpError(403, f"pages of other sites may not use this server{more}", code="wrong_origin")


def _is_own(site: Site, given: str, authority: str) -> bool:
    """A proxy may keep the public name or replace it, so the page may have either as its origin."""
    page, found = origin(given), host_and_port(authority)
    if page is None:
        return False
    if site.public is not None:
        if page == site.public.origin:
            return True
        if found is not None and found[0] == site.public.origin.host and found[1] in (None, site.public.origin.port):
            return False  # the public name without its TLS
    return found is not None and (page.host, page.port) == (found[0], found[1] or DEFAULT_PORTS[page.scheme])


def check_key(service: Service, request: HttpRequest, client: str) -> None:
    """The key, if the server has one. After too many wrong ones of an address, none is checked for a while."""
    if service.key is None:
        return
    kind, _, given = (request.header("Authorization") or "").partition(" ")
    key = given.strip() if kind.lower() == "bearer" else ""
    _refuse_after(service.wrong_keys.wait(client), "too many wrong keys")
    if not hmac.compare_digest(key.encode("utf-8"), service.key.encode("utf-8")):
        if key:
            service.wrong_keys.count(client)
        raise HttpError(401, "Incorrect API key provided.", code="invalid_api_key")


def check_rate(service: Service, client: str) -> None:
    """The rate of this address."""
    _refuse_after(service.rate.count(client), f"more than {service.limits.rate} edits a minute")


def _refuse_after(wait: float, what: str) -> None:
    if wait > 0:
        raise HttpError(429, f"{what}; try again in {wait:.0f} s", code="rate_limit_exceeded", retry_after=wait)
