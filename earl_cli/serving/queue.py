"""The queue of edits in front of the model: bounded, first come first served, sampled by one worker thread.

Requests with equal sampling parameters are sampled as one batch. Every wait has a timeout: an edit whose client
disconnects is dropped, and when the worker ends, all waiting edits fail.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from earl_cli.console import console
from earl_cli.errors import EarlError, ModelError
from earl_cli.generation.editing import EditJob, SampledEdit, decode_image, render_edit, sample_edits
from earl_cli.generation.editor import Editor
from earl_cli.generation.engine import OnProgress
from earl_cli.generation.vllm.watchdog import EngineError
from earl_cli.serving.errors import HttpError, refusal, report
from earl_cli.serving.limits import ServerLimits, give_back_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from earl_cli.config.sampling import SamplingParams
    from earl_cli.images.image_file import ImageFile

MAX_BATCH = 8  # variants
FAILING_AFTER = 3
PROGRESS_EVERY = 0.1
STALE = 60.0
Phase = Literal["waiting", "drawing", "drawn", "failed"]  # also the `state` of HTTP events, so these names stay


@dataclass(frozen=True, eq=False)
class QueuedEdit:
    """One image, the instruction, and a seed for each variant."""

    image: ImageFile
    instruction: str
    seeds: tuple[int, ...]
    sampling: SamplingParams

    @property
    def pixels(self) -> int:
        """Of the image."""
        return self.image.rgb.width * self.image.rgb.height


@dataclass(frozen=True, eq=False)
class Variant:
    """An edit at the photo's own size; ``problem`` says what is wrong with it, or why there is none."""

    seed: int
    image: Image | None
    problem: str | None = None


Work: TypeAlias = "Callable[[Sequence[QueuedEdit], OnProgress], Iterator[list[Variant] | Exception]]"
"""Makes a batch of edits: for each in order its variants, or what went wrong with it, as soon as they are there."""


@dataclass(frozen=True, eq=False)
class QueueStatus:
    """How far an edit is: ``ahead`` edits are before it; ``done`` of ``total`` tokens are those of its batch."""

    phase: Phase
    ahead: int = 0
    done: int = 0
    total: int = 0
    variants: tuple[Variant, ...] = ()
    failure: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.phase in ("drawn", "failed")


@dataclass(eq=False)
class Ticket:
    """An edit in the queue; `EditQueue` changes its status, `EditQueue.watch` reads it."""

    edit: QueuedEdit
    status: QueueStatus
    is_cancelled: bool = False


class AbandonedError(Exception):
    """All edits of the running batch were cancelled."""


