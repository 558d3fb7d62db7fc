"""The response of an edit: one document, or a stream of events, as the client chose."""

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

POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 10.0


class Connection(Protocol):
    """The part of a connection that a response needs."""

    service: Service
    connection: socket

    def begin(self, status: int, headers: Mapping[str, str]) -> None: ...

    def write(self, content: bytes) -> None: ...

    def send_json(self, status: int, value: Any) -> None: ...


def send_edits(connection: Connection, ticket: Ticket, edit: QueuedEdit, request: ImageEditRequest) -> None:
    """Waits for the edit and sends it. HttpError, or the edit's own failure, if nothing was sent yet.

    ConnectionError as soon as the client is gone.
    """
    if request.stream:
        _stream(connection, ticket, edit, request)
        return
    for status in _statuses(connection, ticket):
        if status.is_over:
            saved = [_entry(connection, edit, request, variant) for variant in _valid(status)]
            entries, lost = [entry for entry, _ in saved], dict.fromkeys(note for _, notes in saved for note in notes)
            document = {"created": int(time.time()), "data": entries, **_shared(edit, request)}
            connection.send_json(200, {**document, "notes": [*_notes(connection, edit, status), *lost]})


def _stream(connection: Connection, ticket: Ticket, edit: QueuedEdit, request: ImageEditRequest) -> None:
    connection.begin(200, {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    seen: QueueStatus | None = None
    try:
        for status in _statuses(connection, ticket):
            if status.is_over:
                notes = _notes(connection, edit, status)
                for variant in _valid(status):
                    entry, lost = _entry(connection, edit, request, variant)
                    entry |= {"created_at": int(time.time()), **_shared(edit, request), "notes": [*notes, *lost]}
                    _event(connection, "image_edit.completed", entry)
            elif request.progress:
                progress = {"state": status.phase, "ahead": status.ahead, "done": status.done, "total": status.total}
                _event(connection, "image_edit.progress", progress)
            elif status is seen:
                connection.write(b":\n\n")
            seen = status
    except OSError:
        raise
    except Exception as failure:  # the HTTP status was sent already, so the error is the last event
        _event(connection, "error", refusal(failure).document)


def _statuses(connection: Connection, ticket: Ticket) -> Iterator[QueueStatus]:
    """The edit's status whenever it changes, and at least every few seconds; the last one is over."""
    service = connection.service
    end = time.monotonic() + service.limits.timeout
    seen: QueueStatus | None = None
    yielded = 0.0
    while seen is None or not seen.is_over:
        status = service.queue.watch(ticket, seen, POLL_SECONDS)
        now = time.monotonic()
        if is_gone(connection.connection):
            raise ConnectionError
        if now > end and not status.is_over:
            raise HttpError(504, f"this took longer than {service.limits.timeout:.0f} s", code="timeout")
        if status is not seen or now - yielded > HEARTBEAT_SECONDS:
            seen, yielded = status, now
            yield status


def _valid(status: QueueStatus) -> Iterator[Variant]:
    """The variants that have an image. HttpError if the edit failed."""
    if status.failure is not None:
        raise refusal(status.failure)
    yield from (variant for variant in status.variants if variant.image is not None)


def _entry(
    connection: Connection, edit: QueuedEdit, request: ImageEditRequest, variant: Variant
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The image with its seed, and notes on metadata of the photo's file that it can't hold."""
    about = connection.service.about
    metadata = provenance(about.model, _understood(connection, edit), str(variant.seed), EditSettings(edit.sampling))
    encoded = io.BytesIO()
    assert variant.image is not None
    lost = save_image(variant.image, encoded, like=edit.image, format=_format(edit, request), texts=metadata)
    return {"b64_json": base64.b64encode(encoded.getbuffer()).decode("ascii"), "seed": variant.seed}, lost


def _shared(edit: QueuedEdit, request: ImageEditRequest) -> dict[str, Any]:
    pixels, form = edit.image.pixels, _format(edit, request)
    background = "transparent" if pixels.mode == "RGBA" and form != "jpeg" else "opaque"
    size = f"{pixels.width}x{pixels.height}"
    return {"background": background, "output_format": form, "quality": "auto", "size": size}


def _format(edit: QueuedEdit, request: ImageEditRequest) -> str:
    own = edit.image.format.lower()
    return request.format or (own if own in FORMATS else "png")


def _notes(connection: Connection, edit: QueuedEdit, status: QueueStatus) -> list[str]:
    """Notes for the person: on the photo, on variants that failed, on how the instruction was understood."""
    found = _understood(connection, edit)
    remark = out_of_range_message(found) if connection.service.about.abilities and found.kind is None else found.remark
    failed = [f"seed {each.seed}: {each.problem}" for each in status.variants if each.problem]
    return [*edit.image.notes, *failed, *([remark] if remark else [])]


def _understood(connection: Connection, edit: QueuedEdit) -> Understood:
    return understand(edit.instruction, connection.service.about.abilities)


def _event(connection: Connection, kind: str, data: Mapping[str, Any]) -> None:
    content = json.dumps({"type": kind, **data})
    connection.write(f"event: {kind}\ndata: {content}\n\n".encode())
