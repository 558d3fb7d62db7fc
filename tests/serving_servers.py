"""Servers of ``earl serve`` inside the test's process, with a tiny model or with work that a test invents."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import httpx2 as httpx
import numpy as np
import openai
from PIL import Image

from earl_cli.config.sampling import SamplingParams
from earl_cli.generation.engine import OnProgress
from earl_cli.serving.app import serve
from earl_cli.serving.connections import Server
from earl_cli.serving.limits import ServerLimits
from earl_cli.serving.queue import EditQueue, QueuedEdit, Variant, Work
from earl_cli.serving.service import About, Service
from earl_cli.serving.site import Site

FORM = b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
ABOUT = About("tiny", "transformers", "cpu", SamplingParams(1.0, 64, 1.0))


@dataclass
class Running:
    """A server that listens, from `running`."""

    service: Service
    server: Server

    @property
    def address(self) -> str:
        """Of the page."""
        return self.server.page_address

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        return self.server.host, self.server.port

    def client(self, **settings: object) -> openai.OpenAI:
        """The real client, which doesn't retry by default."""
        return openai.OpenAI(**{"base_url": f"{self.address}v1", "api_key": "none", "max_retries": 0, **settings})

    def post(self, **more: object) -> httpx.Response:
        """A form: fields, and the file ``image``."""
        fields = {"prompt": "make it snowy", **more}
        image = fields.pop("image", png(3))
        headers = fields.pop("headers", {})
        files = {} if image is None else {"image": ("a.png", image)}
        form = {name: str(value) for name, value in fields.items() if value is not None}
        return httpx.post(f"{self.address}v1/images/edits", data=form, files=files, headers=headers, timeout=60)

    def raw(self, sent: bytes, seconds: float = 20) -> bytes:
        """What comes back for these bytes, until the server closes."""
        with socket.create_connection(self.place, timeout=seconds) as connection:
            connection.sendall(sent)
            return b"".join(iter(lambda: connection.recv(65536), b""))


def error_of(answer: httpx.Response, status: int) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return dict(error)


@contextmanager
def running(
    work: Work | None = None,
    limits: ServerLimits | None = None,
    service: Service | None = None,
    key: str | None = None,
    site: Site | None = None,
) -> Iterator[Running]:
    """A server on a free port of 127.0.0.1, with this ``work`` or a whole ``service``."""
    limits = limits or ServerLimits(rate=0)
    if service is None:
        service = Service(ABOUT, EditQueue(work or inverting, limits), limits, key, site or Site(is_local=True))
    server = Server("127.0.0.1", 0, service.limits.connections)
    ready = threading.Event()
    thread = threading.Thread(target=serve, args=(server, service, ready.set), daemon=True)
    thread.start()
    assert ready.wait(20)
    yield Running(service, server)
    server.shutdown()
    thread.join(20)
    assert not thread.is_alive()


def inverting(orders: Sequence[QueuedEdit], on_progress: OnProgress) -> Iterator[list[Variant]]:
    """Every variant is the negative of the image."""
    on_progress(1, 1)
    for order in orders:
        negative = Image.fromarray(255 - np.asarray(order.image.rgb))
        yield [Variant(seed, negative) for seed in order.seeds]


@dataclass
class Gate:
    """Work that waits until the test opens it; ``batches`` are the instructions of each batch."""

    batches: list[list[str]] = field(default_factory=list)
    breaks: Callable[[QueuedEdit], BaseException | None] = lambda _: None

    @cached_property
    def open(self) -> threading.Event:
        return threading.Event()

    @cached_property
    def reached(self) -> threading.Semaphore:
        """Counts the batches that have come."""
        return threading.Semaphore(0)

    def __call__(self, orders: Sequence[QueuedEdit], on_progress: OnProgress) -> Iterator[list[Variant] | Exception]:
        self.batches.append([order.instruction for order in orders])
        self.reached.release()
        while not self.open.wait(0.01):
            on_progress(1, 2)
        for order, variants in zip(orders, inverting(orders, on_progress), strict=True):
            failure = self.breaks(order)
            if failure is not None and not isinstance(failure, Exception):
                raise failure
            yield failure or variants


def png(seed: int, size: tuple[int, int] = (40, 24)) -> bytes:
    """Noise as a PNG file."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return saved(Image.fromarray(noise))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def eventually(is_so: Callable[[], object], seconds: float = 60) -> bool:
    """Whether this comes true within so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.01)
    return False
