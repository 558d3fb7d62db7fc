"""The line in front of the model: its order and end, what goes together, who is told what when something goes wrong."""

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
def line(gate: Gate) -> Iterator[EditQueue]:
    line = EditQueue(gate, LIMITS).start()
    yield line
    gate.open.set()
    line.close()


def order(name: str, seeds: int = 1, temperature: float = 1.0, size: tuple[int, int] = (8, 8)) -> QueuedEdit:
    return QueuedEdit(open_image(png(0, size)), name, tuple(range(seeds)), SamplingParams(temperature))


def first(line: EditQueue, gate: Gate) -> Ticket:
    """An order that is being drawn, so that others wait."""
    ticket = line.submit(order("first"))
    assert gate.reached.acquire(timeout=10)
    return ticket


def ended(line: EditQueue, ticket: Ticket) -> QueueStatus:
    view = ticket.status
    assert eventually(lambda: ticket.status.is_over), view
    return line.watch(ticket, None, 0)


def test_queued_edits_are_sampled_together_in_order(line: EditQueue, gate: Gate) -> None:
    tickets = [first(line, gate), *(line.submit(order(name)) for name in ("a", "b", "c"))]
    assert [ticket.status.ahead for ticket in tickets[1:]] == [1, 2, 3]
    gate.open.set()
    assert [ended(line, ticket).phase for ticket in tickets] == ["drawn"] * 4
    assert gate.batches == [["first"], ["a", "b", "c"]]
    assert line.finished == 4


def test_a_finished_edit_is_not_kept_in_memory(line: EditQueue, gate: Gate) -> None:
    gate.open.set()
    ticket = line.submit(order("large"))
    assert ended(line, ticket).phase == "drawn"
    picture = weakref.ref(ticket.edit)
    del ticket
    assert eventually(lambda: picture() is None)


@pytest.mark.parametrize(
    ("orders", "batches"),
    [
        ([("a", 1, 1.0, (8, 8)), ("b", 1, 0.5, (8, 8)), ("c", 1, 0.5, (8, 8))], [["a"], ["b", "c"]]),  # other sampling
        ([("a", 5, 1.0, (8, 8)), ("b", 4, 1.0, (8, 8))], [["a"], ["b"]]),  # more than eight variants
        ([("a", 1, 1.0, (90, 90)), ("b", 1, 1.0, (90, 90))], [["a"], ["b"]]),  # more pixels than may be at once
    ],
)
def test_what_can_not_go_together(
    line: EditQueue, gate: Gate, orders: list[tuple[str, int, float, tuple[int, int]]], batches: list[list[str]]
) -> None:
    first(line, gate)
    tickets = [line.submit(order(*each)) for each in orders]
    gate.open.set()
    assert all(ended(line, ticket).phase == "drawn" for ticket in tickets)
    assert gate.batches[1:] == batches


def test_a_full_line_says_when_to_come_again(line: EditQueue, gate: Gate) -> None:
    first(line, gate)
    for _ in range(LIMITS.max_queue):
        line.check_room()
        line.submit(order("more"))
    for refused in (line.check_room, lambda: line.submit(order("too many"))):
        with pytest.raises(HttpError) as caught:
            refused()
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert caught.value.retry_after


def test_large_images_fill_the_queue_sooner(line: EditQueue, gate: Gate) -> None:
    first(line, gate)
    line.submit(order("a", size=(95, 95)))
    line.submit(order("b", size=(95, 95)))
    with pytest.raises(HttpError, match="waiting"):
        line.submit(order("c", size=(95, 95)))


def test_who_leaves_gives_up_the_place(line: EditQueue, gate: Gate) -> None:
    first(line, gate)
    a, b = line.submit(order("a")), line.submit(order("b"))
    line.cancel(a)
    assert b.status.ahead == 1
    gate.open.set()
    assert ended(line, b).phase == "drawn"
    assert gate.batches == [["first"], ["b"]]


def test_a_batch_without_clients_is_cancelled(line: EditQueue, gate: Gate) -> None:
    line.cancel(first(line, gate))
    ticket = line.submit(order("next"))
    assert gate.reached.acquire(timeout=10)  # though the gate is still closed
    gate.open.set()
    assert ended(line, ticket).phase == "drawn"
    assert line.finished == 1


def test_progress_is_seen(line: EditQueue, gate: Gate) -> None:
    ticket = first(line, gate)
    assert eventually(lambda: (ticket.status.done, ticket.status.total) == (1, 2))
    seen = ticket.status
    threading.Timer(0.1, gate.open.set).start()
    assert line.watch(ticket, seen, 10) is not seen


def test_one_failure_leaves_the_other_edits_alone(line: EditQueue, gate: Gate) -> None:
    gate.breaks = lambda each: InputError("broken") if each.instruction == "bad" else None
    first(line, gate)
    bad, good = line.submit(order("bad")), line.submit(order("good"))
    gate.open.set()
    assert ended(line, good).phase == "drawn"
    view = ended(line, bad)
    assert (view.phase, str(view.failure)) == ("failed", "broken")
    assert line.state == "ok"


def test_unexpected_failures_in_a_row_are_a_state(line: EditQueue, gate: Gate) -> None:
    gate.open.set()
    gate.breaks = lambda each: ZeroDivisionError("engine") if each.instruction == "bad" else None
    for count in range(queues.FAILING_AFTER):
        assert line.state == "ok", count
        ended(line, line.submit(order("bad")))
    assert line.state == "failing"
    ended(line, line.submit(order("good")))
    assert line.state == "ok"


def test_an_engine_that_died_is_a_state_at_once(line: EditQueue, gate: Gate) -> None:
    gate.open.set()
    gate.breaks = lambda _: EngineError("died", hint="its log: /var/log/engine")
    failure = ended(line, line.submit(order("a"))).failure
    assert line.state == "failing"
    assert failure is not None
    assert refusal(failure).status == 503
    assert "log" not in refusal(failure).message


def test_when_the_thread_ends_all_edits_fail(line: EditQueue, gate: Gate) -> None:
    gate.breaks = lambda _: SystemExit()
    tickets = [first(line, gate), line.submit(order("a", temperature=0.5))]
    gate.open.set()
    for ticket in tickets:
        failure = ended(line, ticket).failure
        assert isinstance(failure, HttpError)
        assert (failure.status, failure.code) == (503, "unavailable")
    assert line.state == "dead"
    for refused in (line.check_room, lambda: line.submit(order("late"))):
        with pytest.raises(HttpError, match="stopped working"):
            refused()


def test_closing_ends_running_and_queued_edits(gate: Gate) -> None:
    line = EditQueue(gate, LIMITS).start()
    tickets = [first(line, gate), line.submit(order("a"))]
    line.close()
    assert all("stopping" in str(ended(line, ticket).failure) for ticket in tickets)
    assert line.state == "stopping"


def test_a_thread_that_never_comes_back_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    line = EditQueue(lambda *_: iter([never.wait(60)]), LIMITS).start()
    ticket = line.submit(order("a"))
    assert eventually(lambda: ticket.status.phase == "drawing")
    monkeypatch.setattr(queues, "STALE", 0.0)
    assert line.state == "stuck"
    line.close(timeout=0.1)
    assert ticket.status.phase == "failed"
    never.set()
