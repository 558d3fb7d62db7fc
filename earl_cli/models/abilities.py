"""The abilities of a small model: its kinds of edit and their trained wordings, and how an instruction maps to them.

`understand` is the only place that decides this: `earl_cli.generation.editing.sample_edits` puts its text into the
prompt, and commands show it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from earl_cli.console import shortened

MAX_INSTRUCTION = 4000
_UNSEEN = re.compile("[\u00ad\u200b-\u200d\u2060\ufe0e\ufe0f\ufeff]")  # invisible, common in text copied from a page
_BEFORE = re.compile(r"^(?:please|kindly|(?:can|could|would|will) you)(?: *[,:] *| )")
_AFTER = re.compile(r"[ ,.!?](?:please|thanks|thank you)$")
_AN = re.compile(r"\ban\b")


@dataclass(frozen=True)
class Understood:
    """How a model understands an instruction.

    ``kind`` is the only kind of edit with ``text`` among its trained wordings; None where no kind or several have it,
    and for a model that lists none. ``text`` goes into the prompt: that wording, or the ``instruction`` itself.
    ``effects`` are those that this kind of edit has on a photo (`earl_cli.images.compose.EFFECTS`); None: unknown.
    """

    instruction: str
    kind: str | None
    text: str
    effects: tuple[str, ...] | None = None

    @property
    def remark(self) -> str | None:
        """A remark for the user where the model reads another wording than the instruction; else None."""
        return f"understood as: {self.text}" if self.text != self.instruction else None


def understand(instruction: str, abilities: Mapping[str, Any] | None) -> Understood:
    """The trained wording and the kind of an instruction.

    Case, white space, outer punctuation and quotes, politeness and "an" for "a" don't matter; every other word does.
    ``abilities`` is that entry of ``earl.json``: ``kinds``, name to ``phrases`` (patterns, see `expand_pattern`),
    ``example`` and ``effects``. Of a kind that lists no phrases, as earlier versions wrote them, only the example is
    known.
    """
    normal = normalize(instruction)
    found = [
        (kind, wordings[normal], entry.get("effects"))
        for kind, entry in (abilities or {"kinds": {}})["kinds"].items()
        if normal in (wordings := _wordings(tuple(entry.get("phrases", (entry["example"],)))))
    ]
    if len(found) != 1:
        return Understood(instruction, None, instruction)
    kind, wording, effects = found[0]
    return Understood(instruction, kind, wording, None if effects is None else tuple(effects))


def abilities_problem(abilities: object) -> str | None:
    """The problem of an entry ``abilities`` of ``earl.json``; None if it is valid or missing."""
    from earl_cli.images.compose import EFFECTS

    if abilities is None:
        return None
    kinds = abilities.get("kinds") if isinstance(abilities, dict) else None
    if not isinstance(kinds, dict):
        return "abilities must have kinds, by name"
    for name, entry in kinds.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("example"), str):
            return f"ability {name!r} must have an example, a text"
        for key in ("phrases", "effects"):
            texts = entry.get(key, [])
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                return f"{key} of ability {name!r} must be a list of texts"
        unknown = sorted({*entry.get("effects", ())} - {*EFFECTS})
        if unknown:
            return f"effects of ability {name!r} must be some of {', '.join(EFFECTS)}, not {', '.join(unknown)}"
    return None


def out_of_range_message(found: Understood) -> str:
    """The warning for an instruction that isn't among a model's abilities."""
    text = shortened(found.instruction)
    return f'this model does not list "{text}" among what it was trained for, so the result is a guess'


def examples(abilities: Mapping[str, Any]) -> tuple[str, ...]:
    """One instruction of each kind that the model can follow."""
    return tuple(entry["example"] for entry in abilities["kinds"].values())


def fingerprint(abilities: Mapping[str, Any]) -> str:
    """A digest of a model's abilities; edits of one instruction may differ where it differs."""
    return hashlib.sha256(json.dumps(abilities, sort_keys=True).encode()).hexdigest()[:16]


def expand_pattern(pattern: str) -> tuple[str, ...]:
    """Expand ``"{make it|turn it} blue"`` into every choice, first choices first."""
    parts = [part.split("|") for chunk in pattern.split("{") for part in chunk.split("}", 1)]
    return tuple(" ".join("".join(choice).split()) for choice in itertools.product(*parts))


def normalize(text: str) -> str:
    """A normal form that is equal for two spellings of the same words."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = " ".join(_UNSEEN.sub("", text).split())
    before = ""
    while text != before:
        before, text = text, _AFTER.sub("", _BEFORE.sub("", _inner(text)))
    return _AN.sub("a", text)


def _inner(text: str) -> str:
    """The text without quotes and brackets around it, and without punctuation at its end.

    A dash or an exclamation mark in front stays: it may mean "not".
    """
    start, end = 0, len(text)
    while start < end and (text[start] in " \"'`¡¿" or unicodedata.category(text[start]) in ("Ps", "Pi", "Pf")):
        start += 1
    while end > start and (text[end - 1] in " `" or unicodedata.category(text[end - 1]).startswith("P")):
        end -= 1
    return text[start:end]


@cache
def _wordings(phrases: Sequence[str]) -> Mapping[str, str]:
    """Trained wordings by their normal forms."""
    return {normalize(wording): wording for pattern in phrases for wording in expand_pattern(pattern)}
