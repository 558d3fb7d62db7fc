"""Who is let in: names, pages of other sites, keys, how often, and whose request it is behind a proxy."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import openai
import pytest
from serving_servers import Running, error_of, png, running

from earl_cli.serving.limits import ConcurrencyLimit, Rate, ServerLimits
from earl_cli.serving.site import Site, public_url, trusted_proxies

SECRET = "the key of this server"
PROXIED = Site(is_local=True, public=public_url("https://photos.example/earl"), proxies=trusted_proxies(["127.0.0.1"]))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def proxied() -> Iterator[Running]:
    with running(site=PROXIED) as server:
        yield server


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8360", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1"]
)
def test_a_name_that_was_made_to_point_here_is_refused(server: Running, host: str) -> None:
    for path in ("", "settings", "v1/models"):
        assert error_of(httpx.get(server.address + path, headers={"Host": host}), 403)["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1", "[::1]:8360", "127.1.2.3"])
def test_names_of_this_machine_are_fine(server: Running, host: str) -> None:
    assert httpx.get(server.address, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_can_not_post(server: Running, headers: dict[str, str]) -> None:
    assert error_of(server.post(headers=headers), 403)["code"] == "wrong_origin"


def test_the_page_itself_can(server: Running) -> None:
    assert (
        server.post(headers={"Origin": server.address.rstrip("/"), "Sec-Fetch-Site": "same-origin"}).status_code == 200
    )


def test_a_key_is_required() -> None:
    with running(key=SECRET, limits=ServerLimits(rate=1)) as server:
        for _ in range(3):  # a wrong key uses up nothing
            with pytest.raises(openai.AuthenticationError) as caught:
                server.client(api_key="wrong").images.edit(image=png(1), prompt="x")
        assert caught.value.code == "invalid_api_key"
        assert SECRET not in str(caught.value)
        assert error_of(server.post(), 401)["type"] == "authentication_error"
        assert httpx.get(f"{server.address}v1/models").status_code == 401
        assert httpx.get(f"{server.address}health").status_code == 200
        assert httpx.get(f"{server.address}settings").json()["needs_key"] is True
        client = server.client(api_key=SECRET)
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.images.edit(image=png(1), prompt="x").data


def test_beyond_this_machine_any_name_is_taken() -> None:
    with running(site=Site(is_local=False)) as server:
        assert httpx.get(server.address, headers={"Host": "photos.example"}).status_code == 200


# -- behind a proxy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8360", "photos.example", "Photos.Example:443", "photos.example."])
def test_the_public_page_may_edit_whatever_host_the_proxy_says(proxied: Running, host: str) -> None:
    headers = {"Host": host, "Origin": "https://photos.example", "Sec-Fetch-Site": "same-origin"}
    assert proxied.post(headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://photos.example",
        "https://photos.example:8443",
        "https://evil.example",
        "https://photos.example.evil",
        "http://[bad",
        "https://photos.example, https://photos.example",
        "null",
        "",
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1:8360", "photos.example"])
def test_no_other_page_may(proxied: Running, origin: str, host: str) -> None:
    assert error_of(proxied.post(headers={"Host": host, "Origin": origin}), 403)["code"] == "wrong_origin"


def test_a_page_that_came_past_the_proxy_may_edit() -> None:
    with running(site=Site(is_local=True, public=public_url("https://localhost/earl"))) as server:
        address = f"localhost:{server.server.port}"
        assert server.post(headers={"Host": address, "Origin": f"http://{address}"}).status_code == 200
        assert server.post(headers={"Host": "localhost", "Origin": "http://localhost"}).status_code == 403


def test_without_a_public_url_the_refusal_says_what_is_missing(server: Running) -> None:
    for headers in ({"Host": "photos.example"}, {"Origin": "https://photos.example"}):
        assert "--public-url" in str(error_of(server.post(headers=headers), 403)["message"])


@pytest.mark.parametrize("path", ["", "earl/", "style.css", "earl/style.css", "earl/settings", "earl/v1/models"])
def test_the_prefix_may_be_taken_away_or_left(proxied: Running, path: str) -> None:
    assert httpx.get(proxied.address + path, headers={"Host": "photos.example"}).status_code == 200


def test_the_prefix_without_its_slash_leads_to_the_page(proxied: Running) -> None:
    answer = httpx.get(f"{proxied.address}earl")
    assert (answer.status_code, answer.headers["Location"]) == (308, "/earl/")
    assert httpx.get(f"{proxied.address}earlobe").status_code == 404


def test_clients_of_a_trusted_proxy_are_counted_apart() -> None:
    with running(limits=ServerLimits(rate=1), site=PROXIED) as server:
        for forwarded, status in [
            ("192.0.2.1", 200),
            ("192.0.2.2", 200),
            ("192.0.2.3, 192.0.2.1", 429),
            ("192.0.2.4, 127.0.0.1", 200),
        ]:
            assert server.post(headers={"X-Forwarded-For": forwarded}).status_code == status


def test_a_client_that_claims_to_be_a_proxy_is_not_trusted_and_there_is_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with running(limits=ServerLimits(rate=1)) as server:
        answers = [server.post(headers={"X-Forwarded-For": f"192.0.2.{n}"}).status_code for n in range(3)]
    assert answers == [200, 429, 429]
    assert capsys.readouterr().err.count("--trusted-proxy 127.0.0.1") == 1


# -- how often -----------------------------------------------------------------------------------------------------


def test_wrong_keys_come_to_an_end() -> None:
    with running(key=SECRET, limits=ServerLimits(wrong_keys=3)) as server:
        for _ in range(5):
            assert httpx.get(f"{server.address}v1/models").status_code == 401  # no key is no wrong one
        answers = [server.post(headers={"Authorization": f"Bearer {n}"}) for n in range(5)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 61
        right = httpx.get(f"{server.address}v1/models", headers={"Authorization": f"Bearer {SECRET}"})
        assert error_of(right, 429)["code"] == "rate_limit_exceeded"
        assert httpx.get(f"{server.address}health").status_code == 200


def test_one_address_has_its_share_of_places() -> None:
    places = ConcurrencyLimit(3, 2)
    with places.hold("10.0.0.1") as first, places.hold("10.0.0.1") as second, places.hold("10.0.0.1") as third:
        assert (first, second, third) == (True, True, False)
        with places.hold("10.0.0.2") as other, places.hold("10.0.0.3") as last:
            assert (other, last) == (True, False)
    with places.hold("10.0.0.1") as again:
        assert again


def test_a_minute_has_so_many_edits() -> None:
    with running(limits=ServerLimits(rate=2)) as server:
        assert [server.post().status_code for _ in range(3)] == [200, 200, 429]
        refused = server.post()
        assert error_of(refused, 429)["type"] == "rate_limit_error"
        assert 0 < int(refused.headers["Retry-After"]) <= 61
        assert httpx.get(server.address).status_code == 200


def test_addresses_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("earl_cli.serving.limits.time.monotonic", lambda: now[0])
    rate = Rate(1)
    assert rate.count("10.0.0.1") == 0
    assert rate.count("10.0.0.1") == 60
    assert rate.count("10.0.0.2") == 0
    assert rate.count("::ffff:10.0.0.2") > 0
    assert rate.count("2001:db8::1") == 0
    assert rate.count("2001:db8::2") > 0  # one subscriber has all of a /64
    now[0] += 60
    assert rate.count("10.0.0.1") == 0
    assert all(Rate(0).count("10.0.0.1") == 0 for _ in range(1000))
