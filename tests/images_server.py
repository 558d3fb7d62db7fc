"""An image model to test against: a web server on this machine that speaks the edit part of the OpenAI protocol.

It draws by content (the negative of the image, tinted by instruction and seed), so that a healthy and a faulty one
draw the same, and it can misbehave in every way that real servers do.
"""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import io
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from judge_server import Faults
from local_server import LocalHandler, LocalServer
from PIL import Image

MODEL = "qwen-image-edit"
KINDS = ("slow", "no json", "nothing", "partial", "limited", "error", "dropped")


@dataclass(frozen=True)
class Call:
    """An edit as the server saw it: the form's fields, the type and bytes of the file, the key, what happened to it."""

    form: Mapping[str, str]
    kind: str
    file: bytes
    key: str
    fault: str | None


@dataclass
class ImagesServer:
    """The server, from `start` to `stop`; ``api_base`` is its address. Change how it behaves at any time.

    ``gives`` says where an image is: "b64_json", "data" (a URL of that kind), "path", "url", "redirect" or "elsewhere"
    (on another server).
    """

    faults: Faults = field(default_factory=Faults)
    key: str | None = None  # the only one that is let in
    is_down: bool = False  # hangs up on everybody
    takes_seed: bool = True  # else status 400 for a form with one
    refuses: Mapping[str, int] = field(default_factory=dict)  # status for instructions with this text
    draws: Mapping[str, bytes] = field(default_factory=dict)  # file for instructions with this text
    gives: str = "b64_json"
    calls: list[Call] = field(default_factory=list)
    most_at_once: int = 0
    api_base: str = ""

    def start(self) -> ImagesServer:
        """Listens on a free port of 127.0.0.1."""
        self.lock, self.at_once, self.attempts = threading.Lock(), 0, Counter[str]()
        self.files: dict[str, bytes] = {}
        self.server = LocalServer(self, _Handler).start()
        self.api_base = f"{self.server.address}/v1"
        return self

    def stop(self) -> None:
        """Ends every connection and listens no more."""
        self.server.stop()


def negative(image: Image.Image, instruction: str, seed: int | None) -> Image.Image:
    """What the server draws."""
    tint = hashlib.sha256(f"{instruction} {seed}".encode()).digest()[:3]
    return Image.fromarray(255 - np.asarray(image) ^ np.frombuffer(tint, np.uint8))


def as_png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


class _Handler(LocalHandler):
    def do_GET(self) -> None:
        images, name = self.server.owner, self.path.rpartition("/")[2]
        if not self._is_let_in():
            return
        if images.gives == "redirect" and not name.startswith("moved-"):
            images.files[f"moved-{name}"] = images.files[name]
            self.send(302, b"", {"Location": f"http://127.0.0.2:{self.server.server_address[1]}/files/moved-{name}"})
        elif name in images.files:
            self.send(200, images.files[name], {"Content-Type": "image/png"})
        else:
            self.send_error_of(404, "There is no such file.")

    def do_POST(self) -> None:
        form, kind, file = self._form()
        if not self._is_let_in():
            return
        images = self.server.owner
        with images.lock:
            images.at_once += 1
            images.most_at_once = max(images.most_at_once, images.at_once)
        try:
            self._answer(images, form, kind, file)
        finally:
            with images.lock:
                images.at_once -= 1

    def _form(self) -> tuple[dict[str, str], str, bytes]:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        form, kind, file = dict[str, str](), "", b""
        for part in email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts():
            content = part.get_payload(decode=True)
            if part.get_filename() is None:
                form[part.get_param("name", header="content-disposition")] = content.decode()
            else:
                kind, file = part.get_content_type(), content
        return form, kind, file

    def _is_let_in(self) -> bool:
        images, key = self.server.owner, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if images.is_down:
            self.drop()
            return False
        if images.key is not None and key != images.key:
            self.send_error_of(401, f"Incorrect API key provided: {key}")
            return False
        return True

    def _answer(self, images: ImagesServer, form: Mapping[str, str], kind: str, file: bytes) -> None:
        key, instruction = self.headers.get("Authorization", ""), form["prompt"]
        content = hashlib.sha256(f"{sorted(form.items())}".encode() + file).hexdigest()
        with images.lock:
            fault = images.faults.of(content, images.attempts[content])
            images.attempts[content] += 1
            images.calls.append(Call(form, kind, file, key, fault))
        if self.path != "/v1/images/edits" or form["model"] != MODEL:
            return self.send_error_of(404, f"The model `{form['model']}` does not exist.")
        if "seed" in form and not images.takes_seed:
            return self.send_error_of(400, "Unknown parameter: 'seed'.", param="seed")
        for text, status in images.refuses.items():
            if text in instruction:
                return self.send_error_of(status, f"Your request {instruction!r} was rejected for {key}.")
        if fault not in (None, "slow"):
            return self._fail(images, fault)
        if fault == "slow":
            time.sleep(images.faults.slow)
        with Image.open(io.BytesIO(file)) as image:
            seed = int(form["seed"]) if "seed" in form else None
            generated = as_png(negative(image, instruction, seed))
        return self._give(images, next((each for text, each in images.draws.items() if text in instruction), generated))

    def _give(self, images: ImagesServer, file: bytes) -> None:
        code, name = base64.b64encode(file).decode(), hashlib.sha256(file).hexdigest()
        images.files[name] = file
        path, host = f"/files/{name}", images.api_base.removesuffix("/v1")
        urls = {
            "data": f"data:image/png;base64,{code}",
            "path": path,
            "url": host + path,
            "redirect": host + path,
            "elsewhere": "http://127.0.0.2" + path,
        }
        entry = {"b64_json": code} if images.gives == "b64_json" else {"url": urls[images.gives]}
        self.send_json(200, {"created": 0, "data": [entry]})

    def _fail(self, images: ImagesServer, fault: str | None) -> None:
        match fault:
            case "no json":
                self.send(200, b'{"created": 0, "da', {})
            case "nothing":
                self.send_json(200, {"created": 0, "data": []})
            case "limited":
                self.send_error_of(429, "Too many requests.", {"Retry-After": str(images.faults.retry_after)})
            case "error":
                self.send_error_of(503, "The engine is starting.")
            case "partial":
                self.send(200, b'{"created": 0, "data": [', {"Content-Length": "1000"})
                self.drop()
            case "dropped":
                self.drop()
