"""The queue of edits in front of the model: bounded, first come first served, sampled by one worker thread.

Requests with equal sampling parameters are sampled as one batch. Every wait has a timeout: an edit whose client
disconnects is dropped, and when the worker ends, all waiting edits fail.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from earl_cli.console import console
from earl_cli.generation.vllm.watchdog import EngineError
from earl_cli.serving.errors import HttpError, refusal, report
from earl_cli.serving.limits import ServerLimits, give_back_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from earl_cli.config.sampling import SamplingParams
    from earl_cli.generation.engine import OnProgress
    from earl_cli.images.image_file import ImageFile


from dataclasses import replace

from earl_cli.errors import EarlError, ModelError
from earl_cli.generation.editing import EditJob, SampledEdit, decode_image, render_edit, sample_edits
from earl_cli.generation.editor import Editor
from earl_cli.generation.engine import OnProgress

TOGETHER = 8
FAILING_AFTER = 3
PROGRESS_EVERY = 0.1
STALE = 60.0
Phase = Literal["waiting", "drawing", "drawn", "failed"]


@dataclass(frozen=True, eq=False)
class QueuedEdit:
    """One picture, what to do with it, and a seed for each variant."""

    picture: ImageFile
    instruction: str
    seeds: tuple[int, ...]
    sampling: SamplingParams

    @property
    def pixels(self) -> int:
        """Of the picture."""
        return self.picture.rgb.width * self.picture.rgb.height


@dataclass(frozen=True, eq=False)
class Variant:
    """An edit at the photo's own size; in words what is wrong with it, or why there is none."""

    seed: int
    image: Image | None
    problem: str | None = None


Work: TypeAlias = "Callable[[Sequence[QueuedEdit], OnProgress], Iterator[list[Variant] | Exception]]"
"""Draws a batch: for each order its variants, or what went wrong with it, in order and as soon as they are there."""


@dataclass(frozen=True, eq=False)
class QueueStatus:
    """How far an order is: ``ahead`` are the edits before it; ``done`` of ``total`` tokens are those of its batch."""

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
    """An order in the queue; `EditQueue` changes it, and `EditQueue.watch` looks at it."""

    order: QueuedEdit
    view: QueueStatus
    is_left: bool = False


class AbandonedError(Exception):
    """No client waits for the batch that is being drawn."""


