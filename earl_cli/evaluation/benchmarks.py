"""Benchmarks as declarations: where the rows are and which column holds what. None needs code.

Those of the package are in benchmarks.toml; others come from a file of the same form, from an installed package's entry
point ``earl_cli.benchmarks``, or are simply data: a folder, or JSON lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from earl_cli.config.formats import parse_toml, read_text
from earl_cli.data.sources.hub import is_hub_id
from earl_cli.data.sources.registry import DataLocation
from earl_cli.errors import UsageError

ENTRY_POINTS = "earl_cli.benchmarks"
PACKAGE = "package:"
LOCAL = "local"
FORM = "a benchmark is a table with a title and parts, as in earl_cli/evaluation/benchmarks.toml"


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleColumns(_Declared):
    """Names of columns; None for the first two stands for the usual names, for the others for "there is none"."""

    image: str | None = None
    instruction: str | None = None
    target: str | None = None
    task: str | None = None
    source: str | None = None
    id: str | None = None


class ConstantFields(_Declared):
    """What is the same in every row of a part."""

    task: str = ""
    source: str = ""


class BenchmarkPart(_Declared):
    """Rows of one place; ``guess`` takes columns that aren't named by their usual names, where they are there."""

    place: str
    data_files: tuple[str, ...] = ()
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    columns: SampleColumns = SampleColumns()
    always: ConstantFields = ConstantFields()
    drop: str = ""
    guess: bool = False

    def where(self) -> DataLocation:
        """The place as `open_source` takes it; ``package:NAME`` is a folder of this package."""
        if not self.place.startswith(PACKAGE):
            return DataLocation(self.place, "auto", self.subset, self.split, self.data_files, self.revision)
        return DataLocation(str(resources.files("earl_cli.evaluation") / self.place.removeprefix(PACKAGE)), "local")


class Subset(_Declared):
    """The rows of a paper: the ``first`` ones once `datasets.Dataset.shuffle` has shuffled all with this seed."""

    shuffle: int = Field(ge=0)
    first: int = Field(ge=1)

    def rows(self, count: int) -> list[int]:
        """Their numbers among ``count`` rows, in the shuffled order."""
        return [int(row) for row in np.random.default_rng(self.shuffle).permutation(count)[: self.first]]


class Benchmark(_Declared):
    """A benchmark. ``size`` is which image of an edit is scored, as in `earl_cli.generation.editing.render`.

    ``paper`` is the subset that was published; the protocol of that name takes these rows and no others.
    """

    name: str
    title: str
    note: str = ""
    size: Literal["source", "model"] = "source"
    paper: Subset | None = None
    parts: tuple[BenchmarkPart, ...] = Field(min_length=1)


def find_benchmark(spec: str) -> Benchmark:
    """A benchmark by its name, by the file that declares it (FILE.toml or FILE.toml:NAME), or by the path of its data.

    Raises UsageError, with what there is.
    """
    known = benchmarks()
    if spec in known:
        return known[spec]
    file, _, name = spec.partition(".toml:")
    path = Path(f"{file}.toml" if name else spec).expanduser()
    if path.suffix.lower() == ".toml":
        declared = _of_file(path)
        if name or len(declared) == 1:
            chosen = declared.get(name) if name else next(iter(declared.values()))
            if chosen is not None:
                return chosen
        listed = ", ".join(f"{path}:{each}" for each in declared)
        raise UsageError("which of its benchmarks?", where=spec, hint=f"there is {listed}")
    if spec == LOCAL:
        raise UsageError(
            "data of your own is named by its path", where="--benchmark", hint="a folder with pairs.jsonl, or the file"
        )
    if path.exists() or is_hub_id(spec):
        place = str(path) if path.exists() else spec
        title = path.resolve().name if path.exists() else spec
        return Benchmark(
            name=Path(title).stem.replace(".", "-"), title=title, parts=(BenchmarkPart(place=place, guess=True),)
        )
    what = "there is no such benchmark, and no file or folder of that name"
    raise UsageError(what, where=spec, hint=f"there are {', '.join(known)}; or give the path of your own data")


def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name: the package's own, then those of entry points. Raises UsageError for a broken one."""
    source = resources.files("earl_cli.evaluation") / "benchmarks.toml"
    found = _declared(parse_toml(source.read_text(encoding="utf-8")), "benchmarks.toml")
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        found |= _of_entry(entry)
    return found


def _of_entry(entry: metadata.EntryPoint) -> dict[str, Benchmark]:
    """An entry point names a path of a TOML file, a mapping such as such a file holds, or a function that gives one."""
    where = f"entry point {entry.name} = {entry.value}"
    try:
        content = entry.load()
        content = content() if callable(content) else content
    except Exception as error:  # another package may raise anything
        what = f"a package's benchmark can't be loaded: {type(error).__name__}: {error}"
        raise UsageError(what, where=where, hint="repair or uninstall that package") from error
    if isinstance(content, str | Path):
        return _of_file(Path(content))
    if not isinstance(content, Mapping):
        raise UsageError(f"a {type(content).__name__} is no benchmark", where=where, hint=FORM)
    return _declared(content, where)


def _of_file(path: Path) -> dict[str, Benchmark]:
    """The benchmarks of a file; relative places in it count from its folder."""
    try:
        declared = _declared(parse_toml(read_text(path)), str(path))
    except ValueError as error:
        raise UsageError(f"this is no TOML: {error}", where=str(path), hint=FORM) from None
    return {
        name: each.model_copy(update={"parts": tuple(_beside(part, path.parent) for part in each.parts)})
        for name, each in declared.items()
    }


def _beside(part: BenchmarkPart, folder: Path) -> BenchmarkPart:
    place = folder / Path(part.place).expanduser()
    return part.model_copy(update={"place": str(place)}) if place.exists() else part


def _declared(tables: Mapping[str, Any], where: str) -> dict[str, Benchmark]:
    if not tables:
        raise UsageError("there is no benchmark in it", where=where, hint=FORM)
    found = {}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise UsageError(f"{name} is no table", where=where, hint=FORM)
        try:
            found[name] = Benchmark(**{"title": name, **table, "name": name})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"{name}, {key}: {first['msg']}", where=where, hint=FORM) from None
    return found
