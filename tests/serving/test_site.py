"""Addresses under which a server is known, and who stands behind a proxy."""

from __future__ import annotations

import pytest

from earl_cli.errors import UsageError
from earl_cli.serving.site import Site, host_and_port, origin, public_url, trusted_proxies


@pytest.mark.parametrize(
    ("text", "shown", "where", "prefix"),
    [
        ("https://photos.example", "https://photos.example/", "https://photos.example", ""),
        ("HTTPS://Photos.Example:443/", "https://photos.example/", "https://photos.example", ""),
        ("https://example.org/a/b-c/", "https://example.org/a/b-c/", "https://example.org", "/a/b-c"),
        ("http://10.0.0.1:8080/earl", "http://10.0.0.1:8080/earl/", "http://10.0.0.1:8080", "/earl"),
        ("https://[2001:DB8:0::1]:8443", "https://[2001:db8::1]:8443/", "https://[2001:db8::1]:8443", ""),
    ],
)
def test_public_urls(text: str, shown: str, where: str, prefix: str) -> None:
    url = public_url(text)
    assert (str(url), str(url.origin), url.prefix) == (shown, where, prefix)
    assert origin(where) == url.origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "photos.example",
        "//photos.example",
        "ftp://photos.example",
        "https://",
        "https:///earl",
        "https://me:secret@photos.example",
        "https://photos.example:0",
        "https://photos.example:99999",
        "https://photos.example:port",
        "https://photos.example/a?b=c",
        "https://photos.example/#top",
        "https://photos.example/a/../b",
        "https://photos.example//a",
        "https://photos.example/a b",
        "https://b\u00fccher.example",
        "https://[bad",
        "https://[::::]",
    ],
)
def test_what_is_no_public_url(text: str) -> None:
    with pytest.raises(UsageError, match="isn't the address of a page"):
        public_url(text)


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.300", "10.0.0.1:80", "", "0.0.0.0/0", "::/0"])
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(UsageError):
        trusted_proxies([text])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("LocalHost:80", ("localhost", 80)),
        ("[0:0::1]:8360", ("::1", 8360)),
        ("::1", None),
        ("a b", None),
        ("a/b", None),
        ("a@b", None),
        ("a:", None),
        ("", None),
    ],
)
def test_hosts(text: str, found: tuple[str, int | None] | None) -> None:
    assert host_and_port(text) == found


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "198.51.100.7, 192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "198.51.100.7, 192.0.2.1, 10.1.2.3", "192.0.2.1"),
        ("127.0.0.1", "10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "192.0.2.1:4711", "192.0.2.1"),
        ("127.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("127.0.0.1", "192.0.2.1, unknown", "127.0.0.1"),
        ("::ffff:127.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("192.0.2.9", "192.0.2.1", "192.0.2.9"),
    ],
)
def test_the_client_behind_a_proxy(peer: str, forwarded: str | None, client: str) -> None:
    site = Site(is_local=False, proxies=trusted_proxies(["::ffff:127.0.0.1", "10.0.0.0/8"]))
    assert site.client(peer, forwarded) == client
    assert Site(is_local=False).client("127.0.0.1", forwarded) == "127.0.0.1"
