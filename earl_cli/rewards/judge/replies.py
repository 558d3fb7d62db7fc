"""Read a judge's reply: models wrap, quote and cut their JSON in many ways, and all that is clear is understood.

What isn't clear (numbers outside 0 to 10, a wrong count, two answers in one reply) is refused with the reason. No reply
takes longer to read than its length allows: it is at most `LONGEST`, and no pattern goes back over what it has read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

LOWEST, HIGHEST = 0, 10
LONGEST = 20_000
"""Characters of a reply that are read; what a reasoning model thought before it doesn't count."""

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?)\b"
_OF_TEN = r"(?:\s*(?:/|\bof\b|\bout\s+of\b)\s*10(?:\.0*)?(?![\d.]*\d))?"
_GRADE = rf"(?:{_NUMBER}){_OF_TEN}"
_QUOTE = "[\"'“”]?"
_ONE_GRADE = re.compile(rf"({_NUMBER}){_OF_TEN}", re.IGNORECASE)
_NUMBERS, _GRADES = (
    re.compile(rf"\[\s*(?:{each})(?:\s*,\s*(?:{each}))*\s*(?:,\s*)?\]", re.IGNORECASE) for each in (_NUMBER, _GRADE)
)
# In a JSON object with unquoted keys, single quotes or no end: the key after the brace or after a comma behind it.
_LOOSE_SCORE = re.compile(
    rf"\{{(?:[^{{}}]*,)?\s*{_QUOTE}scores?{_QUOTE}\s*[:=]\s*"
    rf"(\[[^\[\]]*\]|\([^()]*\)|{_QUOTE}{_GRADE}{_QUOTE}(?=\s*(?:[,}}]|$)))",
    re.IGNORECASE,
)
_LOOSE_REASONING = re.compile(rf"{_QUOTE}reasoning{_QUOTE}\s*[:=]\s*(.*)", re.IGNORECASE | re.DOTALL)
_WRAPPING = re.compile(r"\|\|V\^=\^V\|\||```\w*")
_DECORATION = " \n\t\"'“”*_`"
_PAIRS = ("[]", "()")
_OBJECT = re.compile(r"\{(?=\s*[\"}])")
_MOST_OBJECTS = 200  # beginnings of JSON objects that are tried
_THOUGHT = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
TIE, FIRST, SECOND = 0.0, 1.0, 2.0
_CHOICES = {"1": FIRST, "2": SECOND, "tie": TIE}
_NARROW: dict[int, int | str] = {
    **{wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)},  # ！ to ～, which East Asian models write
    **dict(zip(map(ord, "\u3000【】〔〕［］、﹐⁄∕"), " [][][],,//", strict=True)),
}


@dataclass(frozen=True)
class Reply:
    """What a judge said: numbers from 0 to 10, and its reasoning, "" if it gave none."""

    numbers: tuple[float, ...]
    reasoning: str


class UnreadableError(ValueError):
    """A reply without the numbers that were asked for; the message says what is wrong with it."""


def read_scores(text: str, count: int = 2) -> Reply:
    """The numbers of a reply such as ``{"score": [6, 0], "reasoning": "…"}``, also of ``[6, 0]``, or of one number.

    One number that stands alone counts for all ``count``. ``8/10`` and ``8 out of 10`` are 8, and full-width characters
    are as good as narrow ones. Raises UnreadableError.
    """
    text = _spoken(text)
    found = _found(text) or _found(_narrow(text))
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
    found = _tagged(text, "score") or _tagged(_narrow(text), "score")
    if not found:
        raise UnreadableError("there is no <score>N</score> in it" if text else "it is empty")
    start, said = found[-1]
    number = _number(_undecorated(said))
    if not number.is_integer():
        raise UnreadableError(f"its score {number:g} is no whole number")
    return Reply((number,), text[:start].strip())


def read_choice(text: str) -> Reply:
    """The choice of ``<choice>1</choice>``, 2 or tie, as `FIRST`, `SECOND` or `TIE`, and the text before the last one.

    Raises UnreadableError, also for choices that differ.
    """
    text = _spoken(text)
    found = _tagged(text, "choice") or _tagged(_narrow(text), "choice")
    if not found:
        raise UnreadableError("there is no <choice>1</choice> in it" if text else "it is empty")
    said = {_undecorated(_narrow(each)).lower() for _, each in found}
    for word in sorted(said - _CHOICES.keys()):
        raise UnreadableError(f"its choice {word[:40]!r} is not 1, 2 or tie")
    if len(said) > 1:
        raise UnreadableError(f"it makes {len(said)} different choices")
    return Reply((_CHOICES[said.pop()],), text[: found[-1][0]].strip())


