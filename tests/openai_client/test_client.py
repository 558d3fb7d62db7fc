"""Where requests go and what comes back: redirects, proxies, certificates, addresses, replies that are too large."""

from __future__ import annotations

import gzip
import ssl
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixed_reply_server import FixedReplyServer
from judge_server import MODEL, JudgeServer, random_image

from earl_cli.errors import EarlError, UsageError
from earl_cli.openai_client.retry import Backoff
from earl_cli.rewards.judge.client import Judge, JudgePrompt
from earl_cli.rewards.reward import JudgeDownError

Ask = Callable[..., Judge]
PROMPT = JudgePrompt("Grade this.", (random_image(1),))
QUICK = Backoff(attempts=2, rate_limit_attempts=2, first_delay=0.001)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Iterator[FixedReplyServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    owner = FixedReplyServer().start()
    yield owner
    owner.server.stop()


def judge_at(address: str, **settings: Any) -> Judge:
    return Judge(address, MODEL, **{"timeout": 5.0, "backoff": QUICK, **settings})


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_images_and_keys_arent_sent_to_another_server(
    status: int, fixed: FixedReplyServer, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    fixed.status, fixed.headers = status, {"Location": f"{judge.api_base}/chat/completions?key=x"}
    with pytest.raises(UsageError, match=f"redirects to {judge.api_base}/chat/completions, where") as caught:
        judge_at(f"{fixed.server.address}/v1").ask_all([PROMPT])
    assert (caught.value.where, judge.calls, len(fixed.seen)) == (f"{fixed.server.address}/v1", [], 1)


@pytest.mark.parametrize("status", [302, 308])
def test_redirects_within_one_server_are_followed(status: int, fixed: FixedReplyServer) -> None:
    fixed.status, fixed.headers = status, {"Location": "/api/chat"}
    assert judge_at(f"{fixed.server.address}/v1").ask_all([PROMPT])[0].scores == (8, 6)
    assert fixed.seen == ["/v1/chat/completions", "/api/chat"]


def test_circular_redirects_are_an_error(fixed: FixedReplyServer) -> None:
    fixed.status, fixed.headers = 307, {"Location": "?again"}
    with pytest.raises(UsageError, match="in a circle"):
        judge_at(f"{fixed.server.address}/v1").ask_all([PROMPT])


@pytest.mark.parametrize("encoding", [None, "gzip", "deflate", "raw deflate"])
def test_a_compressed_reply_is_read(encoding: str | None, fixed: FixedReplyServer) -> None:
    _pack(fixed, fixed.body, encoding)
    assert judge_at(f"{fixed.server.address}/v1").ask_all([PROMPT])[0].scores == (8, 6)


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b" " * 2_000_000, None, "larger than 1000000 bytes"),
        (b" " * 200_000_000, "gzip", "larger than 1000000 bytes when it is decompressed"),
        (b"[" * 900_000, None, "no proper answer"),
        (b"not compressed at all", "br", "compressed as 'br'"),
    ],
)
def test_a_reply_that_is_too_large_is_an_error(
    content: bytes, encoding: str | None, message: str, fixed: FixedReplyServer
) -> None:
    _pack(fixed, content, encoding)
    with pytest.raises(JudgeDownError, match=message):
        judge_at(f"{fixed.server.address}/v1").ask_all([PROMPT])


def test_a_truncated_reply_is_an_error(fixed: FixedReplyServer) -> None:
    _pack(fixed, fixed.body, "gzip")
    fixed.body = fixed.body[:-12]
    with pytest.raises(JudgeDownError, match="can't be decompressed"):
        judge_at(f"{fixed.server.address}/v1").ask_all([PROMPT])


def _pack(fixed: FixedReplyServer, content: bytes, encoding: str | None) -> None:
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "raw deflate": lambda it: raw.compress(it) + raw.flush()}
    fixed.body = packed[encoding](content) if encoding in packed else content
    fixed.headers = {"Content-Encoding": encoding.rpartition(" ")[2]} if encoding else {}


@pytest.mark.parametrize("ending", ["", "/", "//", "/v1", "/v1/", "/v1/chat/completions", "/v1/models/", " "])
def test_an_address_may_have_any_usual_ending(ending: str, judge: JudgeServer) -> None:
    client = judge_at(judge.api_base.removesuffix("/v1") + ending)
    assert client.models() == [MODEL]
    assert client.ask_all([PROMPT])[0].scores is not None


def test_an_api_may_be_below_v1_or_not(judge: JudgeServer) -> None:
    judge.prefix = ""
    assert judge_at(judge.api_base.removesuffix("/v1")).models() == [MODEL]
    judge.prefix = "/v1beta/openai"
    assert judge_at(judge.api_base + "beta/openai/").models() == [MODEL]
    with pytest.raises(UsageError, match=r"status 404.*Not Found"):
        judge_at(judge.api_base).models()


@pytest.mark.parametrize("address", ["http://localhost:port/v1", "http://[::1/v1", "http://host:0/v1", "host:4877/v1"])
def test_an_address_with_an_invalid_port_or_host_is_an_error(address: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        judge_at(address)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_local_judge_is_called_without_a_proxy(
    name: str, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert judge_at(judge.api_base).models() == [MODEL]


def test_a_remote_judge_is_called_through_the_proxy(fixed: FixedReplyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", fixed.server.address)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert judge_at("http://judge.example/v1").ask_all([PROMPT])[0].scores == (8, 6)
    assert fixed.seen == ["http://judge.example/v1/chat/completions"]
    monkeypatch.setenv("NO_PROXY", "judge.example")
    with pytest.raises(JudgeDownError, match="no host of that name"):
        judge_at("http://judge.example/v1").ask_all([PROMPT])


@pytest.mark.parametrize("proxy", ["ftp://me:word@host:1", "http://[::1"])
def test_an_invalid_proxy_is_an_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(UsageError, match="proxy") as caught:
        judge_at("http://judge.example/v1").models()
    assert "word" not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed one of 127.0.0.1, with its key."""
    file = tmp_path / "self-signed.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*new, "-keyout", file, "-out", tmp_path / "cert", *subject], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "cert").read_text())
    return file


def test_a_self_signed_certificate_is_trusted_by_ssl_cert_file(
    fixed: FixedReplyServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    fixed.server.socket = context.wrap_socket(fixed.server.socket, server_side=True)
    address = fixed.server.address.replace("http:", "https:") + "/v1"
    with pytest.raises(UsageError, match="certificate isn't trusted: self-signed certificate") as caught:
        judge_at(address).ask_all([PROMPT])
    assert "SSL_CERT_FILE" in str(caught.value)
    assert fixed.seen == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert judge_at(address).ask_all([PROMPT])[0].scores == (8, 6)


def test_a_server_without_tls_is_an_error(judge: JudgeServer) -> None:
    with pytest.raises(UsageError, match="speaks no TLS"):
        judge_at(judge.api_base.replace("http:", "https:")).models()


def test_a_closed_port_is_a_judge_down_error(judge: JudgeServer) -> None:
    judge.stop()
    with pytest.raises(JudgeDownError, match="nothing listens there") as caught:
        judge_at(judge.api_base).models()
    assert "earl judge serve" in str(caught.value)


@pytest.mark.parametrize("key", ["sk-\u00e9", "sk-a\nb", "sk-\x00"])
def test_an_invalid_key_is_an_error_that_doesnt_show_it(
    key: str, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"MY_KEY": key})
    with pytest.raises(EarlError, match="characters in it that no key has") as caught:
        judge_at(judge.api_base, api_key_variable="MY_KEY").models()
    assert key not in str(caught.value)
