"""What the judge is asked, in words: the package's own wording, or a file in its place."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

from earl_cli.errors import UsageError

SLOT = "{instruction}"


@dataclass(frozen=True)
class Rubrics:
    """The three tasks of a judge; `SLOT` in the first and the last stands for an edit's instruction."""

    semantic_consistency: str
    perceptual_quality: str
    ground_score: str


NAMES = tuple(each.name for each in fields(Rubrics))


def load_rubrics(path: Path | None = None) -> Rubrics:
    """The rubrics of a TOML file, or the package's own. Raises UsageError that names the file and the key."""
    where = str(path or "rubrics.toml")
    try:
        source = path or resources.files("earl_cli.rewards") / "rubrics.toml"
        found = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the rubrics can't be read: {error.strerror or error}", where=where) from None
    except ValueError as error:  # no UTF-8, or no TOML
        what = f"the rubrics can't be read: {error}"
        raise UsageError(what, where=where, hint="it is TOML with the keys " + ", ".join(NAMES)) from None
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
