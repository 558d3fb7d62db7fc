"""Boxes in a chain of thought, ``[x1, y1, x2, y2]`` in pixels: they move along when their picture is resized."""

from __future__ import annotations

import re

Size = tuple[int, int]
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
"""A coordinate, its digits a group."""
BOX = rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]"
"""A box, its four coordinates groups."""
_BOX = re.compile(BOX)


def rescale_boxes(text: str, before: Size, after: Size) -> str:
    """``text`` with its boxes brought from a picture of ``before`` (width, height) to ``after``, rounded to pixels.

    Only four numbers in square brackets are a box; everything else stays as it is.
    """
    scales = [after[0] / before[0], after[1] / before[1]] * 2

    def moved(match: re.Match[str]) -> str:
        corners = [round(float(number) * scale) for number, scale in zip(match.groups(), scales, strict=True)]
        return f"[{', '.join(map(str, corners))}]"

    return _BOX.sub(moved, text)
