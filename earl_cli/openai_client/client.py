"""A client of one OpenAI-compatible server: its address, its key, and a transport with limits.

Images and keys are never sent to another server, also where the server redirects to one. A reply that is too large,
also once it is decompressed, is not read to its end. An address without ``/v1`` is completed if the server has its API
there.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import urllib.request
import zlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2
import openai

from earl_cli.errors import UsageError

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable of the key by default. Only this one may be unset: local servers need no key."""
PLACEHOLDER_KEY = "none"  # servers that need no key ignore it
MIN_SECRET_LENGTH = 8  # characters; shorter keys, such as "EMPTY" for local servers, aren't secret
ENDPOINTS = ("/chat/completions", "/completions", "/models", "/images/edits")
MAX_REPLY_BYTES = 1_000_000
MAX_LIST_BYTES = 16_000_000
"""Of a list of models: public servers have many."""
MAX_REDIRECTS = 5
REDIRECT_STATUSES = (301, 302, 307, 308)
NOT_FOUND = 404
VERSION_PATH = "/v1"
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
CONNECTION_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
ResultT = TypeVar("ResultT")

_below_v1: set[str] = set()
"""Addresses without a path whose servers turned out, in this process, to have their API below ``/v1``."""


class RedirectedError(UsageError):
    """A server that redirects to another one, or in a circle."""


def checked_address(api_base: str, whose: str) -> str:
    """The address without blanks, slashes and the path of an endpoint at its end, which people copy with it.

    Raises UsageError unless this can be the address of ``whose`` server.
    """
    address = api_base.strip().rstrip("/")
    for endpoint in ENDPOINTS:
        address = address.removesuffix(endpoint).rstrip("/")
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, an unbalanced bracket
        valid = False
    if not valid:
        what = f"this is no address of {whose} server"
        where = address_without_password(api_base) or "''"
        raise UsageError(what, where=where, hint="it looks like http://localhost:4877/v1")
    return address


