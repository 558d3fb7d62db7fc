"""From a place in the queue to an answer: one document, or events as they happen, as the client wants it."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator, Mapping
from socket import socket
from typing import Any, Protocol

from earl_cli.generation.editing import EditSettings, provenance
from earl_cli.images.image_file import save_image
from earl_cli.models.abilities import Understood, out_of_range_message, understand
from earl_cli.serving.connections import is_gone
from earl_cli.serving.errors import HttpError, refusal
from earl_cli.serving.queue import QueuedEdit, QueueStatus, Ticket, Variant
from earl_cli.serving.request import FORMATS, ImageEditRequest
from earl_cli.serving.service import Service

LOOK_EVERY = 0.25
HEARTBEAT = 10.0


class Connection(Protocol):
    """What of the HTTP side an answer needs."""

    service: Service
    connection: socket

    def begin(self, status: int, headers: Mapping[str, str]) -> None: ...

    def write(self, content: bytes) -> None: ...

    def send_json(self, status: int, value: Any) -> None: ...


def send_edits(connection: Connection, ticket: Ticket, order: QueuedEdit, wanted: ImageEditRequest) -> None:
    """Waits for the order and sends what comes of it. RefusedError, or the order's own failure, if nothing was sent.

    ConnectionError as soon as the client is gone.
    """
    if wanted.stream:
        _stream(connection, ticket, order, wanted)
        return
    for view in _views(connection, ticket):
        if view.is_over:
            saved = [_entry(connection, order, wanted, variant) for variant in _drawn(view)]
            entries, lost = [entry for entry, _ in saved], dict.fromkeys(note for _, notes in saved for note in notes)
            document = {"created": int(time.time()), "data": entries, **_shared(order, wanted)}
            connection.send_json(200, {**document, "notes": [*_notes(connection, order, view), *lost]})


def _stream(connection: Connection, ticket: Ticket, order: QueuedEdit, wanted: ImageEditRequest) -> None:
    connection.begin(200, {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    seen: QueueStatus | None = None
    try:
        for view in _views(connection, ticket):
            if view.is_over:
                notes = _notes(connection, order, view)
                for variant in _drawn(view):
                    entry, lost = _entry(connection, order, wanted, variant)
                    entry |= {"created_at": int(time.time()), **_shared(order, wanted), "notes": [*notes, *lost]}
                    _event(connection, "image_edit.completed", entry)
            elif wanted.progress:
                progress = {"state": view.phase, "ahead": view.ahead, "done": view.done, "total": view.total}
                _event(connection, "image_edit.progress", progress)
            elif view is seen:
                connection.write(b":\n\n")
            seen = view
    except OSError:
        raise
    except Exception as failure:  # the status is out already, so that it is the last event
        _event(connection, "error", refusal(failure).document)


def _views(connection: Connection, ticket: Ticket) -> Iterator[QueueStatus]:
    """How far the order is, whenever that changes and at least every few seconds; the last one is over."""
    service = connection.service
    end = time.monotonic() + service.limits.patience
    seen: QueueStatus | None = None
    told = 0.0
    while seen is None or not seen.is_over:
        view = service.queue.watch(ticket, seen, LOOK_EVERY)
        now = time.monotonic()
        if is_gone(connection.connection):
            raise ConnectionError
        if now > end and not view.is_over:
            raise HttpError(504, f"this took longer than {service.limits.patience:.0f} s", code="timeout")
        if view is not seen or now - told > HEARTBEAT:
            seen, told = view, now
            yield view


def _drawn(view: QueueStatus) -> Iterator[Variant]:
    """The variants that there are. RefusedError if the order failed."""
    if view.failure is not None:
        raise refusal(view.failure)
    yield from (variant for variant in view.variants if variant.image is not None)


def _entry(
    connection: Connection, order: QueuedEdit, wanted: ImageEditRequest, variant: Variant
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the picture with its seed, what of the photo's file is lost in it)."""
    about = connection.service.about
    metadata = provenance(about.model, _understood(connection, order), str(variant.seed), EditSettings(order.sampling))
    encoded = io.BytesIO()
    assert variant.image is not None
    lost = save_image(variant.image, encoded, like=order.picture, format=_format(order, wanted), texts=metadata)
    return {"b64_json": base64.b64encode(encoded.getbuffer()).decode("ascii"), "seed": variant.seed}, lost


def _shared(order: QueuedEdit, wanted: ImageEditRequest) -> dict[str, Any]:
    pixels, form = order.picture.pixels, _format(order, wanted)
    background = "transparent" if pixels.mode == "RGBA" and form != "jpeg" else "opaque"
    size = f"{pixels.width}x{pixels.height}"
    return {"background": background, "output_format": form, "quality": "auto", "size": size}


def _format(order: QueuedEdit, wanted: ImageEditRequest) -> str:
    own = order.picture.format.lower()
    return wanted.format or (own if own in FORMATS else "png")


def _notes(connection: Connection, order: QueuedEdit, view: QueueStatus) -> list[str]:
    """What the person should know: of the photo, of variants that failed, of how the instruction was understood."""
    found = _understood(connection, order)
    remark = out_of_range_message(found) if connection.service.about.abilities and found.kind is None else found.remark
    failed = [f"seed {each.seed}: {each.problem}" for each in view.variants if each.problem]
    return [*order.picture.notes, *failed, *([remark] if remark else [])]


def _understood(connection: Connection, order: QueuedEdit) -> Understood:
    return understand(order.instruction, connection.service.about.abilities)


def _event(connection: Connection, kind: str, data: Mapping[str, Any]) -> None:
    content = json.dumps({"type": kind, **data})
    connection.write(f"event: {kind}\ndata: {content}\n\n".encode())
