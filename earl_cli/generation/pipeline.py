"""Many edits in batches: what the engine has sampled is decoded, composed and saved while it samples the next ones."""

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
    """What is done with each item beside sampling.

    ``job`` is what is to be sampled for it. ``finish`` makes its outcome of its sampled edits; the event is set if the
    work is stopped. ``fail`` makes the outcome of an item for which anything was raised before. Both run in a
    second thread, while the first one samples, one item at a time.
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

    While a batch is sampled, what was sampled before it is finished; no more than two batches are open. Where a batch
    fails, each of its items that isn't done is tried alone, so that one costs the others nothing. ``threads`` are those
    of `PostprocessThread`.
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
    """An outcome to come for each item of a batch, all of which are sampled by now."""
    outcomes: dict[int, Future[Outcome]] = {}
    jobs: dict[int, EditJob] = {}
    for number, item in enumerate(batch):
        try:
            jobs[number] = steps.job(item)
        except Exception as failure:  # whatever is wrong with one image must not cost the others
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
    except Exception as failure:  # tried again one by one, as one may be at fault
        for number in [each for each in numbers if each not in outcomes]:
            if len(numbers) == 1:
                outcomes[number] = thread.submit(steps.fail, batch[number], failure)
            else:
                (outcomes[number],) = _sampled([batch[number]], steps, sample, thread)
    return [outcomes[number] for number in range(len(batch))]


class PostprocessThread(ThreadPoolExecutor):
    """One thread beside the one that samples; it gives the bits that this one would give.

    torch counts threads by the thread, and convolutions round by their number, so ``threads``, or this thread's number,
    is taken over. Gradients, inference and autocast are by the thread as well, and as at first: what is done here sets
    what it needs.
    At the end of a ``with``, by an error or Ctrl-C too, what hasn't begun is dropped and what has is waited for, so
    results that are wanted are to be waited for inside; work of several steps looks at ``stopping`` between them.
    """

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(1, "beside", torch.set_num_threads, (threads or torch.get_num_threads(),))
        self.stopping = Event()

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.shutdown(cancel_futures=True)
