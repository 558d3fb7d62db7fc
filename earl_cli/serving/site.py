"""The addresses of a server, and the client of a request that came through a proxy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from earl_cli.errors import UsageError

DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Origin:
    """A web origin: ``host`` in lower case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}")


@dataclass(frozen=True)
class PublicURL:
    """The address of a server behind a proxy; ``prefix`` is "" or a path without a slash at its end."""

    origin: Origin
    prefix: str

    def __str__(self) -> str:
        return f"{self.origin}{self.prefix}/"


@dataclass(frozen=True)
class Site:
    """``is_local``: only this machine can reach it. The X-Forwarded-For of ``proxies`` is trusted."""

    is_local: bool
    public: PublicURL | None = None
    proxies: tuple[Network, ...] = ()

    @property
    def prefix(self) -> str:
        """The path before all addresses, "" for none."""
        return self.public.prefix if self.public else ""

    def client(self, peer: str, forwarded: str | None) -> str:
        """The client's address: ``peer``, or the last one in X-Forwarded-For that is no trusted proxy's.

        Addresses before that come from the client and can be forged.
        """
        found = _address(peer)
        for text in reversed(forwarded.split(",") if forwarded else []):
            if found is None or not self._trusts(found) or (before := _address(text)) is None:
                break
            found = before
        return peer if found is None else str(found)

    def is_proxy(self, peer: str) -> bool:
        """Whether X-Forwarded-For of this address is trusted."""
        found = _address(peer)
        return found is not None and self._trusts(found)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self.proxies)


def host_and_port(authority: str) -> tuple[str, int | None] | None:
    """A Host header or the like, in lower case and without brackets; None if it is none."""
    found = _AUTHORITY.fullmatch(authority.strip().lower())
    if found is None or not 0 < int(found[2] or 1) < 65536:
        return None
    host = str(_address(found[1]) or "") if found[1].startswith("[") else found[1].removesuffix(".")
    return (host, int(found[2]) if found[2] else None) if host else None


def origin(text: str) -> Origin | None:
    """An Origin header; None for anything else."""
    scheme, _, authority = text.strip().lower().partition("://")
    found = host_and_port(authority)
    if scheme not in DEFAULT_PORTS or found is None:
        return None
    return Origin(scheme, found[0], found[1] or DEFAULT_PORTS[scheme])


def public_url(text: str) -> PublicURL:
    """``https://HOST[:PORT][/PREFIX]``. UsageError for anything else."""
    scheme, _, rest = text.strip().partition("://")
    authority, slash, path = rest.partition("/")
    found, prefix = origin(f"{scheme}://{authority}"), f"{slash}{path}".rstrip("/")
    if found is None or not _PATH.fullmatch(prefix) or {".", ".."} & set(prefix.split("/")):
        hint = (
            "--public-url https://photos.example, or https://example.org:8443/photos: a scheme, a name in ASCII, and "
            "where it has them a port, and a path of letters, digits and -._~"
        )
        raise UsageError("this isn't the address of a page", where=f"--public-url {text}", hint=hint)
    return PublicURL(found, prefix)


def trusted_proxies(texts: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks (10.0.0.0/8). UsageError for anything else, and for a network of all addresses."""
    networks: list[Network] = []
    for text in texts:
        try:
            network = ip_network(text.strip(), strict=False)
        except ValueError:
            hint = "--trusted-proxy 127.0.0.1, or a network such as 10.0.0.0/8"
            raise UsageError("this is no IP address", where=f"--trusted-proxy {text}", hint=hint) from None
        if network.prefixlen == 0:
            hint = "name the proxy's own address"
            raise UsageError("this would trust every address", where=f"--trusted-proxy {text}", hint=hint)
        mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
        networks.append(ip_network((mapped, network.prefixlen - 96)) if mapped else network)
    return tuple(networks)


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    found = _address(host)
    return found is not None and found.is_loopback


def _address(text: str) -> Address | None:
    """An IP address, which may have a port, brackets or a zone."""
    found = text.strip().partition("%")[0]
    if found.startswith("["):
        found = found[1:].partition("]")[0]
    elif found.count(":") == 1:
        found = found.partition(":")[0]
    try:
        address = ip_address(found)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address
