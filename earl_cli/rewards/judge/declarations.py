"""How a judge is asked, as declarations: order and encoding of images, temperature, and the wording (rubrics)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from earl_cli.config.formats import parse_toml, read_text
from earl_cli.errors import UsageError

OWN, PUBLISHED = "earl", "viescore-published"
FORM = "its keys are those of a table in earl_cli/rewards/judge/declarations.toml"


class Declaration(BaseModel):
    """As declarations.toml explains; ``name`` is no part of what is asked. ``temperature`` None isn't sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = OWN
    pictures: Literal["before", "after"] = "before"
    quality: Annotated[int, Field(ge=1, le=95)] = 95
    chroma: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4"
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    role: Literal["user", "system"] = "user"
    area: Annotated[int, Field(gt=0)] | None = None

    def describe(self) -> str:
        """All that an answer depends on, in one line."""
        temperature = "the server's own" if self.temperature is None else f"{self.temperature:g}"
        return (
            f"{self.name}: pictures {self.pictures} the text, JPEG {self.quality} {self.chroma}, "
            f"temperature {temperature}, SC and PQ as {self.role}"
        )


def load_declaration(spec: str = OWN) -> Declaration:
    """The package's declaration of this name, or that of a TOML file. Raises UsageError that names file and key."""
    known = _own()
    if spec in known:
        return known[spec]
    path = Path(spec).expanduser()
    if path.suffix.lower() != ".toml":
        what = f"there is no declaration {spec!r}"
        raise UsageError(what, hint=f"there are {', '.join(known)}; a file of your own ends in .toml")
    try:
        return _declared(parse_toml(read_text(path)), path.stem, str(path))
    except ValueError as error:
        raise UsageError(f"this is no TOML: {error}", where=str(path), hint=FORM) from None


@cache
def _own() -> dict[str, Declaration]:
    file = resources.files("earl_cli.rewards.judge") / "declarations.toml"
    tables = parse_toml(file.read_text(encoding="utf-8"))
    return {name: _declared(table, name, file.name) for name, table in tables.items()}


def _declared(table: dict[str, Any], name: str, where: str) -> Declaration:
    try:
        return Declaration(**{"name": name, **table})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{key}: {first['msg']}", where=where, hint=FORM) from None


SLOT = "{instruction}"


@dataclass(frozen=True)
class Rubrics:
    """The tasks of a judge; `SLOT` stands for an edit's instruction, in all but `perceptual_quality`."""

    semantic_consistency: str
    perceptual_quality: str
    ground_score: str
    pairwise: str


NAMES = tuple(each.name for each in fields(Rubrics))
OPTIONAL = ("pairwise",)
"""What a file may leave to the package's own wording."""


def load_rubrics(path: Path | None = None) -> Rubrics:
    """The rubrics of a TOML file, or the package's own. Raises UsageError that names the file and the key."""
    own = _read(resources.files("earl_cli.rewards.judge") / "rubrics.toml", "rubrics.toml")
    where = str(path or "rubrics.toml")
    found = {name: own[name] for name in OPTIONAL} | _read(path, where) if path else own
    for name in NAMES:
        if not isinstance(text := found.get(name), str) or not text.strip():
            raise UsageError(f"{name} must be there, and be a text", where=where)
        if (SLOT in text) == (name == "perceptual_quality"):
            wrong = "sees no instruction, so it can't hold" if SLOT in text else "needs a place for the instruction,"
            raise UsageError(f"{name} {wrong} {SLOT}", where=where)
    if unknown := sorted(set(found) - set(NAMES)):
        raise UsageError(f"unknown key {unknown[0]!r}", where=where, hint="known are " + ", ".join(NAMES))
    return Rubrics(**{name: found[name].strip() for name in NAMES})


def asked(rubric: str, instruction: str) -> str:
    """The rubric with an edit's instruction in its place."""
    return rubric.replace(SLOT, instruction.strip())


def _read(source: Traversable, where: str) -> dict[str, Any]:
    try:
        return parse_toml(source.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"the rubrics can't be read: {error.strerror or error}", where=where) from None
    except ValueError as error:
        no_text = isinstance(error, UnicodeDecodeError)
        what = "the rubrics can't be read: " + ("this is no text in UTF-8" if no_text else str(error))
        raise UsageError(what, where=where, hint="it is TOML with the keys " + ", ".join(NAMES)) from None
