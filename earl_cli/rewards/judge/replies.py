"""Parsing of judges' replies: models wrap, quote and cut their JSON in many ways; whatever is unambiguous is accepted.

The rest (scores outside 0 to 10, a wrong count, two different answers) is refused with the reason. Time is linear in
the length of the reply, which is at most `MAX_LENGTH`: no pattern backtracks.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

MIN_SCORE, MAX_SCORE = 0, 10
MAX_LENGTH = 20_000
"""Characters of a reply, without the reasoning before it."""

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?)\b"
_OF_TEN = r"(?:\s*(?:/|\bof\b|\bout\s+of\b)\s*10(?:\.0*)?(?![\d.]*\d))?"
_SCORE = rf"(?:{_NUMBER}){_OF_TEN}"
_QUOTE = "[\"'“”]?"
_ONE_SCORE = re.compile(rf"({_NUMBER}){_OF_TEN}", re.IGNORECASE)
_NUMBER_LIST, _SCORE_LIST = (
    re.compile(rf"\[\s*(?:{each})(?:\s*,\s*(?:{each}))*\s*(?:,\s*)?\]", re.IGNORECASE) for each in (_NUMBER, _SCORE)
)
# In a JSON object with unquoted keys, single quotes or no end: the key after the brace or after a comma behind it.
_LOOSE_SCORE = re.compile(
    rf"\{{(?:[^{{}}]*,)?\s*{_QUOTE}scores?{_QUOTE}\s*[:=]\s*"
    rf"(\[[^\[\]]*\]|\([^()]*\)|{_QUOTE}{_SCORE}{_QUOTE}(?=\s*(?:[,}}]|$)))",
    re.IGNORECASE,
)
_LOOSE_REASONING = re.compile(rf"{_QUOTE}reasoning{_QUOTE}\s*[:=]\s*(.*)", re.IGNORECASE | re.DOTALL)
_WRAPPING = re.compile(r"\|\|V\^=\^V\|\||```\w*")
_DECORATION = " \n\t\"'“”*_`"
_BRACKETS = ("[]", "()")
_OBJECT = re.compile(r"\{(?=\s*[\"}])")
_MAX_OBJECTS = 200  # beginnings of JSON objects that are tried
_REASONING_START = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_REASONING_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
TIE, FIRST, SECOND = 0.0, 1.0, 2.0
_CHOICES = {"1": FIRST, "2": SECOND, "tie": TIE}
_NARROW: dict[int, int | str] = {
    **{wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)},  # ！ to ～, which East Asian models write
    **dict(zip(map(ord, "\u3000【】〔〕［］、﹐⁄∕"), " [][][],,//", strict=True)),
}


@dataclass(frozen=True)
class ParsedReply:
    """Scores from 0 to 10 (or a choice), and the judge's reasoning, "" if it gave none."""

    scores: tuple[float, ...]
    reasoning: str


class InvalidReplyError(ValueError):
    """A reply without the scores that the prompt asks for; the message says what is wrong with it."""


def parse_scores(text: str, count: int = 2) -> ParsedReply:
    """The scores of a reply such as ``{"score": [6, 0], "reasoning": "…"}``, also of ``[6, 0]``, or of one number.

    One number alone counts for all ``count``. ``8/10`` and ``8 out of 10`` are 8; full-width characters are read as
    narrow ones. Raises InvalidReplyError.
    """
    text = _without_reasoning(text)
    found = _candidates(text) or _candidates(_narrow(text))
    if not found:
        raise InvalidReplyError("there is no score in it" if text else "it is empty")
    if len({repr(value) for value, _ in found}) > 1:
        raise InvalidReplyError(f"it gives {len(found)} different scores")
    value, reasoning = found[-1]
    scores = _score_list(value)
    if scores is None:
        return ParsedReply((_score(value),) * count, reasoning)
    if len(scores) != count:
        raise InvalidReplyError(f"it gives {len(scores)} scores where {count} are expected")
    return ParsedReply(scores, reasoning)


def parse_tag(text: str) -> ParsedReply:
    """The integer of the last ``<score>N</score>`` of a reply, and the text before it. Raises InvalidReplyError."""
    text = _without_reasoning(text)
    found = _tagged(text, "score") or _tagged(_narrow(text), "score")
    if not found:
        raise InvalidReplyError("there is no <score>N</score> in it" if text else "it is empty")
    start, inner = found[-1]
    score = _score(_undecorated(inner))
    if not score.is_integer():
        raise InvalidReplyError(f"its score {score:g} is no whole number")
    return ParsedReply((score,), text[:start].strip())