def is_all_thoughts(text: str) -> bool:
    """Whether a reply begins with a thought and has no end of one."""
    return _THOUGHT.match(text.lstrip()) is not None and _END_OF_THOUGHT.search(text) is None


def _spoken(text: str) -> str:
    """The reply without what a reasoning model thought before it. Raises UnreadableError for more than `LONGEST`."""
    text = _END_OF_THOUGHT.split(text)[-1].strip()
    if len(text) > LONGEST:
        raise UnreadableError(f"it has {len(text)} characters, more than {LONGEST}")
    return text


def _narrow(text: str) -> str:
    """The text with full-width characters as narrow ones, each in its place."""
    return text.translate(_NARROW)


def _found(text: str) -> list[tuple[Any, str]]:
    """Scores with their reasoning, in whichever form they stand in ``text``."""
    return _objects(text) or _loose(text) or _bare(text)


def _objects(text: str) -> list[tuple[Any, str]]:
    """Score and reasoning of every JSON object in ``text`` that has a score."""
    found, end, decoder = [], 0, json.JSONDecoder(strict=False)
    for start in islice(_OBJECT.finditer(text), _MOST_OBJECTS):
        if start.start() < end:
            continue
        try:
            value, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        keys = {key.lower(): key for key in value}
        key = keys.get("score", keys.get("scores"))
        if key is not None:
            found.append((value[key], _text(value.get(keys.get("reasoning")))))
    return found


def _loose(text: str) -> list[tuple[Any, str]]:
    matches = list(_LOOSE_SCORE.finditer(text))
    if not matches:
        return []
    reasoning = _LOOSE_REASONING.search(text, matches[-1].end())
    words = reasoning[1].rpartition("}")[0] or reasoning[1] if reasoning else ""
    return [(match[1], words.strip(" \n\"'“”")) for match in matches]


def _bare(text: str) -> list[tuple[Any, str]]:
    """Lists of numbers that stand somewhere in the text, or the number or bracketed numbers that are all of it."""
    unwrapped = _WRAPPING.sub(" ", text).strip()
    alone = unwrapped.strip(_DECORATION).removesuffix(".").strip(_DECORATION)
    if _ONE_GRADE.fullmatch(inner := _undecorated(alone).removesuffix(".")):
        return [(inner, "")]
    if alone.startswith("(") and _GRADES.fullmatch(inner := f"[{alone.strip('()')}]"):
        return [(inner, "")]
    kind = _NUMBERS if _NUMBERS.search(text) else _GRADES
    around = kind.sub(" ", unwrapped).strip()
    return [(match[0], around) for match in kind.finditer(text)]


def _tagged(text: str, name: str) -> list[tuple[int, str]]:
    """What stands between ``<name>`` and the next ``</name>``, with the place where it begins."""
    found, start = [], None
    for tag in re.finditer(rf"<(/?){name}>", text, re.IGNORECASE):
        if not tag[1]:
            start = tag
        elif start is not None:
            found.append((start.start(), text[start.end() : tag.start()]))
            start = None
    return found


def _undecorated(text: str) -> str:
    """Without quotes, emphasis and one pair of brackets around it."""
    text = _narrow(text).strip(_DECORATION)
    if text[:1] + text[-1:] in _PAIRS:
        text = text[1:-1].strip(_DECORATION)
    return text


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return "" if value is None else str(value).strip()


def _numbers(value: Any) -> tuple[float, ...] | None:
    """The numbers of a list or of a list's text; None for what is no list."""
    if isinstance(value, str) and (narrow := _narrow(value).strip())[:1] in ("[", "("):
        value = [part for part in narrow.strip("[]()").split(",") if part.strip()]
    return tuple(map(_number, value)) if isinstance(value, list) else None


def _number(value: Any) -> float:
    if isinstance(value, str) and (grade := _ONE_GRADE.fullmatch(_narrow(value).strip(_DECORATION))):
        value = float(grade[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableError(f"its score {str(value)[:40]!r} is no number")
    if not (math.isfinite(value) if isinstance(value, float) else True) or not LOWEST <= value <= HIGHEST:
        raise UnreadableError(f"its score {str(value)[:40]} is not from {LOWEST} to {HIGHEST}")
    return float(value)
