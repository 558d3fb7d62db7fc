"""From rows to images at the model's size: read, decode, resize, in worker processes; no torch here."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_bool
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from earl_cli.data.columns import ExampleColumns, read_example, row_id
from earl_cli.data.image_cells import image_bytes
from earl_cli.data.sources.base import BadRowError, Row, Source
from earl_cli.data.store import Reject
from earl_cli.errors import EarlError, InputError
from earl_cli.images.image_file import open_image
from earl_cli.images.resize import Grids, resize_to_area
from earl_cli.tokens.layout import GridSize, rescale_boxes


@dataclass(frozen=True)
class PreprocessSettings:
    """What every worker needs: the source, its columns (all named), the images' size, whether URLs may be fetched.

    ``image_area``, ``multiple`` and ``grids`` are as in `resize_to_area`.
    """

    source: Source
    columns: ExampleColumns
    image_area: int
    multiple: int
    grids: Grids = ()
    urls: bool = False


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image at the model's size: ``pixels`` uint8[h, w, 3]; ``digest`` is the SHA-256 of its file.

    ``notes`` are those of `open_image`.
    """

    digest: str
    pixels: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PreparedExample:
    """A row whose two images can be encoded."""

    row: int
    id: str
    instruction: str
    thoughts: Mapping[str, str]
    source: PreparedImage
    target: PreparedImage


Prepared = PreparedExample | Reject
Tag = TypeVar("Tag")


def prepare(settings: PreprocessSettings, rows: Sequence[int]) -> list[Prepared]:
    """The examples in these rows (ascending, of one block), or their rejects. Raises EarlError if the source fails."""
    return list(_prepare_rows(settings, rows))


def _prepare_rows(settings: PreprocessSettings, rows: Sequence[int]) -> Iterator[Prepared]:
    found = settings.source.read(rows, settings.columns.names)
    return (_prepare_row(settings, number, row) for number, row in zip(rows, found, strict=True))


def _prepare_row(settings: PreprocessSettings, number: int, row: Row | BadRowError) -> Prepared:
    name = f"{number + 1:08d}"
    try:
        if isinstance(row, BadRowError):
            raise row
        name = row_id(row, settings.columns)
        example = read_example(row, settings.columns)
        before, source = _prepare_image(example.source, settings, f"{example.where}, {settings.columns.source}")
        _, target = _prepare_image(example.target, settings, f"{example.where}, {settings.columns.target}")
    except BadRowError as error:
        return Reject(int(number), name, error.kind, str(error))
    after = (source.pixels.shape[1], source.pixels.shape[0])
    thoughts = {key: rescale_boxes(text, before, after) for key, text in example.thoughts.items()}
    return PreparedExample(example.row, example.id, example.instruction, thoughts, source, target)


def _prepare_image(value: object, settings: PreprocessSettings, where: str) -> tuple[GridSize, PreparedImage]:
    """The upright image's original size, and the image at the model's size."""
    try:
        content = image_bytes(value, settings.source.base, urls=settings.urls)
        image = open_image(content, name=where)
    except BadRowError as error:
        raise BadRowError(error.kind, error.what, where=error.where or where, hint=error.hint) from None
    except InputError as error:
        raise BadRowError("image", error.what, where=error.where, hint=error.hint) from None
    resized = resize_to_area(image.rgb, settings.image_area, settings.multiple, settings.grids)
    return image.rgb.size, PreparedImage(hashlib.sha256(content).hexdigest(), np.asarray(resized), image.notes)


@contextmanager
def prepare_ahead(
    settings: PreprocessSettings, chunks: Iterable[tuple[Tag, Sequence[int]]], workers: int
) -> Iterator[Iterator[tuple[Tag, list[Prepared]]]]:
    """The prepared rows of each chunk, in order, computed ahead by ``workers`` processes; with 0 in this one, on
    demand.

    Only a few chunks are in memory at a time. The workers end with this process, also if it is killed; if the caller
    fails or is interrupted, they end after their current row.
    """
    if workers == 0:
        yield ((tag, prepare(settings, rows)) for tag, rows in chunks)
        return
    context = multiprocessing.get_context("spawn")
    stopped = context.RawValue(c_bool, False)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(settings, stopped))
    try:
        yield _results_in_order(pool, chunks, workers + 2)
    finally:
        stopped.value = True
        pool.shutdown(wait=True, cancel_futures=True)  # its shutdown at exit sometimes fails


def _results_in_order(
    pool: Executor, chunks: Iterable[tuple[Tag, Sequence[int]]], ahead: int
) -> Iterator[tuple[Tag, list[Prepared]]]:
    pending: deque[tuple[Tag, Future[list[Prepared]]]] = deque()
    try:
        for tag, rows in chunks:
            with _sigint_blocked():  # a worker that starts here ignores Ctrl-C: its parent stops it
                pending.append((tag, pool.submit(_prepare_in_worker, rows)))
            if len(pending) > ahead:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise EarlError(
            "a process that reads images was killed, most likely for its memory",
            hint="start again with fewer --workers; finished shards are kept",
        ) from None


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT here, and permanently in processes that are started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_settings: PreprocessSettings
_stopped: c_bool


def _start_worker(settings: PreprocessSettings, stopped: c_bool) -> None:
    global _settings, _stopped  # the settings of a worker never change
    _settings, _stopped = settings, stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where `_sigint_blocked` can't hold it back
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare_in_worker(rows: Sequence[int]) -> list[Prepared]:
    prepared: list[Prepared] = []
    ahead = _prepare_rows(_settings, rows)
    while not _stopped.value and (row := next(ahead, None)) is not None:
        prepared.append(row)
    return prepared
