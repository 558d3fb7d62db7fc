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
from answering_server import Answering
from judge_server import MODEL, JudgeServer, picture

from earl_cli.errors import EarlError, UsageError
from earl_cli.openai_client.retry import Backoff
from earl_cli.rewards.judge.client import Judge, JudgePrompt
from earl_cli.rewards.reward import JudgeDownError

Ask = Callable[..., Judge]
QUESTION = JudgePrompt("Grade this.", (picture(1),))
HURRIED = Backoff(attempts=2, rate_limit_attempts=2, first_delay=0.001)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    owner = Answering().start()
    yield owner
    owner.server.stop()


def judge_at(address: str, **settings: Any) -> Judge:
    return Judge(address, MODEL, **{"timeout": 5.0, "backoff": HURRIED, **settings})


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_pictures_and_keys_dont_follow_to_another_server(
    status: int, answering: Answering, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    answering.status, answering.headers = status, {"Location": f"{judge.api_base}/chat/completions?key=x"}
    with pytest.raises(UsageError, match=f"redirects to {judge.api_base}/chat/completions, where") as caught:
        judge_at(f"{answering.server.address}/v1").ask_all([QUESTION])
    assert (caught.value.where, judge.calls, len(answering.seen)) == (f"{answering.server.address}/v1", [], 1)


@pytest.mark.parametrize("status", [302, 308])
def test_a_server_may_move_things_about_itself(status: int, answering: Answering) -> None:
    answering.status, answering.headers = status, {"Location": "/api/chat"}
    assert judge_at(f"{answering.server.address}/v1").ask_all([QUESTION])[0].scores == (8, 6)
    assert answering.seen == ["/v1/chat/completions", "/api/chat"]


def test_a_circle_of_redirects_ends(answering: Answering) -> None:
    answering.status, answering.headers = 307, {"Location": "?again"}
    with pytest.raises(UsageError, match="in a circle"):
        judge_at(f"{answering.server.address}/v1").ask_all([QUESTION])


@pytest.mark.parametrize("packing", [None, "gzip", "deflate", "raw deflate"])
def test_a_packed_reply_is_read(packing: str | None, answering: Answering) -> None:
    _pack(answering, answering.body, packing)
    assert judge_at(f"{answering.server.address}/v1").ask_all([QUESTION])[0].scores == (8, 6)


@pytest.mark.parametrize(
    ("content", "packing", "said"),
    [
        (b" " * 2_000_000, None, "larger than 1000000 bytes"),
        (b" " * 200_000_000, "gzip", "larger than 1000000 bytes when it is decompressed"),
        (b"[" * 900_000, None, "no proper answer"),
        (b"not compressed at all", "br", "compressed as 'br'"),
    ],
)
def test_a_reply_that_is_too_much_is_no_answer(
    content: bytes, packing: str | None, said: str, answering: Answering
) -> None:
    _pack(answering, content, packing)
    with pytest.raises(JudgeDownError, match=said):
        judge_at(f"{answering.server.address}/v1").ask_all([QUESTION])


def test_a_reply_that_was_cut_is_no_answer(answering: Answering) -> None:
    _pack(answering, answering.body, "gzip")
    answering.body = answering.body[:-12]
    with pytest.raises(JudgeDownError, match="can't be decompressed"):
        judge_at(f"{answering.server.address}/v1").ask_all([QUESTION])


def _pack(answering: Answering, content: bytes, packing: str | None) -> None:
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "raw deflate": lambda it: raw.compress(it) + raw.flush()}
    answering.body = packed[packing](content) if packing in packed else content
    answering.headers = {"Content-Encoding": packing.rpartition(" ")[2]} if packing else {}


@pytest.mark.parametrize("ending", ["", "/", "//", "/v1", "/v1/", "/v1/chat/completions", "/v1/models/", " "])
def test_an_address_is_understood_however_it_ends(ending: str, judge: JudgeServer) -> None:
    client = judge_at(judge.api_base.removesuffix("/v1") + ending)
    assert client.models() == [MODEL]
    assert client.ask_all([QUESTION])[0].scores is not None


def test_a_server_without_a_version_in_its_addresses(judge: JudgeServer) -> None:
    judge.prefix = ""
    assert judge_at(judge.api_base.removesuffix("/v1")).models() == [MODEL]
    judge.prefix = "/v1beta/openai"
    assert judge_at(judge.api_base + "beta/openai/").models() == [MODEL]
    with pytest.raises(UsageError, match=r"status 404.*Not Found"):
        judge_at(judge.api_base).models()


@pytest.mark.parametrize("address", ["http://localhost:port/v1", "http://[::1/v1", "http://host:0/v1", "host:4877/v1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        judge_at(address)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_judge_on_this_machine_is_asked_without_a_proxy(
    name: str, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert judge_at(judge.api_base).models() == [MODEL]


def test_a_judge_elsewhere_is_asked_through_the_proxy(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", answering.server.address)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert judge_at("http://judge.example/v1").ask_all([QUESTION])[0].scores == (8, 6)
    assert answering.seen == ["http://judge.example/v1/chat/completions"]
    monkeypatch.setenv("NO_PROXY", "judge.example")
    with pytest.raises(JudgeDownError, match="no host of that name"):
        judge_at("http://judge.example/v1").ask_all([QUESTION])


@pytest.mark.parametrize("proxy", ["ftp://me:word@host:1", "http://[::1"])
def test_a_proxy_that_is_none(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_self_signed_certificate_is_trusted_when_a_person_says_so(
    answering: Answering, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    answering.server.socket = context.wrap_socket(answering.server.socket, server_side=True)
    address = answering.server.address.replace("http:", "https:") + "/v1"
    with pytest.raises(UsageError, match="certificate isn't trusted: self-signed certificate") as caught:
        judge_at(address).ask_all([QUESTION])
    assert "SSL_CERT_FILE" in str(caught.value)
    assert answering.seen == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert judge_at(address).ask_all([QUESTION])[0].scores == (8, 6)


def test_tls_where_there_is_none(judge: JudgeServer) -> None:
    with pytest.raises(UsageError, match="speaks no TLS"):
        judge_at(judge.api_base.replace("http:", "https:")).models()


def test_nobody_listens(judge: JudgeServer) -> None:
    judge.stop()
    with pytest.raises(JudgeDownError, match="nothing listens there") as caught:
        judge_at(judge.api_base).models()
    assert "earl judge serve" in str(caught.value)


@pytest.mark.parametrize("key", ["sk-\u00e9", "sk-a\nb", "sk-\x00"])
def test_a_key_that_can_be_none_is_said_without_showing_it(
    key: str, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"MY_KEY": key})
    with pytest.raises(EarlError, match="characters in it that no key has") as caught:
        judge_at(judge.api_base, api_key_variable="MY_KEY").models()
    assert key not in str(caught.value)
