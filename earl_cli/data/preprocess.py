"""From rows to small pictures ready for the tokenizer: read, decode, resize. Worker processes do it; no torch here."""

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
    """What every process needs to know: the source, its columns (all named), the size of pictures, may it use URLs.

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
    """A picture at the model's size: ``pixels`` uint8[h, w, 3]; ``digest`` is the SHA-256 of the file it comes from.

    ``notes`` say what was special about reading it.
    """

    digest: str
    pixels: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PreparedExample:
    """A row whose two pictures are ready to be encoded."""

    row: int
    id: str
    instruction: str
    thoughts: Mapping[str, str]
    source: PreparedImage
    target: PreparedImage


Prepared = PreparedExample | Reject
Tag = TypeVar("Tag")


def prepare(recipe: PreprocessSettings, rows: Sequence[int]) -> list[Prepared]:
    """The pairs in these rows (ascending, of one block), bad ones as rejects. Raises EarlError if the source fails."""
    return list(_prepare_rows(recipe, rows))


def _prepare_rows(recipe: PreprocessSettings, rows: Sequence[int]) -> Iterator[Prepared]:
    found = recipe.source.read(rows, recipe.columns.names)
    return (_prepare_row(recipe, number, row) for number, row in zip(rows, found, strict=True))


def _prepare_row(recipe: PreprocessSettings, number: int, row: Row | BadRowError) -> Prepared:
    name = f"{number + 1:08d}"
    try:
        if isinstance(row, BadRowError):
            raise row
        name = row_id(row, recipe.columns)
        pair = read_example(row, recipe.columns)
        before, source = _prepare_image(pair.source, recipe, f"{pair.where}, {recipe.columns.source}")
        _, target = _prepare_image(pair.target, recipe, f"{pair.where}, {recipe.columns.target}")
    except BadRowError as error:
        return Reject(int(number), name, error.kind, str(error))
    after = (source.pixels.shape[1], source.pixels.shape[0])
    thoughts = {key: rescale_boxes(text, before, after) for key, text in pair.thoughts.items()}
    return PreparedExample(pair.row, pair.id, pair.instruction, thoughts, source, target)


def _prepare_image(value: object, recipe: PreprocessSettings, where: str) -> tuple[GridSize, PreparedImage]:
    """The picture's upright size before, and the picture at the model's size."""
    try:
        content = image_bytes(value, recipe.source.base, urls=recipe.urls)
        picture = open_image(content, name=where)
    except BadRowError as error:
        raise BadRowError(error.kind, error.what, where=error.where or where, hint=error.hint) from None
    except InputError as error:
        raise BadRowError("picture", error.what, where=error.where, hint=error.hint) from None
    small = resize_to_area(picture.rgb, recipe.image_area, recipe.multiple, recipe.grids)
    return picture.rgb.size, PreparedImage(hashlib.sha256(content).hexdigest(), np.asarray(small), picture.notes)


@contextmanager
def prepare_ahead(
    recipe: PreprocessSettings, portions: Iterable[tuple[Tag, Sequence[int]]], workers: int
) -> Iterator[Iterator[tuple[Tag, list[Prepared]]]]:
    """The prepared rows of each portion, in order, made ahead by ``workers`` processes (0: in this one, when asked).

    Only a few portions are ever in memory. The processes end with this one, also if it is killed; if what is done with
    the rows fails or is interrupted, they end after the row that they are at.
    """
    if workers == 0:
        yield ((tag, prepare(recipe, rows)) for tag, rows in portions)
        return
    context = multiprocessing.get_context("spawn")
    stopped = context.RawValue(c_bool, False)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(recipe, stopped))
    try:
        yield _results_in_order(pool, portions, workers + 2)
    finally:
        stopped.value = True
        pool.shutdown(wait=True, cancel_futures=True)  # left to the end of the program, it now and then trips there


def _results_in_order(
    pool: Executor, portions: Iterable[tuple[Tag, Sequence[int]]], ahead: int
) -> Iterator[tuple[Tag, list[Prepared]]]:
    waiting: deque[tuple[Tag, Future[list[Prepared]]]] = deque()
    try:
        for tag, rows in portions:
            with _sigint_blocked():  # the process that starts here never hears of Ctrl-C: its parent decides
                waiting.append((tag, pool.submit(_prepare_in_worker, rows)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise EarlError(
            "a process that reads pictures was killed, most likely for its memory",
            hint="start again with fewer --workers; what is done is kept",
        ) from None


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Holds SIGINT back, here and for good in processes that are started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_recipe: PreprocessSettings
_stopped: c_bool


def _start_worker(recipe: PreprocessSettings, stopped: c_bool) -> None:
    global _recipe, _stopped  # a process of the pool has one recipe for its whole life
    _recipe, _stopped = recipe, stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where `_sigint_blocked` can't hold it back
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare_in_worker(rows: Sequence[int]) -> list[Prepared]:
    prepared: list[Prepared] = []
    ahead = _prepare_rows(_recipe, rows)
    while not _stopped.value and (row := next(ahead, None)) is not None:
        prepared.append(row)
    return prepared
