"""Edits in batches: a thread decodes, composes and saves sampled edits while the engine samples the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Event
from typing import Generic, TypeAlias, TypeVar

import torch

from earl_cli.generation.editing import EditJob, SampledEdit

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

OnSampled: TypeAlias = Callable[[int, list[SampledEdit]], None]


@dataclass(frozen=True, eq=False)
class EditSteps(Generic[Item, Outcome]):
    """The steps for each item besides sampling.

    ``job`` gives its job. ``finish`` makes its outcome from its sampled edits, and gets an event that is set when the
    work is cancelled; ``fail`` makes the outcome of an item for which an earlier step raised. Both run in one other
    thread, one item at a time.
    """

    job: Callable[[Item], EditJob]
    finish: Callable[[Item, Sequence[SampledEdit], Event], Outcome]
    fail: Callable[[Item, Exception], Outcome]


def run_in_batches(
    items: Iterable[Item],
    steps: EditSteps[Item, Outcome],
    sample: Callable[[Sequence[EditJob], OnSampled], object],
    *,
    at_once: int,
    threads: int | None = None,
) -> Iterator[Outcome]:
    """The outcome of every item, in order; ``sample`` samples a batch of ``at_once`` jobs.

    While a batch is sampled, the edits of the one before are finished; at most two batches are in memory. If sampling a
    batch fails, each of its unfinished items is tried alone, so that a failure affects one item only. ``threads`` are
    those of `PostprocessThread`.
    """
    remaining = iter(items)
    waiting: deque[Future[Outcome]] = deque()
    with PostprocessThread(threads) as thread:
        while batch := list(islice(remaining, at_once)):
            waiting += _sampled(batch, steps, sample, thread)
            while waiting and (len(waiting) > at_once or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _sampled(
    batch: Sequence[Item],
    steps: EditSteps[Item, Outcome],
    sample: Callable[[Sequence[EditJob], OnSampled], object],
    thread: PostprocessThread,
) -> list[Future[Outcome]]:
    """Sample a batch; a future outcome for each of its items."""
    outcomes: dict[int, Future[Outcome]] = {}
    jobs: dict[int, EditJob] = {}
    for number, item in enumerate(batch):
        try:
            jobs[number] = steps.job(item)
        except Exception as failure:  # a failure affects this item only
            outcomes[number] = thread.submit(steps.fail, item, failure)
    numbers = list(jobs)

    def take(place: int, edits: list[SampledEdit]) -> None:
        number = numbers[place]
        outcomes[number] = thread.submit(steps.finish, batch[number], edits, thread.stopping)

    try:
        if jobs:
            sample(list(jobs.values()), take)
    except BrokenPipeError:
        raise
    except Exception as failure:  # recorded, or each item is tried alone
        for number in [each for each in numbers if each not in outcomes]:
            if len(numbers) == 1:
                outcomes[number] = thread.submit(steps.fail, batch[number], failure)
            else:
                (outcomes[number],) = _sampled([batch[number]], steps, sample, thread)
    return [outcomes[number] for number in range(len(batch))]


class PostprocessThread(ThreadPoolExecutor):
    """One worker thread besides the sampling thread; its results have the same bits as this thread's.

    torch's number of threads is a setting of each thread, and the rounding of convolutions depends on it, so the worker
    gets ``threads``, or this thread's number. Gradient, inference and autocast modes are per thread too, and have their
    defaults in the worker: functions set what they need. At the end of a ``with``, also after an error or Ctrl-C, tasks
    that haven't begun are cancelled and the running one is waited for; wait for wanted results inside the ``with``.
    Tasks of several steps check ``stopping`` between them.
    """

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(1, "postprocess", torch.set_num_threads, (threads or torch.get_num_threads(),))
        self.stopping = Event()

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.shutdown(cancel_futures=True)
