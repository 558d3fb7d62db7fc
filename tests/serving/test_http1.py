"""HTTP as it comes over a wire: what is a request, every kind of body, refusals that arrive, patience."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import httpx2 as httpx
import openai
import pytest
from serving_servers import FORM, Running, eventually, png, running

from earl_cli.serving.limits import ServerLimits

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
PICTURE = png(1)
BODY = (
    b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nmake it snowy\r\n'
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PICTURE + b"\r\n--b--\r\n"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(limits=ServerLimits(rate=0, upload=1_000_000)) as server:
        yield server


def chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def statuses(answers: bytes) -> list[int]:
    """Of all answers on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: a\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (FORM + b"\r\n", 411),
        (FORM + b"Content-Length: many\r\n\r\n", 400),
        (FORM + b"Content-Length: -1\r\n\r\n", 400),
        (FORM + b"Content-Length: 0\r\n\r\n", 400),
        (FORM + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (FORM + b"Content-Length: 5\r\n\r\nhello", 400),
        (FORM.replace(b"form-data", b"mixed") + b"Content-Length: 5\r\n\r\nhello", 415),
    ],
)
def test_broken_requests(server: Running, sent: bytes, status: int) -> None:
    first, _, rest = sent.partition(b"\r\n")
    head, _, body = server.raw(first + b"\r\nConnection: close\r\n" + rest).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        GET + b"Content-Length : 5\r\n\r\n",
        GET + b"Content Length: 5\r\n\r\n",
        GET + b": nameless\r\n\r\n",
        GET + b"nonsense\r\n\r\n",
        GET + b"A: a\rTransfer-Encoding: chunked\r\n\r\n",
        GET + b"A: \x00\r\n\r\n",
        GET + b"Content-Length: +5\r\n\r\n",
        GET + b"Content-Length: 5, 6\r\n\r\n",
        GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        GET + b"Transfer-Encoding: xchunked\r\n\r\n",
        GET + b"Transfer-Encoding:\r\n\r\n",
        GET + b"Host: elsewhere\r\n\r\n",
        GET.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
        b" " + GET + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        FORM + b"Transfer-Encoding: chunked\r\n\r\nfive\r\nhello\r\n0\r\n\r\n",
        FORM + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        FORM + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        FORM + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(server: Running, sent: bytes) -> None:
    answers = server.raw(sent + GET + b"\r\n")
    assert len(statuses(answers)) == 1
    assert statuses(answers)[0] in (400, 501)
    assert b"\r\nConnection: close\r\n" in answers


# -- bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 37, 10_000])
def test_a_body_may_come_in_chunks(server: Running, size: int) -> None:
    sent = FORM + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(BODY, size) + GET + b"Connection: close\r\n\r\n"
    assert statuses(server.raw(sent)) == [200, 200]


def test_a_real_client_sends_chunks(server: Running) -> None:
    pieces = (BODY[at : at + 100] for at in range(0, len(BODY), 100))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{server.address}v1/images/edits", content=pieces, headers=headers)
    assert answer.request.headers["Transfer-Encoding"] == "chunked"
    assert answer.status_code == 200, answer.text


def test_chunks_have_the_same_limits_as_other_bodies() -> None:
    head = FORM + b"Transfer-Encoding: chunked\r\n\r\n"
    with running(limits=ServerLimits(rate=0, upload=100_000, uploads=150_000)) as server:
        assert statuses(server.raw(head + chunks(bytes(200_000), 10_000))) == [413]
        assert statuses(server.raw(head + chunks(bytes(90_000), 1))) == [413]  # 6 bytes for one
    with running(limits=ServerLimits(rate=0, body_seconds=0.5)) as server:
        assert statuses(server.raw(head + b"5\r\nhel")) == [408]
    with running(limits=ServerLimits(rate=0, upload=100_000, uploads=150_000)) as server:
        with socket.create_connection(server.place) as other:
            other.sendall(head + chunks(bytes(80_000), 8000)[:-10])
            assert eventually(lambda: server.service.budget.left < 75_000)
            assert statuses(server.raw(head + chunks(bytes(80_000), 8000))) == [503]
        assert eventually(lambda: server.service.budget.left == 150_000)
        assert server.post().status_code == 200


def test_a_client_that_expects_100_continue_sends_nothing_in_vain(server: Running) -> None:
    ask = FORM + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(server.place, timeout=10) as connection:
        connection.sendall(ask % 2**33)
        assert connection.recv(20).startswith(b"HTTP/1.1 413")
    with socket.create_connection(server.place, timeout=10) as connection:
        connection.sendall(ask % 5)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert connection.recv(20).startswith(b"HTTP/1.1 400")