@dataclass(eq=False)
class EditQueue:
    """The queue, and from `start` to `close` its worker thread."""

    work: Work
    limits: ServerLimits
    finished: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._batch: list[Ticket] = []
        self._is_closed = self._has_ended = False
        self._failed_in_a_row = 0
        self._progressed = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="editor", daemon=True)

    def start(self) -> EditQueue:
        """Start the worker thread."""
        self._thread.start()
        return self

    def close(self, timeout: float = 5) -> None:
        """Accept nothing more and fail all waiting edits; returns when the thread has ended, or after the timeout."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._fail_all()

    # -- for connections -----------------------------------------------------------------------------------------

    def submit(self, edit: QueuedEdit) -> Ticket:
        """Append an edit to the queue. HttpError: 429 if it is full, 503 if the worker has ended."""
        with self._changed:
            self._check_open()
            pixels = sum(ticket.edit.pixels for ticket in self._waiting) + edit.pixels
            full = len(self._waiting) >= self.limits.max_queue
            if full or (self._waiting and pixels > 2 * self.limits.max_pixels):
                what = f"{len(self._waiting)} edits are waiting already; try again in a moment"
                raise HttpError(429, what, code="queue_full", retry_after=5)
            ticket = Ticket(edit, QueueStatus("waiting", len(self._batch) + len(self._waiting)))
            self._waiting.append(ticket)
            self._changed.notify_all()
            return ticket

    def check_room(self) -> None:
        """Raise what `submit` would, as far as that can be known before the image is there."""
        with self._changed:
            self._check_open()
            if len(self._waiting) >= self.limits.max_queue:
                what = f"{len(self._waiting)} edits are waiting already; try again in a moment"
                raise HttpError(429, what, code="queue_full", retry_after=5)

    def watch(self, ticket: Ticket, seen: QueueStatus | None, timeout: float) -> QueueStatus:
        """The status: at once if it isn't the one that was ``seen``, else at its next change or after the timeout."""
        with self._changed:
            if ticket.status is seen:
                self._changed.wait_for(lambda: ticket.status is not seen, timeout)
            return ticket.status

    def cancel(self, ticket: Ticket) -> None:
        """Drop the edit if it waits; a running batch stops once all of its edits are cancelled."""
        with self._changed:
            ticket.is_cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._update_places()

    # -- for /health ---------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many edits wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many edits are in the running batch."""
        return len(self._batch)

    @property
    def state(self) -> Literal["ok", "failing", "stuck", "dead", "stopping"]:
        """Failing: the last few edits all failed unexpectedly, or the engine died.

        Stuck: a batch runs without progress for a minute.
        """
        if self._is_closed:
            return "stopping"
        if self._has_ended:
            return "dead"
        if self._batch and time.monotonic() - self._progressed > STALE:
            return "stuck"
        return "failing" if self._failed_in_a_row >= FAILING_AFTER else "ok"

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._run_next_batch():
                give_back_memory()
        except BaseException as failure:  # nothing above catches it; `state` shows that the thread has ended
            report(failure)
            console.warn("the worker thread has ended: restart the server")
        finally:
            with self._changed:
                self._has_ended = True
                self._fail_all()

    def _run_next_batch(self) -> bool:
        """Whether there was a batch. While the thread waits for the next one, it holds no images of the last one."""
        batch = self._next_batch()
        if batch:
            self._run_batch(batch)
        with self._changed:
            self._batch = []
        return bool(batch)

    def _next_batch(self) -> list[Ticket]:
        """The first edit, and those right behind it that fit into its batch; empty when the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return []
            batch = [self._waiting.popleft()]
            while self._waiting and self._fits(batch, self._waiting[0]):
                batch.append(self._waiting.popleft())
            self._batch, self._progressed = batch, time.monotonic()
            for ticket in batch:
                self._set_status(ticket, QueueStatus("drawing"))
            self._update_places()
            return batch

    def _fits(self, batch: Sequence[Ticket], ticket: Ticket) -> bool:
        edits = [*(each.edit for each in batch), ticket.edit]
        return (
            ticket.edit.sampling == batch[0].edit.sampling
            and sum(len(edit.seeds) for edit in edits) <= MAX_BATCH
            and sum(edit.pixels for edit in edits) <= self.limits.max_pixels
        )

    def _run_batch(self, batch: Sequence[Ticket]) -> None:
        shown = 0.0

        def on_progress(done: int, total: int) -> None:
            nonlocal shown
            self._progressed = now = time.monotonic()
            if self._is_closed or all(ticket.is_cancelled for ticket in batch):
                raise AbandonedError
            if now - shown >= PROGRESS_EVERY:
                shown = now
                with self._changed:
                    for ticket in batch:
                        self._set_status(ticket, QueueStatus("drawing", 0, done, total))

        left = deque(batch)
        try:
            for outcome in self.work([ticket.edit for ticket in batch], on_progress):
                self._finish(left.popleft(), outcome)
        except AbandonedError:
            with self._changed:
                for ticket in left:
                    self._set_status(ticket, QueueStatus("failed", failure=self._unavailable()))
        except Exception as failure:  # the thread survives a failed batch
            while left:
                self._finish(left.popleft(), failure)

    def _finish(self, ticket: Ticket, outcome: list[Variant] | Exception) -> None:
        self._progressed = time.monotonic()
        if not isinstance(outcome, Exception):
            self._failed_in_a_row, self.finished = 0, self.finished + 1
            status = QueueStatus("drawn", variants=tuple(outcome))
        else:
            if refusal(outcome).status >= 500:
                self._failed_in_a_row += FAILING_AFTER if isinstance(outcome, EngineError) else 1
                report(outcome)
            status = QueueStatus("failed", failure=outcome)
        with self._changed:
            self._set_status(ticket, status)

    def _set_status(self, ticket: Ticket, status: QueueStatus) -> None:
        if not ticket.status.is_over:
            ticket.status = status
            self._changed.notify_all()

    def _update_places(self) -> None:
        for place, ticket in enumerate(self._waiting, start=len(self._batch)):
            self._set_status(ticket, QueueStatus("waiting", place))

    def _check_open(self) -> None:
        if self.state in ("dead", "stopping"):
            raise self._unavailable()

    def _unavailable(self) -> HttpError:
        what = "the server is stopping" if self._is_closed else "the model behind this server has stopped working"
        return HttpError(503, what, code="unavailable")

    def _fail_all(self) -> None:
        with self._changed:
            while self._batch or self._waiting:
                ticket = self._batch.pop() if self._batch else self._waiting.popleft()
                self._set_status(ticket, QueueStatus("failed", failure=self._unavailable()))


def editing_work(editor: Editor) -> Work:
    """The work of ``editor``: a batch is sampled at once, and if that fails, each edit alone, to find the bad one."""

    def work(edits: Sequence[QueuedEdit], on_progress: OnProgress) -> Iterator[list[Variant] | Exception]:
        for edit, samples in zip(edits, _sample(editor, edits, on_progress), strict=True):
            try:
                yield samples if isinstance(samples, Exception) else _variants(editor, edit, samples)
            except Exception as failure:  # of this edit alone
                yield failure

    return work


def _sample(
    editor: Editor, edits: Sequence[QueuedEdit], on_progress: OnProgress
) -> list[list[SampledEdit] | Exception]:
    jobs = [EditJob(edit.image.rgb, edit.instruction, edit.seeds) for edit in edits]
    settings = replace(editor.settings, sampling=edits[0].sampling)
    try:
        with editor.session():
            return [*sample_edits(editor.model, editor.engine, jobs, settings, on_progress)]
    except AbandonedError:
        raise
    except Exception as failure:  # of one edit, which sampling each alone will find
        if len(edits) == 1:
            return [failure]
        return [samples for edit in edits for samples in _sample(editor, [edit], on_progress)]


def _variants(editor: Editor, edit: QueuedEdit, samples: Sequence[SampledEdit]) -> list[Variant]:
    """Every variant at the photo's own size. ModelError if all of them are invalid."""
    variants = []
    with editor.session():
        before = decode_image(editor.model, samples[0].source)
        for each in samples:
            try:
                edited = render_edit(editor.model, edit.image.pixels, before, each, "source")
                variants.append(Variant(each.seed, edited.image, edited.problem))
            except EarlError as error:
                variants.append(Variant(each.seed, None, error.what))
    if all(variant.image is None for variant in variants):
        raise ModelError(variants[0].problem or "the model made no image")
    return variants
