"""The queue of edits: its order and end, what is sampled together, and what each client gets when something fails."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest
from serving_servers import Gate, eventually, png

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import InputError
from earl_cli.generation.vllm.watchdog import EngineError
from earl_cli.images.image_file import open_image
from earl_cli.serving import queue as queues
from earl_cli.serving.errors import HttpError, refusal
from earl_cli.serving.limits import ServerLimits
from earl_cli.serving.queue import EditQueue, QueuedEdit, QueueStatus, Ticket

LIMITS = ServerLimits(max_queue=4, max_pixels=10_000)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def queue(gate: Gate) -> Iterator[EditQueue]:
    queue = EditQueue(gate, LIMITS).start()
    yield queue
    gate.open.set()
    queue.close()


def queued(name: str, seeds: int = 1, temperature: float = 1.0, size: tuple[int, int] = (8, 8)) -> QueuedEdit:
    return QueuedEdit(open_image(png(0, size)), name, tuple(range(seeds)), SamplingParams(temperature))


def first(queue: EditQueue, gate: Gate) -> Ticket:
    """An edit that is being sampled, so that others wait in the queue."""
    ticket = queue.submit(queued("first"))
    assert gate.reached.acquire(timeout=10)
    return ticket


def ended(queue: EditQueue, ticket: Ticket) -> QueueStatus:
    view = ticket.status
    assert eventually(lambda: ticket.status.is_over), view
    return queue.watch(ticket, None, 0)


def test_queued_edits_are_sampled_together_in_order(queue: EditQueue, gate: Gate) -> None:
    tickets = [first(queue, gate), *(queue.submit(queued(name)) for name in ("a", "b", "c"))]
    assert [ticket.status.ahead for ticket in tickets[1:]] == [1, 2, 3]
    gate.open.set()
    assert [ended(queue, ticket).phase for ticket in tickets] == ["drawn"] * 4
    assert gate.batches == [["first"], ["a", "b", "c"]]
    assert queue.finished == 4


def test_a_finished_edit_is_not_kept_in_memory(queue: EditQueue, gate: Gate) -> None:
    gate.open.set()
    ticket = queue.submit(queued("large"))
    assert ended(queue, ticket).phase == "drawn"
    image = weakref.ref(ticket.edit)
    del ticket
    assert eventually(lambda: image() is None)


@pytest.mark.parametrize(
    ("edits", "batches"),
    [
        ([("a", 1, 1.0, (8, 8)), ("b", 1, 0.5, (8, 8)), ("c", 1, 0.5, (8, 8))], [["a"], ["b", "c"]]),  # other sampling
        ([("a", 5, 1.0, (8, 8)), ("b", 4, 1.0, (8, 8))], [["a"], ["b"]]),  # more than eight variants
        ([("a", 1, 1.0, (90, 90)), ("b", 1, 1.0, (90, 90))], [["a"], ["b"]]),  # more pixels than may be at once
    ],
)
def test_what_can_not_go_together(
    queue: EditQueue, gate: Gate, edits: list[tuple[str, int, float, tuple[int, int]]], batches: list[list[str]]
) -> None:
    first(queue, gate)
    tickets = [queue.submit(queued(*each)) for each in edits]
    gate.open.set()
    assert all(ended(queue, ticket).phase == "drawn" for ticket in tickets)
    assert gate.batches[1:] == batches


def test_a_full_queue_says_when_to_retry(queue: EditQueue, gate: Gate) -> None:
    first(queue, gate)
    for _ in range(LIMITS.max_queue):
        queue.check_room()
        queue.submit(queued("more"))
    for refused in (queue.check_room, lambda: queue.submit(queued("too many"))):
        with pytest.raises(HttpError) as caught:
            refused()
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert caught.value.retry_after


def test_large_images_fill_the_queue_sooner(queue: EditQueue, gate: Gate) -> None:
    first(queue, gate)
    queue.submit(queued("a", size=(95, 95)))
    queue.submit(queued("b", size=(95, 95)))
    with pytest.raises(HttpError, match="waiting"):
        queue.submit(queued("c", size=(95, 95)))


def test_who_leaves_gives_up_the_place(queue: EditQueue, gate: Gate) -> None:
    first(queue, gate)
    a, b = queue.submit(queued("a")), queue.submit(queued("b"))
    queue.cancel(a)
    assert b.status.ahead == 1
    gate.open.set()
    assert ended(queue, b).phase == "drawn"
    assert gate.batches == [["first"], ["b"]]


def test_a_batch_without_clients_is_cancelled(queue: EditQueue, gate: Gate) -> None:
    queue.cancel(first(queue, gate))
    ticket = queue.submit(queued("next"))
    assert gate.reached.acquire(timeout=10)  # though the gate is still closed
    gate.open.set()
    assert ended(queue, ticket).phase == "drawn"
    assert queue.finished == 1


def test_progress_is_seen(queue: EditQueue, gate: Gate) -> None:
    ticket = first(queue, gate)
    assert eventually(lambda: (ticket.status.done, ticket.status.total) == (1, 2))
    seen = ticket.status
    threading.Timer(0.1, gate.open.set).start()
    assert queue.watch(ticket, seen, 10) is not seen


def test_one_failure_leaves_the_other_edits_alone(queue: EditQueue, gate: Gate) -> None:
    gate.breaks = lambda each: InputError("broken") if each.instruction == "bad" else None
    first(queue, gate)
    bad, good = queue.submit(queued("bad")), queue.submit(queued("good"))
    gate.open.set()
    assert ended(queue, good).phase == "drawn"
    view = ended(queue, bad)
    assert (view.phase, str(view.failure)) == ("failed", "broken")
    assert queue.state == "ok"


def test_unexpected_failures_in_a_row_are_a_state(queue: EditQueue, gate: Gate) -> None:
    gate.open.set()
    gate.breaks = lambda each: ZeroDivisionError("engine") if each.instruction == "bad" else None
    for count in range(queues.FAILING_AFTER):
        assert queue.state == "ok", count
        ended(queue, queue.submit(queued("bad")))
    assert queue.state == "failing"
    ended(queue, queue.submit(queued("good")))
    assert queue.state == "ok"


def test_an_engine_that_died_is_a_state_at_once(queue: EditQueue, gate: Gate) -> None:
    gate.open.set()
    gate.breaks = lambda _: EngineError("died", hint="its log: /var/log/engine")
    failure = ended(queue, queue.submit(queued("a"))).failure
    assert queue.state == "failing"
    assert failure is not None
    assert refusal(failure).status == 503
    assert "log" not in refusal(failure).message


def test_when_the_thread_ends_all_edits_fail(queue: EditQueue, gate: Gate) -> None:
    gate.breaks = lambda _: SystemExit()
    tickets = [first(queue, gate), queue.submit(queued("a", temperature=0.5))]
    gate.open.set()
    for ticket in tickets:
        failure = ended(queue, ticket).failure
        assert isinstance(failure, HttpError)
        assert (failure.status, failure.code) == (503, "unavailable")
    assert queue.state == "dead"
    for refused in (queue.check_room, lambda: queue.submit(queued("late"))):
        with pytest.raises(HttpError, match="stopped working"):
            refused()


def test_closing_ends_running_and_queued_edits(gate: Gate) -> None:
    queue = EditQueue(gate, LIMITS).start()
    tickets = [first(queue, gate), queue.submit(queued("a"))]
    queue.close()
    assert all("stopping" in str(ended(queue, ticket).failure) for ticket in tickets)
    assert queue.state == "stopping"


def test_a_thread_that_never_comes_back_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    queue = EditQueue(lambda *_: iter([never.wait(60)]), LIMITS).start()
    ticket = queue.submit(queued("a"))
    assert eventually(lambda: ticket.status.phase == "drawing")
    monkeypatch.setattr(queues, "STALE", 0.0)
    assert queue.state == "stuck"
    queue.close(timeout=0.1)
    assert ticket.status.phase == "failed"
    never.set()
