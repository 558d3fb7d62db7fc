"""How a judge is asked: the order of pictures and words, how pictures are encoded, the temperature, whose words."""

from __future__ import annotations

from functools import cache
from importlib import resources
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
