"""Read a judge's reply: models wrap, quote and cut their JSON in many ways, and all that is clear is understood.

What isn't clear (numbers outside 0 to 10, a wrong count, two answers in one reply) is refused with the reason.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

LOWEST, HIGHEST = 0, 10

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?)\b"
_LIST = rf"\[\s*(?:{_NUMBER})(?:\s*,\s*(?:{_NUMBER}))*\s*,?\s*\]"
_QUOTE = "[\"'“”]?"
_LONE_NUMBER = re.compile(_NUMBER, re.IGNORECASE)
_BARE_LIST = re.compile(_LIST, re.IGNORECASE)
# In a JSON object with unquoted keys, single quotes or no end: the key after the brace or after a comma behind it.
_LOOSE_SCORE = re.compile(
    rf"\{{(?:[^{{}}]*,)?\s*{_QUOTE}scores?{_QUOTE}\s*[:=]\s*(\[[^\[\]]*\]|{_QUOTE}(?:{_NUMBER}){_QUOTE}(?=\s*(?:[,}}]|$)))",
    re.IGNORECASE,
)
_LOOSE_REASONING = re.compile(rf"{_QUOTE}reasoning{_QUOTE}\s*[:=]\s*(.*)", re.IGNORECASE | re.DOTALL)
_WRAPPING = re.compile(r"\|\|V\^=\^V\|\||```\w*")
_TAG = re.compile(r"<score>(.*?)</score>", re.IGNORECASE | re.DOTALL)
_CHOICE = re.compile(r"<choice>(.*?)</choice>", re.IGNORECASE | re.DOTALL)
TIE, FIRST, SECOND = 0.0, 1.0, 2.0
_CHOICES = {"1": FIRST, "2": SECOND, "tie": TIE}


@dataclass(frozen=True)
class Reply:
    """What a judge said: numbers from 0 to 10, and its reasoning, "" if it gave none."""

    numbers: tuple[float, ...]
    reasoning: str


class UnreadableError(ValueError):
    """A reply without the numbers that were asked for; the message says what is wrong with it."""


def read_scores(text: str, count: int = 2) -> Reply:
    """The numbers of a reply such as ``{"score": [6, 0], "reasoning": "…"}``, also of ``[6, 0]``, or of one number.

    One number that stands alone counts for all ``count``. Raises UnreadableError.
    """
    text = _spoken(text)
    found = _objects(text) or _loose(text) or _bare(text)
    if not found:
        raise UnreadableError("there is no score in it" if text else "it is empty")
    if len({repr(value) for value, _ in found}) > 1:
        raise UnreadableError(f"it gives {len(found)} different scores")
    value, reasoning = found[-1]
    numbers = _numbers(value)
    if numbers is None:
        number = _number(value)
        return Reply((number,) * count, reasoning)
    if len(numbers) != count:
        raise UnreadableError(f"it gives {len(numbers)} numbers where {count} were asked for")
    return Reply(numbers, reasoning)


def read_tag(text: str) -> Reply:
    """The whole number of the last ``<score>N</score>`` of a reply, and the text before it. Raises UnreadableError."""
    text = _spoken(text)
    found = list(_TAG.finditer(text))
    if not found:
        raise UnreadableError("there is no <score>N</score> in it" if text else "it is empty")
    number = _number(found[-1][1].strip())
    if not number.is_integer():
        raise UnreadableError(f"its score {number:g} is no whole number")
    return Reply((number,), text[: found[-1].start()].strip())


def read_choice(text: str) -> Reply:
    """The choice of ``<choice>1</choice>``, 2 or tie, as `FIRST`, `SECOND` or `TIE`, and the text before the last one.

    Raises UnreadableError, also for choices that differ.
    """
    text = _spoken(text)
    found = list(_CHOICE.finditer(text))
    if not found:
        raise UnreadableError("there is no <choice>1</choice> in it" if text else "it is empty")
    said = {match[1].strip().lower() for match in found}
    for word in sorted(said - _CHOICES.keys()):
        raise UnreadableError(f"its choice {word[:40]!r} is not 1, 2 or tie")
    if len(said) > 1:
        raise UnreadableError(f"it makes {len(said)} different choices")
    return Reply((_CHOICES[said.pop()],), text[: found[-1].start()].strip())


def _spoken(text: str) -> str:
    """The reply without what a reasoning model thought before it."""
    return text.rpartition("</think>")[2].strip()


def _objects(text: str) -> list[tuple[Any, str]]:
    """Score and reasoning of every JSON object in ``text`` that has a score."""
    found, start, decoder = [], text.find("{"), json.JSONDecoder(strict=False)
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        keys = {key.lower(): key for key in value}
        key = keys.get("score", keys.get("scores"))
        if key is not None:
            found.append((value[key], _text(value.get(keys.get("reasoning")))))
        start = text.find("{", end)
    return found


def _loose(text: str) -> list[tuple[Any, str]]:
    found = []
    for match in _LOOSE_SCORE.finditer(text):
        reasoning = _LOOSE_REASONING.search(text, match.end())
        words = reasoning[1].rpartition("}")[0] or reasoning[1] if reasoning else ""
        found.append((match[1], words.strip(" \n\"'“”")))
    return found


def _bare(text: str) -> list[tuple[Any, str]]:
    """Lists of numbers that stand somewhere in the text, or the number that is all of it."""
    lists = [(match[0], _BARE_LIST.sub(" ", _WRAPPING.sub(" ", text)).strip()) for match in _BARE_LIST.finditer(text)]
    alone = _WRAPPING.sub(" ", text).strip()
    return lists or ([(alone, "")] if _LONE_NUMBER.fullmatch(alone) else [])


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return "" if value is None else str(value).strip()


def _numbers(value: Any) -> tuple[float, ...] | None:
    """The numbers of a list or of a list's text; None for what is no list."""
    if isinstance(value, str) and value.strip().startswith("["):
        value = [part for part in value.strip().strip("[]").split(",") if part.strip()]
    return tuple(map(_number, value)) if isinstance(value, list) else None


def _number(value: Any) -> float:
    if isinstance(value, str) and _LONE_NUMBER.fullmatch(value.strip(" \n\t\"'“”")):
        value = float(value.strip(" \n\t\"'“”"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableError(f"its score {str(value)[:40]!r} is no number")
    if not (math.isfinite(value) if isinstance(value, float) else True) or not LOWEST <= value <= HIGHEST:
        raise UnreadableError(f"its score {str(value)[:40]} is not from {LOWEST} to {HIGHEST}")
    return float(value)
