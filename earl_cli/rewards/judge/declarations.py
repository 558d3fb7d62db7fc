"""Declarations of judges (order and encoding of images, temperature, role) and rubrics (the texts of its tasks)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from earl_cli.config.formats import parse_toml, read_text
from earl_cli.errors import UsageError

DEFAULT, PUBLISHED = "earl", "viescore-published"
FORMAT_HINT = "its keys are those of a table in earl_cli/rewards/judge/declarations.toml"


class Declaration(BaseModel):
    """How prompts are sent to a judge; declarations.toml explains the keys. With ``temperature`` None none is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True)

    name: str = DEFAULT
    images: Annotated[Literal["before", "after"], Field(validation_alias=AliasChoices("images", "pictures"))] = "before"
    quality: Annotated[int, Field(ge=1, le=95)] = 95
    chroma: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4"
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    role: Literal["user", "system"] = "user"
    area: Annotated[int, Field(gt=0)] | None = None

    def describe(self) -> str:
        """All that a judgement depends on, in one line; results store it, and are comparable where it is equal."""
        temperature = "the server's own" if self.temperature is None else f"{self.temperature:g}"
        return (
            f"{self.name}: pictures {self.images} the text, JPEG {self.quality} {self.chroma}, "
            f"temperature {temperature}, SC and PQ as {self.role}"
        )


def load_declaration(spec: str = DEFAULT) -> Declaration:
    """The package's declaration of this name, or that of a TOML file. Raises UsageError that names file and key."""
    known = _package_declarations()
    if spec in known:
        return known[spec]
    path = Path(spec).expanduser()
    if path.suffix.lower() != ".toml":
        what = f"there is no declaration {spec!r}"
        raise UsageError(what, hint=f"there are {', '.join(known)}; a file of your own ends in .toml")
    try:
        return _validated(parse_toml(read_text(path)), path.stem, str(path))
    except ValueError as error:
        raise UsageError(f"this is no TOML: {error}", where=str(path), hint=FORMAT_HINT) from None


@cache
def _package_declarations() -> dict[str, Declaration]:
    file = resources.files("earl_cli.rewards.judge") / "declarations.toml"
    tables = parse_toml(file.read_text(encoding="utf-8"))
    return {name: _validated(table, name, file.name) for name, table in tables.items()}


def _validated(table: dict[str, Any], name: str, where: str) -> Declaration:
    try:
        return Declaration(**{"name": name, **table})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{key}: {first['msg']}", where=where, hint=FORMAT_HINT) from None


INSTRUCTION_SLOT = "{instruction}"


@dataclass(frozen=True)
class Rubrics:
    """The texts of a judge's tasks; all but `perceptual_quality` hold `INSTRUCTION_SLOT` for the instruction."""

    semantic_consistency: str
    perceptual_quality: str
    ground_score: str
    pairwise: str


RUBRIC_KEYS = tuple(each.name for each in fields(Rubrics))
OPTIONAL_KEYS = ("pairwise",)
"""Keys that a file may omit; the package's text is used for them."""


def load_rubrics(path: Path | None = None) -> Rubrics:
    """The rubrics of a TOML file, or the package's. Raises UsageError that names the file and the key."""
    default = _read(resources.files("earl_cli.rewards.judge") / "rubrics.toml", "rubrics.toml")
    where = str(path or "rubrics.toml")
    texts = {name: default[name] for name in OPTIONAL_KEYS} | _read(path, where) if path else default
    for name in RUBRIC_KEYS:
        if not isinstance(text := texts.get(name), str) or not text.strip():
            raise UsageError(f"{name} must be there, and be a text", where=where)
        has_slot = INSTRUCTION_SLOT in text
        if has_slot == (name == "perceptual_quality"):
            problem = "gets no instruction, so it can't hold" if has_slot else "needs a place for the instruction,"
            raise UsageError(f"{name} {problem} {INSTRUCTION_SLOT}", where=where)
    if unknown := sorted(set(texts) - set(RUBRIC_KEYS)):
        raise UsageError(f"unknown key {unknown[0]!r}", where=where, hint="known are " + ", ".join(RUBRIC_KEYS))
    return Rubrics(**{name: texts[name].strip() for name in RUBRIC_KEYS})


def format_rubric(rubric: str, instruction: str) -> str:
    """The rubric with an edit's instruction in place of the slot."""
    return rubric.replace(INSTRUCTION_SLOT, instruction.strip())


def _read(source: Traversable, where: str) -> dict[str, Any]:
    try:
        return parse_toml(source.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"the rubrics can't be read: {error.strerror or error}", where=where) from None
    except ValueError as error:
        why = "this is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        what = f"the rubrics can't be read: {why}"
        raise UsageError(what, where=where, hint="it is TOML with the keys " + ", ".join(RUBRIC_KEYS)) from None
