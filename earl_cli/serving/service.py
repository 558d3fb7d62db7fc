"""What all connections of a server share: the model's name and queue, the limits, the key, the page's files."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from earl_cli import version
from earl_cli.config.sampling import SamplingParams
from earl_cli.console import console
from earl_cli.generation.editor import Editor
from earl_cli.models.abilities import examples
from earl_cli.serving.limits import ByteBudget, ConcurrencyLimit, Rate, ServerLimits
from earl_cli.serving.queue import EditQueue, editing_work
from earl_cli.serving.site import Site

OPENED_AT_ONCE = 2
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/script.js": ("script.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


@dataclass(frozen=True)
class About:
    """The server's model; ``abilities`` as in earl.json."""

    model: str
    engine: str
    device: str
    sampling: SamplingParams
    abilities: Mapping[str, Any] | None = None
    suggestions: Sequence[str] = ()


@dataclass(eq=False)
class Service:
    """What all connections share. Every client needs the ``key``; without one every client has access."""

    about: About
    queue: EditQueue
    limits: ServerLimits
    key: str | None
    site: Site
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.rate, self.wrong_keys = Rate(self.limits.rate), Rate(self.limits.wrong_keys)
        self.budget = ByteBudget(self.limits.uploads)
        self.places = ConcurrencyLimit(self.limits.requests, self.limits.share)
        self._has_warned = False
        self.opening = threading.BoundedSemaphore(OPENED_AT_ONCE)
        room = files("earl_cli.serving") / "page"
        self.page = {path: ((room / name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}

    def client(self, peer: str, forwarded: str | None) -> str:
        """The client's address (`Site.client`). Warns once where a proxy's clients can't be told apart."""
        if forwarded and not self.site.is_proxy(peer) and not self._has_warned:
            self._has_warned = True
            console.warn(
                f"requests come through a proxy at {peer}, and all who use it count as one address (--rate, wrong "
                f"keys): --trusted-proxy {peer} trusts the addresses that it gives"
            )
        return self.site.client(peer, forwarded)

    def health(self) -> dict[str, Any]:
        """The state of the server, for people and supervisors."""
        return {
            "status": self.queue.state,
            "model": self.about.model,
            "engine": self.about.engine,
            "device": self.about.device,
            "queue": {"waiting": self.queue.waiting, "drawing": self.queue.running, "most": self.limits.max_queue},
            "edits": self.queue.finished,
            "uptime": round(time.monotonic() - self.started, 1),
            "version": version(),
        }

    def settings(self) -> dict[str, Any]:
        """The settings of the page."""
        return {
            "model": self.about.model,
            "suggestions": list(self.about.suggestions),
            "max_variants": self.limits.max_variants,
            "max_bytes": self.limits.upload,
            "needs_key": self.key is not None,
        }

    def model(self) -> dict[str, Any]:
        """The model in the protocol's list."""
        return {"id": self.about.model, "object": "model", "created": 0, "owned_by": "earl"}


def service_of(editor: Editor, limits: ServerLimits, key: str | None, site: Site) -> Service:
    """The service of one loaded editor."""
    model = editor.model
    about = About(
        model.name,
        editor.engine_name,
        str(model.device),
        editor.settings.sampling,
        model.abilities,
        examples(model.abilities) if model.abilities else (),
    )
    return Service(about, EditQueue(editing_work(editor), limits), limits, key, site)
