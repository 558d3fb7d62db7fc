"""The samples of a benchmark: images, instruction, task, in an order that is the same for every editor."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from PIL.Image import Image

from earl_cli.data.columns import (
    ID_NAMES,
    INSTRUCTION_NAMES,
    SOURCE_NAMES,
    TARGET_NAMES,
    column_by_common_name,
    describe_columns,
    matching_column,
    read_instruction,
    storable,
)
from earl_cli.data.image_cells import image_bytes
from earl_cli.data.shard_plan import RowOrder
from earl_cli.data.sources.base import BadRowError, CellKind, Row, Source, row_count
from earl_cli.data.sources.registry import open_source
from earl_cli.errors import EarlError, InputError
from earl_cli.evaluation.benchmarks import Benchmark, BenchmarkPart, SampleColumns, Subset
from earl_cli.images.image_file import ImageFile, open_image

_OPTION = re.compile(r"--(split|subset|revision|data-files)\b")

CHOICE = 0
"""The seed of the order in which a limit takes samples: 100 of them are among the 200."""


@dataclass(frozen=True, eq=False)
class BenchmarkSample:
    """One edit of a benchmark: upright RGB images, ``target`` None where the data have none.

    ``number`` counts all rows of the benchmark from 0; ``digest`` names the exact source image.
    """

    number: int
    id: str
    image: Image
    digest: str
    instruction: str
    target: Image | None
    task: str
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class OpenedBenchmark:
    """A benchmark whose data are there; ``parts`` have all columns named, ``starts`` are the numbers they begin at.

    ``notes`` fill while samples are read: remarks on images, each with the numbers of its samples.
    """

    benchmark: Benchmark
    parts: tuple[BenchmarkPart, ...]
    sources: tuple[Source, ...]
    starts: tuple[int, ...]
    notes: dict[str, set[int]] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return self.starts[-1] + row_count(self.sources[-1])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the rows and with how they are read."""
        read = [part.model_dump(mode="json", exclude={"place"}) for part in self.parts]
        content = json.dumps([[source.fingerprint for source in self.sources], read])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def chosen(self, limit: int | None = None, subset: Subset | None = None) -> list[int]:
        """The numbers of all samples or of a subset; of these the first ``limit``, sampled with a fixed seed."""
        if subset is None:
            subset = Subset(shuffle=CHOICE, first=max(1, len(self)))
        return sorted(subset.rows(len(self))[:limit])

    def read(self, numbers: Sequence[int]) -> Iterator[BenchmarkSample | BadRowError]:
        """The samples of these ascending numbers, in order; one that can't be used as an error in its place."""
        for place, of_part in groupby(numbers, key=self._place):
            part, source, start = self.parts[place], self.sources[place], self.starts[place]
            order = RowOrder(source.bounds)
            blocks = groupby((number - start for number in of_part), key=lambda row: _block(order, row))
            for _, rows in blocks:
                for row in source.read(list(rows), _names(part.columns)):
                    sample = row if isinstance(row, BadRowError) else _sample(row, part, source, start)
                    if isinstance(sample, BenchmarkSample):
                        for note in sample.notes:
                            self.notes.setdefault(note, set()).add(sample.number)
                    yield sample

    def _place(self, number: int) -> int:
        return int(np.searchsorted(self.starts, number, side="right")) - 1


def open_benchmark(benchmark: Benchmark) -> OpenedBenchmark:
    """Finds the data of all parts. Raises InputError or UsageError for what is missing."""
    sources = tuple(_source(part) for part in benchmark.parts)
    parts = tuple(
        part.model_copy(update={"columns": _columns(part, source)})
        for part, source in zip(benchmark.parts, sources, strict=True)
    )
    counts = [row_count(source) for source in sources]
    starts = (0, *(int(total) for total in np.cumsum(counts)[:-1]))
    return OpenedBenchmark(benchmark, parts, sources, starts)


def _source(part: BenchmarkPart) -> Source:
    """The rows of a part; where a message names an option of ``earl tokenize``, it names the declaration's key."""
    try:
        return open_source(part.where())
    except EarlError as error:
        error.what = _OPTION.sub(_key, error.what)
        error.hint = error.hint and _OPTION.sub(_key, error.hint)
        raise


def _key(option: re.Match[str]) -> str:
    return f"{option[1].replace('-', '_')} in a .toml that declares a benchmark"


def _columns(part: BenchmarkPart, source: Source) -> SampleColumns:
    """All columns by name; with ``guess`` those that aren't named are found by their usual names."""
    usual: Mapping[str, tuple[Sequence[str], CellKind | None]] = {
        "image": (SOURCE_NAMES, "image"),
        "instruction": (INSTRUCTION_NAMES, "text"),
        "target": (TARGET_NAMES, "image"),
        "id": (ID_NAMES, None),
        "task": (("task", "edit_type", "kind", "category"), None),
    }
    found: dict[str, str | None] = {}
    missing = []
    for kind, named in part.columns.model_dump().items():
        found[kind] = named if named is None else matching_column(named, source)
        if named is None and part.guess and kind in usual:
            found[kind] = column_by_common_name(source, *usual[kind])
        if found[kind] is None and (named or kind in ("image", "instruction")):
            missing.append(f"no column {named!r}" if named else f"no column for the {kind} under a common name")
    if missing:
        hint = (
            f"the columns are {describe_columns(source)}; a benchmark of your own in a .toml file names the right ones"
        )
        raise InputError("; ".join(missing), where=source.name, hint=hint)
    return SampleColumns(**found)


def _names(columns: SampleColumns) -> list[str]:
    return list(dict.fromkeys(name for name in columns.model_dump().values() if name is not None))


def _block(order: RowOrder, row: int) -> int:
    return int(np.searchsorted(order.bounds, row, side="right")) - 1


def _sample(row: Row, part: BenchmarkPart, source: Source, start: int) -> BenchmarkSample | BadRowError:
    columns = part.columns
    try:
        image, digest = _image(row, columns.image, source)
        target = _image(row, columns.target, source)[0] if _value(row, columns.target) is not None else None
        return BenchmarkSample(
            number=start + row.number,
            id=_text(_value(row, columns.id)) or f"{start + row.number:06d}",
            image=image.rgb,
            digest=digest,
            instruction=_instruction(row, part),
            target=target.rgb if target else None,
            task=_text(_value(row, columns.task)) or part.always.task,
            source=_text(_value(row, columns.source)) or part.always.source,
            notes=(*image.notes, *(target.notes if target else ())),
        )
    except BadRowError as error:
        error.where = error.where or row.where
        return error


def _image(row: Row, column: str | None, source: Source) -> tuple[ImageFile, str]:
    value = _value(row, column)
    if value is None:
        raise BadRowError("image", f"there is no {column}", where=row.where)
    try:
        content = image_bytes(value, source.base)
        image = open_image(content, name=row.where)
    except BadRowError as error:
        error.hint = "a benchmark's images have to be files or bytes" if error.kind == "url" else error.hint
        raise
    except InputError as error:
        raise BadRowError("image", error.what, where=error.where, hint=error.hint) from None
    return image, hashlib.sha256(content).hexdigest()[:16]


def _instruction(row: Row, part: BenchmarkPart) -> str:
    assert part.columns.instruction
    text = read_instruction(row, part.columns.instruction).strip()
    text = text.removeprefix(part.drop.strip()).strip() if part.drop else text
    if not text:
        raise BadRowError("instruction", "there is no instruction", where=row.where)
    return text


def _value(row: Row, column: str | None) -> Any:
    return row.values.get(column) if column is not None else None


def _text(value: Any) -> str:
    return "" if value is None else storable(str(value))