# -- refusals ------------------------------------------------------------------------------------------------------


def test_a_huge_body_is_refused_and_the_client_hears_it() -> None:
    with running(limits=ServerLimits(rate=0, upload=100_000)) as server:
        with pytest.raises(openai.APIStatusError, match="limit") as caught:
            server.client().images.edit(image=bytes(300_000), prompt="x")
        assert (caught.value.status_code, caught.value.code) == (413, "too_large")
        assert server.post().status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (FORM + b"Content-Length: 3000000\r\n", 413),
        (FORM.replace(b"edits", b"nothing") + b"Content-Length: 3000000\r\n", 404),
        (FORM + b"Origin: http://elsewhere\r\nContent-Length: 3000000\r\n", 403),
        (FORM + b"nonsense\r\nContent-Length: 3000000\r\n", 400),
        (GET + b"Content-Length: 3000000\r\n", 200),
    ],
)
def test_who_sends_all_before_reading_anything_gets_its_answer(server: Running, head: bytes, status: int) -> None:
    # upload is a million bytes here; without the patience at the end the connection would be reset
    limit = server.service.limits.upload
    assert limit < 5_000_000
    with socket.create_connection(server.place, timeout=20) as connection:
        connection.sendall(head + b"\r\n")
        for _ in range(30):
            connection.sendall(bytes(100_000))
            time.sleep(0.002)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert statuses(answer) == [status]
    assert b"\r\nConnection: close\r\n" in answer


# -- one after the other -------------------------------------------------------------------------------------------


def test_requests_in_a_row_are_answered_in_order(server: Running) -> None:
    edit = FORM + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    missing = GET.replace(b"/health", b"/nothing") + b"\r\n"
    sent = GET + b"\r\n" + edit + missing + edit + GET + b"Connection: close\r\n\r\n" + GET + b"\r\n"
    assert statuses(server.raw(sent)) == [200, 200, 404, 200, 200]


def test_a_stream_of_events_has_an_end_and_another_request_may_follow(server: Running) -> None:
    with httpx.Client() as client:
        for _ in range(2):
            form = {"prompt": "x", "stream": "true"}
            answer = client.post(f"{server.address}v1/images/edits", data=form, files={"image": PICTURE})
            assert answer.headers["Transfer-Encoding"] == "chunked"
            assert "image_edit.completed" in answer.text
        assert answer.extensions["network_stream"].get_extra_info("client_addr") == client.get(
            server.address
        ).extensions["network_stream"].get_extra_info("client_addr")


def test_http_1_0_gets_answers_without_chunks(server: Running) -> None:
    body = BODY.replace(b"--b--", b'--b\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--b--')
    answer = server.raw(FORM.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert statuses(answer) == [200]
    assert b"\r\n\r\nevent: image_edit.completed\n" in answer


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/health", 200),
        (b"HTTP://LocalHost:1/health?a=b", 200),
        (b"http://localhost", 200),
        (b"http://evil.example/health", 403),
        (b"http://[bad/health", 400),
        (b"//health", 200),
        (b"/v1//models", 200),
        (b"/a/../health", 404),
        (b"/%2e%2e/health", 404),
        (b"health", 404),
    ],
)
def test_every_form_of_target(server: Running, target: bytes, status: int) -> None:
    answer = server.raw(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
    assert statuses(answer) == [status]


@pytest.mark.parametrize(("target", "allowed"), [("/v1/images/edits", "POST, OPTIONS"), ("*", "OPTIONS")])
def test_options_say_what_may_be_done_and_let_no_other_site_do_it(server: Running, target: str, allowed: str) -> None:
    preflight = "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n"
    head = f"OPTIONS {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{preflight}\r\n"
    answer = server.raw(head.encode())
    assert statuses(answer) == [204]
    assert f"\r\nAllow: {allowed}\r\n".encode() in answer
    assert b"access-control" not in answer.lower()


# -- patience ------------------------------------------------------------------------------------------------------


def test_slow_clients_are_let_go() -> None:
    with running(limits=ServerLimits(rate=0, head_seconds=0.3)) as server:
        assert server.raw(b"GET / HT") == b""
        assert eventually(lambda: server.raw(GET + b"Connection: close\r\n\r\n"))
    with running(limits=ServerLimits(rate=0, body_seconds=0.3)) as server:
        assert b" 408 " in server.raw(FORM + b"Content-Length: 5000\r\n\r\n--b")
        with socket.create_connection(server.place, timeout=10) as connection, pytest.raises(OSError):
            for byte in FORM * 100:  # a byte now and then doesn't help
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert eventually(lambda: server.post().status_code == 200)