def parse_choice(text: str) -> ParsedReply:
    """The choice of ``<choice>1</choice>``, 2 or tie, as `FIRST`, `SECOND` or `TIE`, and the text before the last one.

    Raises InvalidReplyError, also for several different choices.
    """
    text = _without_reasoning(text)
    found = _tagged(text, "choice") or _tagged(_narrow(text), "choice")
    if not found:
        raise InvalidReplyError("there is no <choice>1</choice> in it" if text else "it is empty")
    choices = {_undecorated(_narrow(each)).lower() for _, each in found}
    if unknown := sorted(choices - _CHOICES.keys()):
        raise InvalidReplyError(f"its choice {unknown[0][:40]!r} is not 1, 2 or tie")
    if len(choices) > 1:
        raise InvalidReplyError(f"it makes {len(choices)} different choices")
    return ParsedReply((_CHOICES[choices.pop()],), text[: found[-1][0]].strip())


def is_unfinished_reasoning(text: str) -> bool:
    """Whether a reply begins with a reasoning tag that is never closed."""
    return _REASONING_START.match(text.lstrip()) is not None and _REASONING_END.search(text) is None


def _without_reasoning(text: str) -> str:
    """What follows the last closing reasoning tag. Raises InvalidReplyError for more than `MAX_LENGTH`."""
    text = _REASONING_END.split(text)[-1].strip()
    if len(text) > MAX_LENGTH:
        raise InvalidReplyError(f"it has {len(text)} characters, more than {MAX_LENGTH}")
    return text


def _narrow(text: str) -> str:
    """The text with narrow in place of full-width characters, one for one."""
    return text.translate(_NARROW)


def _candidates(text: str) -> list[tuple[Any, str]]:
    """Scores with their reasoning, of the first form that ``text`` has any of."""
    return _objects(text) or _loose(text) or _bare(text)


def _objects(text: str) -> list[tuple[Any, str]]:
    """Score and reasoning of every JSON object in ``text`` that has a score."""
    found, end, decoder = [], 0, json.JSONDecoder(strict=False)
    for start in islice(_OBJECT.finditer(text), _MAX_OBJECTS):
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
    """As `_objects`, for objects that are no valid JSON."""
    matches = list(_LOOSE_SCORE.finditer(text))
    if not matches:
        return []
    reasoning = _LOOSE_REASONING.search(text, matches[-1].end())
    reason = reasoning[1].rpartition("}")[0] or reasoning[1] if reasoning else ""
    return [(match[1], reason.strip(" \n\"'“”")) for match in matches]


def _bare(text: str) -> list[tuple[Any, str]]:
    """Lists of numbers anywhere in the text, or the number or bracketed numbers that are the whole text."""
    unwrapped = _WRAPPING.sub(" ", text).strip()
    alone = unwrapped.strip(_DECORATION).removesuffix(".").strip(_DECORATION)
    if _ONE_SCORE.fullmatch(inner := _undecorated(alone).removesuffix(".")):
        return [(inner, "")]
    if alone.startswith("(") and _SCORE_LIST.fullmatch(inner := f"[{alone.strip('()')}]"):
        return [(inner, "")]
    pattern = _NUMBER_LIST if _NUMBER_LIST.search(text) else _SCORE_LIST
    reason = pattern.sub(" ", unwrapped).strip()
    return [(match[0], reason) for match in pattern.finditer(text)]


def _tagged(text: str, name: str) -> list[tuple[int, str]]:
    """The texts between ``<name>`` and the next ``</name>``, with the positions of their opening tags."""
    found, start = [], None
    for tag in re.finditer(rf"<(/?){name}>", text, re.IGNORECASE):
        if not tag[1]:
            start = tag
        elif start is not None:
            found.append((start.start(), text[start.end() : tag.start()]))
            start = None
    return found


def _undecorated(text: str) -> str:
    """Without quotes, emphasis and one pair of brackets around the text."""
    text = _narrow(text).strip(_DECORATION)
    if text[:1] + text[-1:] in _BRACKETS:
        text = text[1:-1].strip(_DECORATION)
    return text


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return "" if value is None else str(value).strip()


def _score_list(value: Any) -> tuple[float, ...] | None:
    """The scores of a list or of the text of one; None for anything else."""
    if isinstance(value, str) and (narrow := _narrow(value).strip())[:1] in ("[", "("):
        value = [part for part in narrow.strip("[]()").split(",") if part.strip()]
    return tuple(map(_score, value)) if isinstance(value, list) else None


def _score(value: Any) -> float:
    if isinstance(value, str) and (match := _ONE_SCORE.fullmatch(_narrow(value).strip(_DECORATION))):
        value = float(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidReplyError(f"its score {str(value)[:40]!r} is no number")
    if not (math.isfinite(value) if isinstance(value, float) else True) or not MIN_SCORE <= value <= MAX_SCORE:
        raise InvalidReplyError(f"its score {str(value)[:40]} is not from {MIN_SCORE} to {MAX_SCORE}")
    return float(value)
