"""The HTTP side: the OpenAI protocol with its real client, odd inputs, limits, and who is let in."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
import numpy as np
import openai
import pytest
from PIL import Image
from serving_servers import FORM, Gate, Running, error_of, eventually, inverting, pixels, png, running, saved

from earl_cli.errors import DeviceError, ModelError
from earl_cli.serving.limits import ByteBudget, ServerLimits


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(limits=ServerLimits(rate=0, max_pixels=100_000, max_variants=4)) as server:
        yield server


@pytest.fixture
def gate() -> Gate:
    return Gate()


def decoded(entry: object) -> np.ndarray:
    return pixels(base64.b64decode(entry.b64_json))  # type: ignore[attr-defined]


# -- the protocol --------------------------------------------------------------------------------------------------


def test_the_real_client_edits(server: Running) -> None:
    answer = server.client().images.edit(
        image=("a.png", png(1), "image/png"), prompt="make it snowy", model="tiny", n=2, extra_body={"seed": 7}
    )
    assert len(answer.data) == 2
    assert (decoded(answer.data[0]) == 255 - pixels(png(1))).all()
    assert [entry.model_extra["seed"] for entry in answer.data] == [7, 8]
    assert abs(answer.created - time.time()) < 60
    assert (answer.output_format, answer.size) == ("png", "40x24")


def test_the_real_client_lists_models(server: Running) -> None:
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    assert server.client().models.retrieve("tiny").owned_by == "earl"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("dall-e-2")


def test_the_real_client_streams(server: Running) -> None:
    stream = server.client().images.edit(image=png(1), prompt="make it snowy", stream=True, n=2)
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.completed"] * 2
    assert (decoded(events[0]) == 255 - pixels(png(1))).all()


def test_the_real_client_understands_refusals(server: Running) -> None:
    client, image = server.client(), png(1)
    with pytest.raises(openai.NotFoundError, match="dall-e-2") as missing:
        client.images.edit(image=image, prompt="x", model="dall-e-2")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="from 1 to 4") as many:
        client.images.edit(image=image, prompt="x", n=5)
    assert many.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="one image at a time"):
        client.images.edit(image=[image, image], prompt="x")
    with pytest.raises(openai.BadRequestError, match="b64_json"):
        client.images.edit(image=image, prompt="x", response_format="url")
    with pytest.raises(openai.BadRequestError, match="masks"):
        client.images.edit(image=image, prompt="x", mask=image)


def test_the_async_client_gets_its_own_images_eight_at_once(server: Running) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: server.post(image=png(n), seed=n), range(8)))
    for n, answer in enumerate(answers):
        entry = answer.json()["data"][0]
        assert entry["seed"] == n
        assert (pixels(base64.b64decode(entry["b64_json"])) == 255 - pixels(png(n))).all()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": "two"}, "n"),
        ({"n": "1.5"}, "n"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": "many"}, "top_k"),
        ({"size": "1024x1024"}, "size"),
        ({"output_format": "tiff"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"stream": "maybe"}, "stream"),
        ({"sede": 3}, "sede"),
    ],
)
def test_a_field_that_can_not_be_used_is_named(server: Running, fields: dict[str, object], param: str) -> None:
    error = error_of(server.post(**fields), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_a_form_without_an_image(server: Running) -> None:
    answer = httpx.post(f"{server.address}v1/images/edits", data={"prompt": "x"}, files={"user": b"me"})
    assert error_of(answer, 400)["param"] == "image"


@pytest.mark.parametrize("fields", [{"size": "auto"}, {"size": "40x24"}, {"model": ""}, {"user": "me"}, {"n": ""}])
def test_values_that_change_nothing(server: Running, fields: dict[str, object]) -> None:
    assert server.post(**fields).status_code == 200


@pytest.mark.parametrize(
    ("source", "wanted", "comes"),
    [
        ("PNG", None, "png"),
        ("JPEG", None, "png"),
        ("PNG", "jpeg", "jpeg"),
        ("PNG", "WEBP", "webp"),
        ("JPEG", "source", "jpeg"),
        ("WEBP", "source", "webp"),
        ("GIF", "source", "png"),
    ],
)
def test_formats(server: Running, source: str, wanted: str | None, comes: str) -> None:
    image = saved(Image.new("RGB", (30, 20), "teal"), source)
    document = server.post(image=image, output_format=wanted).json()
    assert document["output_format"] == comes
    with Image.open(io.BytesIO(base64.b64decode(document["data"][0]["b64_json"]))) as photo:
        assert (photo.format, photo.size) == (comes.upper(), (30, 20))


def test_a_png_remembers_how_it_was_made(server: Running) -> None:
    entry = server.post(seed=3, temperature=0.25, top_k=5).json()["data"][0]
    with Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))) as image:
        assert image.info["instruction"] == "make it snowy"
        assert image.info["seed"] == "3"
        assert image.info["model"] == "tiny"
        assert image.info["sampling"] == "temperature 0.25, top-k 5, top-p 1, mode edit"
    entry = server.post(min_p=0.1).json()["data"][0]
    with Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))) as image:
        assert image.info["sampling"].endswith(", top-p 1, min-p 0.1, mode edit")


def test_progress_is_an_event(gate: Gate) -> None:
    with running(gate) as server:
        form = {"prompt": "x", "stream": "true", "progress": "true"}
        with httpx.stream("POST", f"{server.address}v1/images/edits", data=form, files={"image": png(1)}) as answer:
            lines = answer.iter_lines()
            kinds = []
            for line in lines:
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    kinds.append((event["type"], event.get("state"), event.get("total")))
                    if event.get("total"):
                        gate.open.set()
    assert kinds[-1][0] == "image_edit.completed"
    assert ("image_edit.progress", "drawing", 2) in kinds


def test_a_failure_in_a_stream_is_its_last_event(gate: Gate) -> None:
    gate.breaks = lambda _: ModelError("the model drew no picture")
    gate.open.set()
    with running(gate) as server, pytest.raises(openai.APIError, match="drew no picture"):
        list(server.client().images.edit(image=png(1), prompt="x", stream=True))


# -- odd images --------------------------------------------------------------------------------------------------------


def sixteen_bits() -> bytes:
    return saved(Image.fromarray(np.full((8, 8), 40_000, np.uint16)))


def animated() -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (saved(Image.new("RGB", (1, 1))), (1, 1)),
        (saved(Image.new("RGB", (1, 300))), (1, 300)),
        (sixteen_bits(), (8, 8)),
        (saved(Image.new("CMYK", (9, 8)), "JPEG"), (9, 8)),
        (saved(Image.new("RGBA", (9, 8), (1, 2, 3, 100))), (9, 8)),
        (animated(), (8, 8)),
    ],
)
def test_odd_images_are_edited(server: Running, image: bytes, size: tuple[int, int]) -> None:
    answer = server.post(image=image)
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))) as photo:
        assert photo.size == size


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (b"", "empty"),
        (b"just text, a long one" * 10, "isn't an image"),
        (png(1)[:200], "cut short|damaged"),
        (saved(Image.new("L", (2000, 2000))), "more than the limit"),
        (b"/etc/passwd", "isn't an image"),
    ],
)
def test_what_is_no_image_is_refused(server: Running, image: bytes, expected: str) -> None:
    error = error_of(server.post(image=image), 400)
    assert any(each in str(error["message"]) for each in expected.split("|")), error
    assert error["param"] == "image"


def test_a_name_that_looks_like_a_path_opens_nothing(server: Running, tmp_path: Path) -> None:
    victim = tmp_path / "victim.png"
    victim.write_bytes(png(9))
    files = {"image": (str(victim), png(1))}
    answer = httpx.post(f"{server.address}v1/images/edits", data={"prompt": "x"}, files=files)
    assert (pixels(base64.b64decode(answer.json()["data"][0]["b64_json"])) == 255 - pixels(png(1))).all()
    for text in (str(victim), f"file://{victim}", "http://127.0.0.1:1/a.png"):
        answer = httpx.post(
            f"{server.address}v1/images/edits", data={"prompt": "x", "image": text}, files={"user": b"me"}
        )
        assert "no address and no path" in str(error_of(answer, 400)["message"])


def test_too_many_variants_of_a_large_image(server: Running) -> None:
    image = saved(Image.new("RGB", (300, 300)))
    assert server.post(image=image, n=2).status_code == 200
    assert error_of(server.post(image=image, n=4), 400)["param"] == "n"


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/page/index.html", 404),
        ("GET", "/style.css/", 404),
        ("GET", "/v1/images/edits", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/images/edits/", 404),
        ("HEAD", "/v1/images/edits", 405),
        ("POST", "/", 405),
        ("POST", "/v1/images/generations", 404),
        ("DELETE", "/v1/models/tiny", 405),
    ],
)
def test_addresses_that_are_none(server: Running, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, server.address.rstrip("/") + path)
    assert answer.status_code == status
    assert ("Allow" in answer.headers) == (status == 405)
    if method != "HEAD":
        error_of(answer, status)


def test_a_connection_serves_several_requests(server: Running) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(f"{server.address}health").json()["status"] == "ok"
            assert client.head(f"{server.address}").headers["Content-Type"].startswith("text/html")


def test_the_page_is_guarded(server: Running) -> None:
    answer = httpx.get(server.address)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers
    for name in ("style.css", "script.js", "icon.svg", "settings"):
        assert httpx.get(f"{server.address}{name}").status_code == 200


# -- limits --------------------------------------------------------------------------------------------------------


def test_a_full_line_is_429_with_a_time(gate: Gate) -> None:
    with running(gate, ServerLimits(rate=0, max_queue=1)) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.post)
        assert gate.reached.acquire(timeout=10)
        second = pool.submit(server.post)
        assert eventually(lambda: server.service.queue.waiting == 1)
        assert httpx.get(f"{server.address}health").json()["queue"] == {"waiting": 1, "drawing": 1, "most": 1}
        refused = server.post()
        assert error_of(refused, 429)["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) > 0
        with pytest.raises(openai.RateLimitError):
            server.client().images.edit(image=png(1), prompt="x")
        gate.open.set()
        assert [each.result().status_code for each in (first, second)] == [200, 200]


def test_uploads_share_a_budget() -> None:
    budget = ByteBudget(10)
    with budget.hold() as first, budget.hold() as second:
        assert (first(6), second(6), second(3), first(1), first(1)) == (True, False, True, True, False)
    assert budget.left == 10
    with running(limits=ServerLimits(rate=0, uploads=100)) as server:
        refused = server.post()
        assert error_of(refused, 503)
        assert refused.headers["Retry-After"]


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_client_that_goes_away_leaves_the_line(gate: Gate) -> None:
    with running(gate) as server:
        for count in range(2):
            with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout)):
                list(server.client(timeout=0.3).images.edit(image=png(count), prompt="x", stream=bool(count)))
        assert eventually(lambda: not server.service.queue.waiting and not server.service.queue.running)
        gate.open.set()
        assert server.post().status_code == 200
        assert server.service.queue.finished == 1


def test_the_end_of_the_thread_is_503_and_in_health(gate: Gate) -> None:
    gate.breaks = lambda _: SystemExit()
    with running(gate) as server:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.post)
            assert gate.reached.acquire(timeout=10)
            gate.open.set()
            assert error_of(waiting.result(), 503)["code"] == "unavailable"
        assert error_of(server.post(), 503)["code"] == "unavailable"
        health = httpx.get(f"{server.address}health")
        assert (health.status_code, health.json()["status"]) == (503, "dead")


@pytest.mark.parametrize(
    ("failure", "status", "expected"),
    [
        (ZeroDivisionError("/home/me/secret.py"), 500, "unexpected"),
        (OSError(5, "Input/output error", "/home/me/weights"), 500, "unexpected"),
        (DeviceError("not enough memory"), 503, "memory"),
        (MemoryError(), 503, "memory"),
        (ModelError("the model drew no picture: 3 rows"), 500, "no picture"),
    ],
)
def test_failures_are_reported_without_internals(gate: Gate, failure: Exception, status: int, expected: str) -> None:
    gate.breaks = lambda _: failure
    gate.open.set()
    with running(gate) as server:
        message = str(error_of(server.post(), status)["message"])
        assert expected in message
        assert "/home" not in message


def test_an_edit_has_a_timeout(gate: Gate) -> None:
    with running(gate, replace(ServerLimits(rate=0), timeout=0.3)) as server:
        assert error_of(server.post(), 504)["code"] == "timeout"


def test_stopping_answers_all_queued_requests(gate: Gate) -> None:
    with ThreadPoolExecutor(2) as pool:
        with running(gate) as server:
            waiting = [pool.submit(server.post, temperature=n) for n in (1, 2)]
            assert eventually(lambda: (server.service.queue.running, server.service.queue.waiting) == (1, 1))
        assert all(error_of(each.result(), 503) for each in waiting)
    assert "Traceback" not in repr(waiting)


def test_slow_readers_do_not_hold_others_up() -> None:
    image = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)))
    body = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
    body += b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + image + b"\r\n--b--\r\n"
    with running(limits=ServerLimits(rate=0, body_seconds=3)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.place)
        connection.sendall(FORM + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert server.post().status_code == 200
        assert eventually(lambda: server.server._busy == 0)


@pytest.mark.slow
def test_threads_do_not_pile_up() -> None:
    with running(inverting) as server:
        before = threading.active_count()
        for _ in range(30):
            server.post()
        assert eventually(lambda: threading.active_count() <= before + 2)
