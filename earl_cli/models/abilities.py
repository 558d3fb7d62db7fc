"""What a small model was trained to do: whether an instruction is among it, and what else to try."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FILLERS = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "it",
        "this",
        "that",
        "my",
        "please",
        "can",
        "could",
        "you",
        "i",
        "want",
        "would",
        "like",
        "to",
        "be",
        "more",
        "very",
        "really",
        "so",
        "just",
        "bit",
        "little",
        "lot",
        "much",
        "of",
        "in",
        "on",
        "at",
        "with",
        "for",
        "image",
        "photo",
        "picture",
        "pic",
        "make",
    ]
)
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Recognised:
    """``kinds`` of edit that an instruction asks for, and its words that the model has never seen."""

    kinds: tuple[str, ...]
    unknown_words: tuple[str, ...]

    @property
    def in_range(self) -> bool:
        """Whether this is one edit of a kind that was trained, in words that were trained."""
        return len(self.kinds) == 1 and not self.unknown_words


def recognise(instruction: str, abilities: Mapping[str, Any]) -> Recognised:
    """Find the kinds of edit in an instruction by their cues, longest first; a word counts for one cue only.

    ``abilities`` is that entry of ``earl.json``: ``kinds`` (name to ``cues`` and ``example``) and the known ``words``.
    A kind gives way to those in its ``yields_to``: "a red circle" asks for a circle, not for a red tint.
    """
    words = [word.casefold() for word in _WORD.findall(instruction)]
    text = f" {' '.join(words)} "
    kinds: list[str] = []
    cues = [(cue, kind) for kind, entry in abilities["kinds"].items() for cue in entry["cues"]]
    for cue, kind in sorted(cues, key=lambda item: -item[0].count(" ")):
        if f" {cue} " in text and kind not in kinds:
            kinds.append(kind)
            text = text.replace(f" {cue} ", " ")
    for yielding, entry in abilities["kinds"].items():
        if len(kinds) > 1 and yielding in kinds and set(entry.get("yields_to", ())) & set(kinds):
            kinds.remove(yielding)
    known = FILLERS | set(abilities["words"])
    unknown = tuple(dict.fromkeys(word for word in words if word not in known))
    return Recognised(tuple(kinds), unknown)


def doubt(instruction: str, found: Recognised) -> str | None:
    """Why what the model makes of the instruction is a guess, as what follows "this model"; None if it is in range."""
    if found.in_range:
        return None
    if not found.kinds:
        return f'was not trained for "{instruction}"'
    if found.unknown_words:
        return f"does not know {', '.join(found.unknown_words)}"
    return f"was trained for one edit at a time, not for {' and '.join(found.kinds)} at once"


def examples(abilities: Mapping[str, Any]) -> tuple[str, ...]:
    """One instruction of each kind that the model can follow."""
    return tuple(entry["example"] for entry in abilities["kinds"].values())
