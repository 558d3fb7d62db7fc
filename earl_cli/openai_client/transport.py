"""How bytes go to a server and come back: to no other one than was named, and no more of them than a reply can need.

Pictures and keys are never sent where a server redirects to; a reply that is too large, also once it is unpacked, is
not read to its end; an address that lacks ``/v1`` is completed where the server has it there.
"""

from __future__ import annotations

import ipaddress
import urllib.request
import zlib
from urllib.parse import urlsplit

import httpx2

from earl_cli.errors import UsageError

LARGEST_REPLY = 1_000_000
LARGEST_LIST = 16_000_000
"""Bytes of a list of models, of which a public server has many."""
REDIRECTS = 5
MOVED = (301, 302, 307, 308)
NOT_FOUND = 404
VERSION = "/v1"
PACKED = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)


class SentOnError(UsageError):
    """A server that redirects to another one."""


_versioned: set[str] = set()
"""Addresses without a path of servers that have everything below ``/v1``, found out in this process."""


def client_of(api_base: str, timeout: float, largest: int) -> httpx2.AsyncClient:
    """A client for the server at ``api_base`` alone. Raises UsageError for a proxy that can't be used."""
    proxy = _proxy_of(api_base)
    try:
        plain = httpx2.AsyncHTTPTransport(limits=LIMITS, proxy=proxy)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        what = f"the proxy of this address can't be used: {error}"
        raise UsageError(
            what, where=_shown(proxy or ""), hint="HTTP_PROXY, HTTPS_PROXY and ALL_PROXY name proxies"
        ) from None
    except OSError as error:
        what = f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names can't be read: {error.strerror or error}"
        raise UsageError(what, where=_shown(api_base)) from None
    transport = _OneServer(plain, api_base, largest)
    return httpx2.AsyncClient(transport=transport, timeout=timeout, headers={"Accept-Encoding": "gzip, deflate"})


def _proxy_of(api_base: str) -> str | None:
    """The proxy that the environment names for this address; a server on this machine has none."""
    parts = urlsplit(api_base)
    host = parts.hostname or ""
    if _is_this_machine(host) or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    return found if not found or "://" in found else f"http://{found}"


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _OneServer(httpx2.AsyncBaseTransport):
    """Requests go to the server of ``api_base`` or nowhere; replies come whole, unpacked, of ``largest`` bytes."""

    def __init__(self, plain: httpx2.AsyncBaseTransport, api_base: str, largest: int) -> None:
        self.plain, self.largest = plain, largest
        self.server = _origin(httpx2.URL(api_base))
        self.bare = api_base if urlsplit(api_base).path in ("", "/") else None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()  # the body can be sent again
        if self.bare is None:
            return await self._followed(request)
        if self.bare not in _versioned:
            response = await self._followed(request)
            if response.status_code != NOT_FOUND:
                return response
        response = await self._followed(
            _moved(request, request.url.copy_with(raw_path=VERSION.encode() + request.url.raw_path))
        )
        if response.status_code != NOT_FOUND:
            _versioned.add(self.bare)
        return response

    async def aclose(self) -> None:
        await self.plain.aclose()

    async def _followed(self, request: httpx2.Request) -> httpx2.Response:
        """What the server answers, also where it has moved to another address of its own."""
        for _ in range(REDIRECTS):
            response = await self._whole(request, await self.plain.handle_async_request(request))
            to = response.headers.get("location")
            if response.status_code not in MOVED or not to:
                return response
            address = request.url.join(to)
            if _origin(address) != self.server:
                what = (
                    f"the server sends on to {_shown(str(address))}, where neither pictures nor keys are sent unasked"
                )
                raise SentOnError(what, hint="give that server's address, if it is to be trusted")
            request = _moved(request, address)
        raise SentOnError("the server sends on in a circle", hint="an address usually ends in /v1")

    async def _whole(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        """The response, read to its end. Raises ValueError if there is too much of it."""
        largest = LARGEST_LIST if request.url.path.endswith("/models") else self.largest
        packing = response.headers.get("content-encoding", "identity").strip().lower()
        content = bytearray()
        try:
            async for part in response.stream:  # type: ignore[union-attr]
                content += part
                if len(content) > largest:
                    raise ValueError(f"it is larger than {largest} bytes")
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
            content=_unpacked(bytes(content), packing, largest),
            extensions=response.extensions,
        )


def _unpacked(content: bytes, packing: str, largest: int) -> bytes:
    if packing in ("", "identity") or not content:
        return content
    if packing not in PACKED:
        raise ValueError(f"it is packed as {packing[:20]!r}, which wasn't asked for")
    for bits in (PACKED[packing], -zlib.MAX_WBITS):  # some servers leave out deflate's head
        unpacker = zlib.decompressobj(bits)
        try:
            found = unpacker.decompress(content, largest + 1)
        except zlib.error:
            continue
        if len(found) > largest:
            raise ValueError(f"it is larger than {largest} bytes when it is unpacked")
        if not unpacker.eof:
            break
        return found
    raise ValueError(f"it can't be unpacked as {packing}")


def _moved(request: httpx2.Request, address: httpx2.URL) -> httpx2.Request:
    """The same request to another address of the same server."""
    return httpx2.Request(
        request.method, address, headers=request.headers, content=request.content, extensions=request.extensions
    )


def _origin(address: httpx2.URL) -> tuple[str, str, int | None]:
    return address.scheme, address.host, address.port


def _shown(address: str) -> str:
    """An address without passwords and without what a query may hold."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address.rpartition("@")[2]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else address
