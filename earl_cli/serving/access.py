"""Which requests are accepted: by host, origin, key and rate."""

from __future__ import annotations

import hmac

from earl_cli.serving.errors import HttpError
from earl_cli.serving.http1 import HttpRequest
from earl_cli.serving.service import Service
from earl_cli.serving.site import DEFAULT_PORTS, Site, host_and_port, is_loopback, origin

LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))


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
