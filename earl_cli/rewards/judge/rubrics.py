"""What the judge is asked, in words: the package's own wording, or a file in its place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from earl_cli.config.formats import parse_toml
from earl_cli.errors import UsageError

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