@dataclass(eq=False)
class EditQueue:
    """The queue, and from `start` to `close` the thread that works through it."""

    work: Work
    limits: ServerLimits
    drawn: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._batch: list[Ticket] = []
        self._is_closed = self._has_ended = False
        self._failed_in_a_row = 0
        self._moved = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="editor", daemon=True)

    def start(self) -> EditQueue:
        """From here on orders are drawn."""
        self._thread.start()
        return self

    def close(self, seconds: float = 5) -> None:
        """Nothing more is taken on, and whoever waits is told; returns when the thread has ended, or after so long."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._tell_everybody()

    # -- for those who wait --------------------------------------------------------------------------------------

    def submit(self, order: QueuedEdit) -> Ticket:
        """A place at the end of the queue. RefusedError: 429 if it is full, 503 if the thread has ended."""
        with self._changed:
            self._check_open()
            pixels = sum(ticket.order.pixels for ticket in self._waiting) + order.pixels
            full = len(self._waiting) >= self.limits.max_queue
            if full or (self._waiting and pixels > 2 * self.limits.max_pixels):
                what = f"{len(self._waiting)} edits are waiting already; try again in a moment"
                raise HttpError(429, what, code="queue_full", retry_after=5)
            ticket = Ticket(order, QueueStatus("waiting", len(self._batch) + len(self._waiting)))
            self._waiting.append(ticket)
            self._changed.notify_all()
            return ticket

    def check_room(self) -> None:
        """Raise what `submit` would, as far as that can be known before the picture is there."""
        with self._changed:
            self._check_open()
            if len(self._waiting) >= self.limits.max_queue:
                what = f"{len(self._waiting)} edits are waiting already; try again in a moment"
                raise HttpError(429, what, code="queue_full", retry_after=5)

    def watch(self, ticket: Ticket, seen: QueueStatus | None, seconds: float) -> QueueStatus:
        """How far the order is: at once if that isn't what was ``seen``, else at the next change or after so long."""
        with self._changed:
            if ticket.view is seen:
                self._changed.wait_for(lambda: ticket.view is not seen, seconds)
            return ticket.view

    def leave(self, ticket: Ticket) -> None:
        """No client waits for this order any more."""
        with self._changed:
            ticket.is_left = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._count()

    # -- for those who look --------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Orders in the queue."""
        return len(self._waiting)

    @property
    def drawing(self) -> int:
        """Orders that are being drawn."""
        return len(self._batch)

    @property
    def state(self) -> Literal["ok", "failing", "stuck", "dead", "stopping"]:
        """Failing: the last few edits all failed unexpectedly, or the engine died.

        Stuck: nothing has moved for a minute amid work.
        """
        if self._is_closed:
            return "stopping"
        if self._has_ended:
            return "dead"
        if self._batch and time.monotonic() - self._moved > STALE:
            return "stuck"
        return "failing" if self._failed_in_a_row >= FAILING_AFTER else "ok"

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._draw_next():
                give_back_memory()
        except BaseException as failure:  # nothing above catches it; `state` says that the thread has ended
            report(failure)
            console.warn("the thread that draws has ended: start the server again")
        finally:
            with self._changed:
                self._has_ended = True
                self._tell_everybody()

    def _draw_next(self) -> bool:
        """Whether there was a batch. This thread, which waits for the next one then, holds none of its pictures."""
        batch = self._next()
        if batch:
            self._draw(batch)
        with self._changed:
            self._batch = []
        return bool(batch)

    def _next(self) -> list[Ticket]:
        """The first order, and those right behind it that can go with it; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return []
            batch = [self._waiting.popleft()]
            while self._waiting and self._fits(batch, self._waiting[0]):
                batch.append(self._waiting.popleft())
            self._batch, self._moved = batch, time.monotonic()
            for ticket in batch:
                self._show(ticket, QueueStatus("drawing"))
            self._count()
            return batch

    def _fits(self, batch: Sequence[Ticket], ticket: Ticket) -> bool:
        orders = [*(each.order for each in batch), ticket.order]
        return (
            ticket.order.sampling == batch[0].order.sampling
            and sum(len(order.seeds) for order in orders) <= TOGETHER
            and sum(order.pixels for order in orders) <= self.limits.max_pixels
        )

    def _draw(self, batch: Sequence[Ticket]) -> None:
        shown = 0.0

        def on_progress(done: int, total: int) -> None:
            nonlocal shown
            self._moved = now = time.monotonic()
            if self._is_closed or all(ticket.is_left for ticket in batch):
                raise AbandonedError
            if now - shown >= PROGRESS_EVERY:
                shown = now
                with self._changed:
                    for ticket in batch:
                        self._show(ticket, QueueStatus("drawing", 0, done, total))

        left = deque(batch)
        try:
            for outcome in self.work([ticket.order for ticket in batch], on_progress):
                self._finish(left.popleft(), outcome)
        except AbandonedError:
            with self._changed:
                for ticket in left:
                    self._show(ticket, QueueStatus("failed", failure=self._gone()))
        except Exception as failure:  # the thread outlives whatever is wrong with a batch
            while left:
                self._finish(left.popleft(), failure)

    def _finish(self, ticket: Ticket, outcome: list[Variant] | Exception) -> None:
        self._moved = time.monotonic()
        if not isinstance(outcome, Exception):
            self._failed_in_a_row, self.drawn = 0, self.drawn + 1
            view = QueueStatus("drawn", variants=tuple(outcome))
        else:
            if refusal(outcome).status >= 500:
                self._failed_in_a_row += FAILING_AFTER if isinstance(outcome, EngineError) else 1
                report(outcome)
            view = QueueStatus("failed", failure=outcome)
        with self._changed:
            self._show(ticket, view)

    def _show(self, ticket: Ticket, view: QueueStatus) -> None:
        if not ticket.view.is_over:
            ticket.view = view
            self._changed.notify_all()

    def _count(self) -> None:
        for place, ticket in enumerate(self._waiting, start=len(self._batch)):
            self._show(ticket, QueueStatus("waiting", place))

    def _check_open(self) -> None:
        if self.state in ("dead", "stopping"):
            raise self._gone()

    def _gone(self) -> HttpError:
        what = "the server is stopping" if self._is_closed else "the model behind this server has stopped working"
        return HttpError(503, what, code="unavailable")

    def _tell_everybody(self) -> None:
        with self._changed:
            while self._batch or self._waiting:
                ticket = self._batch.pop() if self._batch else self._waiting.popleft()
                self._show(ticket, QueueStatus("failed", failure=self._gone()))


def drawing(editor: Editor) -> Work:
    """How ``editor`` draws a batch. All of it is sampled at once; one order that spoils that is found and left out."""

    def work(orders: Sequence[QueuedEdit], on_progress: OnProgress) -> Iterator[list[Variant] | Exception]:
        for order, drafts in zip(orders, _drafts(editor, orders, on_progress), strict=True):
            try:
                yield drafts if isinstance(drafts, Exception) else _variants(editor, order, drafts)
            except Exception as failure:  # this order's own
                yield failure

    return work


def _drafts(
    editor: Editor, orders: Sequence[QueuedEdit], on_progress: OnProgress
) -> list[list[SampledEdit] | Exception]:
    jobs = [EditJob(order.picture.rgb, order.instruction, order.seeds) for order in orders]
    settings = replace(editor.settings, sampling=orders[0].sampling)
    try:
        with editor.session():
            return [*sample_edits(editor.model, editor.engine, jobs, settings, on_progress)]
    except AbandonedError:
        raise
    except Exception as failure:  # told to whom it belongs, once that is clear
        if len(orders) == 1:
            return [failure]
        return [drafts for order in orders for drafts in _drafts(editor, [order], on_progress)]


def _variants(editor: Editor, order: QueuedEdit, drafts: Sequence[SampledEdit]) -> list[Variant]:
    """Every variant at the photo's own size. ModelError if the model drew none at all."""
    variants = []
    with editor.session():
        before = decode_image(editor.model, drafts[0].source)
        for each in drafts:
            try:
                edited = render_edit(editor.model, order.picture.pixels, before, each, "source")
                variants.append(Variant(each.seed, edited.image, edited.problem))
            except EarlError as error:
                variants.append(Variant(each.seed, None, error.what))
    if all(variant.image is None for variant in variants):
        raise ModelError(variants[0].problem or "the model drew no picture")
    return variants
