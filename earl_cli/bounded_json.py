"""JSON that somebody else wrote: whatever is wrong with it, its depth and its numbers too, is a ValueError in words."""

from __future__ import annotations

import json
import re
from typing import Any

MOST_DEPTH = 100
_DECODER = json.JSONDecoder()
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def loads(text: str | bytes) -> Any:
    """As `json.loads`. Raises json.JSONDecodeError where this is no JSON, and its base ValueError for UTF-8 that is
    damaged, for what is nested more than `MOST_DEPTH` deep, and for a number of thousands of digits."""
    text = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
    value, end = first_value(text, len(text) - len(text.lstrip(" \t\r\n")))
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def first_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at ``start``, and where it ends; failures as of `loads`."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise ValueError("a number in it has thousands of digits") from None
    if _is_deep(value, text, start, end):
        raise ValueError("it is nested too deeply")
    return value, end


def end_of_value(text: str, start: int) -> int:
    """Where the object or list ends that begins at ``start``, also where it can't be read; else the end of the text."""
    depth = 0
    for token in _TOKENS.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth <= 0 and token[0] in "]}":
            return token.end()
    return len(text)


def _is_deep(value: Any, text: str, start: int, end: int) -> bool:
    if text.count("[", start, end) + text.count("{", start, end) <= MOST_DEPTH:
        return False
    level = [value]
    for _ in range(MOST_DEPTH):
        values = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in values if isinstance(inner, dict | list)]
        if not level:
            return False
    return True