def address_without_password(api_base: str) -> str:
    """``api_base`` without user name and password."""
    try:
        parts = urlsplit(api_base)
    except ValueError:
        return api_base.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def read_key(api_key_variable: str) -> str | None:
    """The key in this environment variable, None if it is unset or blank. Raises UsageError for what can be no key."""
    key = os.environ.get(api_key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        what = "there are characters in it that no key has"
        raise UsageError(what, where=api_key_variable, hint="set it again, as ASCII on one line")
    return key or None


def variables_without_key(api_key_variables: Collection[str]) -> list[str]:
    """Those of these variables that hold no key, other than the default one."""
    chosen = dict.fromkeys(each for each in api_key_variables if each != DEFAULT_KEY_VARIABLE)
    return [each for each in chosen if read_key(each) is None]


def check_keys(api_key_variables: Collection[str]) -> None:
    """Raise UsageError that names all of `variables_without_key`."""
    if missing := variables_without_key(api_key_variables):
        variables = "variables are" if len(missing) > 1 else "variable is"
        what = f"the environment {variables} not set, or empty: {', '.join(missing)}"
        raise UsageError(what, hint=" ".join(f"export {each}=…" for each in missing))


def make_client(
    api_base: str, api_key_variable: str, timeout: float, max_reply_bytes: int = MAX_REPLY_BYTES
) -> openai.AsyncOpenAI:
    """A client that connects at its first call, retries nothing, and reads at most ``max_reply_bytes`` of a reply.

    Raises UsageError as `read_key` does, and for a proxy or a certificate file that can't be used.
    """
    key = read_key(api_key_variable) or PLACEHOLDER_KEY
    http_client = _http_client(api_base, timeout, max_reply_bytes)
    return openai.AsyncOpenAI(base_url=api_base, api_key=key, max_retries=0, timeout=timeout, http_client=http_client)


def redact(text: str, api_key_variable: str, api_base: str = "") -> str:
    """``text``, which may quote a server, with *** in place of the key and of a password in the address."""
    parts = urlsplit(api_base)
    secrets = [os.environ.get(api_key_variable, "").strip()]
    if parts.password:
        user, password = unquote(parts.username or ""), unquote(parts.password)
        secrets += [base64.b64encode(f"{user}:{password}".encode()).decode(), password, parts.password]
    for secret in secrets:
        if len(secret) >= MIN_SECRET_LENGTH or secret == parts.password:
            text = text.replace(secret, "***")
    return text


def outside_event_loop(work: Callable[[], ResultT]) -> ResultT:
    """``work()``, in another thread if this one has a running event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def _http_client(api_base: str, timeout: float, max_reply_bytes: int) -> httpx2.AsyncClient:
    """A client for the server at ``api_base`` alone."""
    proxy = _proxy_of(api_base)
    try:
        network = httpx2.AsyncHTTPTransport(limits=CONNECTION_LIMITS, proxy=proxy)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        what = f"the proxy of this address can't be used: {error}"
        hint = "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY name proxies"
        raise UsageError(what, where=_displayed(proxy or ""), hint=hint) from None
    except OSError as error:
        what = f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names can't be read: {error.strerror or error}"
        raise UsageError(what, where=_displayed(api_base)) from None
    transport = _SingleServerTransport(network, api_base, max_reply_bytes)
    return httpx2.AsyncClient(transport=transport, timeout=timeout, headers={"Accept-Encoding": "gzip, deflate"})


def _proxy_of(api_base: str) -> str | None:
    """The proxy that the environment names for this address; none for a server on this machine."""
    parts = urlsplit(api_base)
    host = parts.hostname or ""
    if _is_this_machine(host) or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _SingleServerTransport(httpx2.AsyncBaseTransport):
    """Sends requests to the server of ``api_base`` only; responses are read whole, decompressed, up to a limit."""

    def __init__(self, network: httpx2.AsyncBaseTransport, api_base: str, max_reply_bytes: int) -> None:
        self.network, self.max_reply_bytes = network, max_reply_bytes
        self.server = _origin(httpx2.URL(api_base))
        self.without_path = api_base if urlsplit(api_base).path in ("", "/") else None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()  # so that the body can be sent again
        if self.without_path is None:
            return await self._follow_redirects(request)
        if self.without_path not in _below_v1:
            response = await self._follow_redirects(request)
            if response.status_code != NOT_FOUND:
                return response
        path = VERSION_PATH.encode() + request.url.raw_path
        response = await self._follow_redirects(_at_address(request, request.url.copy_with(raw_path=path)))
        if response.status_code != NOT_FOUND:
            _below_v1.add(self.without_path)
        return response

    async def aclose(self) -> None:
        await self.network.aclose()

    async def _follow_redirects(self, request: httpx2.Request) -> httpx2.Response:
        """The response, after redirects to other addresses of the same server."""
        for _ in range(MAX_REDIRECTS):
            response = await self._read(request, await self.network.handle_async_request(request))
            location = response.headers.get("location")
            if response.status_code not in REDIRECT_STATUSES or not location:
                return response
            address = request.url.join(location)
            if _origin(address) != self.server:
                what = f"the server redirects to {_displayed(str(address))}, where neither images nor keys are sent"
                raise RedirectedError(what, hint="if you trust that server, give its address")
            request = _at_address(request, address)
        raise RedirectedError("the server redirects in a circle", hint="an address usually ends in /v1")

    async def _read(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        """The response with its whole body. Raises ValueError if that is too large."""
        max_bytes = MAX_LIST_BYTES if request.url.path.endswith("/models") else self.max_reply_bytes
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        content = bytearray()
        try:
            async for chunk in response.stream:  # type: ignore[union-attr]
                content += chunk
                if len(content) > max_bytes:
                    raise ValueError(f"it is larger than {max_bytes} bytes")
        finally:
            await response.aclose()
        headers = [
            (name, value)
            for name, value in response.headers.raw
            if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
        ]
        return httpx2.Response(
            response.status_code,
            headers=headers,
            content=_decompressed(bytes(content), encoding, max_bytes),
            extensions=response.extensions,
        )


def _decompressed(content: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding in ("", "identity") or not content:
        return content
    if encoding not in WINDOW_BITS:
        raise ValueError(f"it is compressed as {encoding[:20]!r}, which the request doesn't accept")
    for bits in (WINDOW_BITS[encoding], -zlib.MAX_WBITS):  # some servers leave out deflate's header
        decompressor = zlib.decompressobj(bits)
        try:
            plain = decompressor.decompress(content, max_bytes + 1)
        except zlib.error:
            continue
        if len(plain) > max_bytes:
            raise ValueError(f"it is larger than {max_bytes} bytes when it is decompressed")
        if not decompressor.eof:
            break
        return plain
    raise ValueError(f"it can't be decompressed as {encoding}")


def _at_address(request: httpx2.Request, address: httpx2.URL) -> httpx2.Request:
    """The same request to another address of the same server."""
    return httpx2.Request(
        request.method, address, headers=request.headers, content=request.content, extensions=request.extensions
    )


def _origin(address: httpx2.URL) -> tuple[str, str, int | None]:
    return address.scheme, address.host, address.port


def _displayed(address: str) -> str:
    """An address without password and query, which may hold secrets."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address.rpartition("@")[2]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else address
