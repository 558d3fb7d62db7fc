"""An editor behind a real server that is healthy, faulty, choosy or gone."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from images_server import KINDS, MODEL, ImagesServer, as_png, negative
from judge_server import Faults
from PIL import Image

from earl_cli.errors import EarlError, UsageError
from earl_cli.evaluation.editors import BenchmarkEditor, EditorOutput, EditTask
from earl_cli.evaluation.endpoint import open_endpoint
from earl_cli.openai_client.retry import Backoff

KEY = "sk-very-secret"
QUICK = Backoff(attempts=4, rate_limit_attempts=4, first_delay=0.001)


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImagesServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ImagesServer().start()
    yield server
    server.stop()


Open = Callable[..., BenchmarkEditor]


@pytest.fixture
def endpoint(images: ImagesServer) -> Open:
    def opened(**settings: object) -> BenchmarkEditor:
        return open_endpoint(images.api_base, **{"model": MODEL, "backoff": QUICK, "timeout": 10.0} | settings)

    return opened


def some_tasks(count: int, instruction: str = "make it snowy") -> list[EditTask]:
    def noise(number: int) -> Image.Image:
        size = (8 + number, 16, 3)
        return Image.fromarray(np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8))

    return [EditTask(str(number), noise(number), f"{instruction} {number}", number) for number in range(count)]


def pixels(generated: list[EditorOutput]) -> list[tuple[tuple[int, int], bytes]]:
    assert not any(each.problem for each in generated), generated
    return [(each.image.size, each.image.tobytes()) for each in generated if each.image is not None]


def expected(tasks: list[EditTask], seeds: bool = True) -> list[tuple[tuple[int, int], bytes]]:
    return pixels(
        [EditorOutput(negative(task.image, task.instruction, task.seed if seeds else None)) for task in tasks]
    )


def test_what_the_server_gets(images: ImagesServer, endpoint: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    (task,) = some_tasks(1)
    endpoint(api_key_variable="MY_KEY", size="512x512").edit([task])
    (call,) = images.calls
    assert dict(call.form) == {"model": MODEL, "prompt": "make it snowy 0", "seed": "0", "size": "512x512"}
    assert (call.kind, call.key) == ("image/png", f"Bearer {KEY}")
    with Image.open(io.BytesIO(call.file)) as sent:
        assert (sent.format, sent.mode, sent.tobytes()) == ("PNG", "RGB", task.image.tobytes())


def test_the_size_is_the_servers_choice_unless_given(images: ImagesServer, endpoint: Open) -> None:
    endpoint().edit(some_tasks(1))
    assert "size" not in images.calls[0].form


def test_a_third_of_faults_changes_no_image(images: ImagesServer, endpoint: Open) -> None:
    images.faults = Faults(share=0.4, kinds=KINDS, slow=0.3)
    tasks, shares = some_tasks(24), list[float]()
    generated = endpoint(timeout=0.2).edit(tasks, shares.append)
    assert {call.fault for call in images.calls} > {None, "limited", "error", "dropped", "partial"}
    assert pixels(generated) == expected(tasks)
    assert shares == [(number + 1) / 24 for number in range(24)]


@pytest.mark.parametrize("gives", ["b64_json", "data", "path", "url"])
def test_wherever_the_image_is_on_the_server(gives: str, images: ImagesServer, endpoint: Open) -> None:
    images.gives = gives
    tasks = some_tasks(3)
    assert pixels(endpoint().edit(tasks)) == expected(tasks)


@pytest.mark.parametrize(
    ("gives", "message"),
    [("elsewhere", "on another server, 127.0.0.2"), ("redirect", "redirects to http://127.0.0.2:")],
)
def test_an_image_elsewhere_is_not_fetched(gives: str, message: str, images: ImagesServer, endpoint: Open) -> None:
    editor = endpoint()
    editor.edit(some_tasks(1))
    images.gives = gives
    (generated,) = editor.edit(some_tasks(1))
    assert generated.image is None
    assert message in generated.problem


def test_no_more_at_once_than_allowed(images: ImagesServer, endpoint: Open) -> None:
    images.faults = Faults(share=1, kinds=("slow",), max_failures=1, slow=0.05)
    endpoint(batch_size=3).edit(some_tasks(9))
    assert images.most_at_once == 3


def test_it_works_within_a_loop(endpoint: Open) -> None:
    tasks = some_tasks(2)

    async def notebook() -> list[EditorOutput]:
        return endpoint().edit(tasks)

    assert pixels(asyncio.run(notebook())) == expected(tasks)
    assert endpoint().edit([]) == []


@pytest.mark.parametrize("status", [400, 403, 413, 422])
@pytest.mark.parametrize("first", [True, False])
def test_one_image_that_is_refused_fails_alone(
    status: int, first: bool, images: ImagesServer, endpoint: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    images.refuses = {"a gun and a seed": status}
    bad, good = some_tasks(1, "add a gun and a seed")[0], some_tasks(2)
    tasks = [bad, *good] if first else [*good, bad]
    generated = endpoint(batch_size=1).edit(tasks)
    refused = generated.pop(0 if first else -1)
    assert pixels(generated) == expected(good)
    assert refused.image is None
    assert f"the server refuses this: status {status}: Your request" in refused.problem
    assert KEY not in refused.problem
    size = f"the image is {bad.image.width} x {bad.image.height}"
    assert (size in refused.problem) == (status == 413)


@pytest.mark.parametrize("status", [400, 403])
def test_a_server_that_refuses_everything_is_no_editor(
    status: int, images: ImagesServer, endpoint: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    images.refuses = {"": status}
    with pytest.raises(UsageError, match=f"refuses every request: status {status}: .* rejected for Bearer ") as caught:
        endpoint().edit(some_tasks(3))
    assert caught.value.where == images.api_base
    assert KEY not in str(caught.value)


def test_one_image_that_breaks_the_server_fails_alone(images: ImagesServer, endpoint: Open) -> None:
    images.refuses = {"break": 500}
    bad, *good = [*some_tasks(1, "break it"), *some_tasks(2)]
    broken, *generated = endpoint().edit([bad, *good])
    assert pixels(generated) == expected(good)
    assert broken.image is None
    assert "the server fails for this image alone: status 500" in broken.problem


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_only_fails_is_down(kind: str, images: ImagesServer, endpoint: Open) -> None:
    images.faults = Faults(share=1, kinds=(kind,), max_failures=1000, slow=0.3)
    with pytest.raises(EarlError, match="the server makes no images") as caught:
        endpoint(timeout=0.1, backoff=Backoff(attempts=2, rate_limit_attempts=2, first_delay=0.001)).edit(some_tasks(2))
    assert caught.value.where == images.api_base


def test_a_server_that_is_gone(images: ImagesServer, endpoint: Open) -> None:
    images.is_down = True
    with pytest.raises(EarlError, match="the server makes no images: no connection"):
        endpoint().edit(some_tasks(2))


def test_a_server_that_comes_back_during_retries_makes_every_edit(images: ImagesServer, endpoint: Open) -> None:
    images.is_down = True
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        images.is_down = len(waits) < 2

    tasks = some_tasks(1)
    generated = endpoint(backoff=Backoff(attempts=2, first_delay=0.001, sleep=sleep)).edit(tasks)
    assert pixels(generated) == expected(tasks)


def test_a_wrong_key_is_a_mistake_and_stays_secret(
    images: ImagesServer, endpoint: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.key = "another"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UsageError, match="doesn't accept this key") as caught:
        endpoint().edit(some_tasks(3))
    assert "OPENAI_API_KEY" in str(caught.value)
    assert KEY not in f"{caught.value} {caught.value.where}"


def test_a_model_that_is_not_there(images: ImagesServer, endpoint: Open) -> None:
    with pytest.raises(UsageError, match=r"doesn't know the model .*`dall-e` does not exist"):
        endpoint(model="dall-e").edit(some_tasks(1))


def test_a_server_without_seeds_gets_none(images: ImagesServer, endpoint: Open) -> None:
    images.takes_seed = False
    with pytest.raises(UsageError, match=r"takes no seed .*Unknown parameter.*--no-endpoint-seed"):
        endpoint().edit(some_tasks(2))
    tasks = some_tasks(2)
    assert pixels(endpoint(send_seed=False).edit(tasks)) == expected(tasks, seeds=False)


def bomb() -> bytes:
    """A PNG of a hundred kilobytes that says it has 400 million pixels."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000_000), 9)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"<html>Sorry</html>", "this is a web page"),
        (as_png(some_tasks(1)[0].image)[:100], "the image is"),
        (bomb(), "400,000,000 pixels"),
    ],
    ids=["html", "cut", "bomb"],
)
def test_a_response_that_is_no_image_is_a_problem(
    file: bytes, message: str, images: ImagesServer, endpoint: Open
) -> None:
    images.draws = {"odd": file}
    odd, *generated = endpoint().edit([*some_tasks(1, "odd"), *some_tasks(2)])
    assert odd.image is None
    assert "the server's answer: " in odd.problem
    assert message in odd.problem
    assert pixels(generated) == expected(some_tasks(2))


def test_its_description_says_what_edits_depend_on_and_no_password(images: ImagesServer) -> None:
    editor = open_endpoint(images.api_base.replace("//", "//me:word@"), MODEL, size="512x512")
    described = {"name": MODEL, "kind": "endpoint", "address": images.api_base, "model": MODEL, "size": "512x512"}
    assert json.loads(json.dumps(editor.describe())) == {**described, "seeds": True}
    assert (editor.name, editor.batch_size, images.calls) == (MODEL, 4, [])


@pytest.mark.parametrize("address", ["localhost:8000/v1", "ftp://host/v1", "http:///v1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="this is no address of an editor's server"):
        open_endpoint(address, MODEL)
