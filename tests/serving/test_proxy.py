"""Through a real nginx, with the configuration of docs/SERVING.md and with other habits that proxies have."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urljoin

import httpx2 as httpx
import openai
import pytest
from browser import opened
from local_server import free_port
from nginx import proxying
from PIL import Image
from playwright.sync_api import Browser, expect
from serving_servers import Gate, png, running, saved

from earl_cli.serving.limits import ServerLimits
from earl_cli.serving.queue import Work
from earl_cli.serving.site import Site, public_url, trusted_proxies

DOCUMENT = Path(__file__).parents[2] / "docs/SERVING.md"
PASS, HOST = "proxy_pass http://127.0.0.1:8360;", "proxy_set_header Host $host;"
Proxied = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def proxied(tmp_path: Path) -> Proxied:
    """Starts a server and nginx before it, and is the public address of its page."""

    @contextmanager
    def proxied(changes: dict[str, str] | None = None, work: Work | None = None, rate: int = 0) -> Iterator[str]:
        [block] = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
        port = free_port()
        public = public_url(f"https://localhost:{port}/earl")
        site = Site(is_local=True, public=public, proxies=trusted_proxies(["127.0.0.1"]))
        with running(work, ServerLimits(rate=rate), site=site) as server:
            for found, meant in {
                **(changes or {}),
                "listen 443": f"listen 127.0.0.1:{port}",
                "/etc/ssl/photos.example": f"{tmp_path}/localhost",
                "photos.example": "localhost",
                "127.0.0.1:8360": f"127.0.0.1:{server.server.port}",
            }.items():
                assert found in block
                block = block.replace(found, meant)
            with proxying(tmp_path, block, port):
                yield str(public)

    return proxied


def client(room: Path, address: str = "127.0.0.1") -> httpx.Client:
    trusted = ssl.create_default_context(cafile=str(room / "localhost.pem"))
    return httpx.Client(transport=httpx.HTTPTransport(verify=trusted, local_address=address), timeout=20)


def edit(client: httpx.Client, page: str, image: bytes, origin: str | None = None, **headers: str) -> httpx.Response:
    all_headers = {"Origin": origin or page.removesuffix("/earl/"), **headers}
    return client.post(f"{page}v1/images/edits", data={"prompt": "x"}, files={"image": image}, headers=all_headers)


@pytest.mark.slow
@pytest.mark.parametrize("host", [{}, {HOST: ""}], ids=["host kept", "host rewritten"])
@pytest.mark.parametrize("prefix", [{}, {PASS: PASS.replace(";", "/;")}], ids=["prefix kept", "prefix taken away"])
def test_the_page_and_its_edits(proxied: Proxied, tmp_path: Path, host: dict[str, str], prefix: dict[str, str]) -> None:
    with proxied({**host, **prefix}) as page, client(tmp_path) as http:
        shown = http.get(page)
        assert shown.status_code == 200
        assets = re.findall(r'(?:href|src)="([^"#]+)"', shown.text)
        assert len(assets) >= 3
        for asset in (*assets, "settings", "health", "v1/models"):
            assert http.get(urljoin(page, asset)).status_code == 200, asset
        assert http.get(page.removesuffix("/"), follow_redirects=True).text == shown.text
        assert edit(http, page, png(1)).status_code == 200
        for origin in (
            "https://evil.example",
            "http://localhost",
            page.replace("https", "http").removesuffix("/earl/"),
        ):
            assert edit(http, page, png(1), origin).status_code == 403
        large = saved(Image.effect_noise((1400, 1400), 100).convert("RGB"))
        assert len(large) > 1 << 20
        assert edit(http, page, large).status_code == 200


def test_events_come_while_the_edit_is_sampled(proxied: Proxied, tmp_path: Path) -> None:
    gate = Gate()
    form = {"prompt": "x", "stream": "true", "progress": "true"}
    with proxied(work=gate) as page, client(tmp_path) as http:
        kinds = []
        with http.stream("POST", f"{page}v1/images/edits", data=form, files={"image": png(1)}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    kinds.append(json.loads(line[6:])["type"])
                    gate.open.set()  # none would come before that if nginx kept them back
        assert kinds[0] == "image_edit.progress"
        assert kinds[-1] == "image_edit.completed"


def test_bodies_that_the_proxy_passes_on_in_chunks(proxied: Proxied, tmp_path: Path) -> None:
    with proxied({HOST: f"{HOST} proxy_request_buffering off;"}) as page, client(tmp_path) as http:
        form = http.build_request("POST", page, data={"prompt": "x"}, files={"image": png(1)})
        body = form.read()
        pieces = (body[at : at + 1000] for at in range(0, len(body), 1000))
        headers = {"Content-Type": form.headers["Content-Type"]}
        answer = http.post(f"{page}v1/images/edits", content=pieces, headers=headers)
        assert answer.request.headers["Transfer-Encoding"] == "chunked"
        assert answer.status_code == 200, answer.text


def test_clients_are_counted_apart_and_can_not_pretend_to_be_others(proxied: Proxied, tmp_path: Path) -> None:
    with proxied(rate=1) as page, client(tmp_path) as one, client(tmp_path, "127.0.0.2") as other:
        assert edit(one, page, png(1)).status_code == 200
        assert edit(other, page, png(1)).status_code == 200
        for pretended in ("192.0.2.1", "192.0.2.2"):
            assert edit(other, page, png(1), **{"X-Forwarded-For": pretended}).status_code == 429


def test_the_real_client_under_a_prefix(proxied: Proxied, tmp_path: Path) -> None:
    with proxied() as page, client(tmp_path) as http:
        api = openai.OpenAI(base_url=f"{page}v1", api_key="none", max_retries=0, http_client=http)
        assert api.images.edit(image=png(1), prompt="x").data
        assert [model.id for model in api.models.list()] == ["tiny"]


@pytest.mark.slow
def test_the_page_in_a_browser(proxied: Proxied, browser: Browser) -> None:
    with proxied() as address, opened(browser, address) as page:
        expect(page.locator("#model")).to_have_text("model: tiny")
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(1, (300, 200))})
        page.fill("#prompt", "make it snowy")
        page.press("#prompt", "Enter")
        expect(page.locator("#download")).to_be_visible()
        assert page.locator("#after").evaluate("(image) => image.naturalWidth") == 300
