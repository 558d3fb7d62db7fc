"""Images for the eye: boxes and points of a reasoning on the source, and source, edit and target side by side.

Text is rendered in Pillow's own font, which has little more than ASCII: accents are left out, and a letter of another
script is an empty box.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from earl_cli.tokens.layout import BOX, NUMBER, GridSize

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Area: TypeAlias = tuple[float, float, float, float]
Color: TypeAlias = tuple[int, int, int]

LABEL_WORDS, LABEL_LENGTH = 4, 32
INSTRUCTION_LINES, REASONING_LINES = 4, 6
SMALLEST_PANEL, LARGEST_PANEL = 256, 512

_ROUND_BOX = rf"\({NUMBER},{NUMBER},{NUMBER},{NUMBER}\)"
_MARK = re.compile(rf"{BOX}|{_ROUND_BOX}|\[{NUMBER},{NUMBER}\]|\({NUMBER},{NUMBER}\)")
_ENDS = re.compile(r"[.,;:!?|\n\r\t()\[\]{}<>]+")
_DECORATION = " \"'`*_#-=~“”‘’"
_FILLERS = re.compile(
    "(an?|and|are|around|at|be|bounding|box(es)?|bbox\\w*|by|center|coordinates?|from|here|in|inside|is|its?|lies|located|"
    "location|now|of|on|or|point\\w*|position(ed)?|region|that|the|then|there|this|to|was|which|with|within)",
    re.IGNORECASE,
)
_COLORS: tuple[Color, ...] = (
    (255, 82, 82),
    (64, 156, 255),
    (255, 193, 7),
    (38, 205, 140),
    (206, 130, 255),
    (255, 145, 60),
    (0, 212, 230),
    (255, 120, 200),
)
_HALO: Color = (16, 16, 16)
_SHINE: Color = (255, 255, 255)
_PAPER, _INK, _QUIET, _LINE, _EMPTY = (255, 255, 255), (30, 30, 34), (112, 112, 120), (216, 216, 222), (240, 240, 243)


@dataclass(frozen=True)
class Mark:
    """A box x1, y1, x2, y2 or a point x, y in an image, in pixels; ``label`` names it."""

    label: str
    place: tuple[float, ...]


def boxes_and_points(text: str) -> list[Mark]:
    """The boxes ``[x1, y1, x2, y2]`` and points ``[x, y]`` of a text in reading order, each place once.

    Round brackets are as good as square ones.

    Corners in the wrong order are put right, and what is left of or above the image is cut off. A box without an
    area, and a place outside of the image, are no marks. The label is made of up to `LABEL_WORDS` words before
    the place; without any it is that of the place before, as in a list of boxes.
    """
    marks: dict[tuple[float, ...], Mark] = {}
    label, end = "", 0
    for match in _MARK.finditer(text):
        label = _label(text[max(0, match.start() - 200, end) : match.start()]) or label
        end = match.end()
        place = _inside(tuple(float(number) for number in match.groups() if number is not None))
        if place is not None:
            marks.setdefault(place, Mark(label, place))
    return list(marks.values())


def plot_marks(image: Image.Image, marks: Sequence[Mark], seen: GridSize) -> Image.Image:
    """``image`` in RGB with the marks on it, which count in pixels of the ``seen`` size, (width, height).

    Each has the number of its place in ``marks``, from 1, and its label where there is room. What lies across the edge
    is cut off there; what lies beyond it is left out.
    """
    marked = image.convert("RGB")  # a copy, also of RGB
    canvas = ImageDraw.Draw(marked)
    line = max(2, round(min(marked.size) / 140))
    font = _font(min(28, max(11, round(min(marked.size) / 26))))
    scales = [marked.width / seen[0], marked.height / seen[1]] * 2
    areas: list[tuple[int, Area]] = []
    for number, mark in enumerate(marks):
        if mark.place[0] < seen[0] and mark.place[1] < seen[1]:
            place = [value * scale for value, scale in zip(mark.place, scales, strict=False)]
            color = _COLORS[number % len(_COLORS)]
            shape = _plot_box if len(place) == 4 else _plot_point
            areas.append((number, shape(canvas, place, line, color)))
    taken = [area for number, area in areas if len(marks[number].place) == 2]
    for number, area in areas:
        taken.append(_plot_tag(canvas, area, number, marks[number].label, font, taken))
    return marked


def overview(
    source: Image.Image,
    edited: Image.Image | None,
    target: Image.Image | None,
    instruction: str,
    reasoning: str = "",
) -> Image.Image:
    """Source, edit and, where there is one, target side by side under the instruction, the reasoning below; RGB.

    Images are fitted into squares of one side, from `SMALLEST_PANEL` to `LARGEST_PANEL`; an edit that isn't there is
    an empty frame. Texts that take more than `INSTRUCTION_LINES` or `REASONING_LINES` end in an ellipsis.
    """
    shown = [("source", source), ("edit", edited), *([("target", target)] if target is not None else [])]
    side = max(max(each.size) for _, each in shown if each is not None)
    side = min(LARGEST_PANEL, max(SMALLEST_PANEL, side))
    panels = [_panel(image, side, _fitted(source.size, side)) for _, image in shown]
    margin, gap = side // 20, side // 26
    caption, large, small = (_font(round(side / share)) for share in (26, 20, 28))
    slots = [max(panel.width, side // 2) for panel in panels]
    width = max(sum(slots) + gap * (len(slots) - 1), side * 3 // 2)
    header = _wrapped(instruction, large, width, INSTRUCTION_LINES)
    footer = _wrapped(reasoning, small, width, REASONING_LINES)
    top = margin + _height(header, large) + (gap if header else 0)
    below = top + _height(["x"], caption) + max(panel.height for panel in panels)
    height = below + (gap + _height(footer, small) if footer else 0) + margin
    page = Image.new("RGB", (width + 2 * margin, height), _PAPER)
    canvas = ImageDraw.Draw(page)
    _write(canvas, (margin, margin), header, large, _INK)
    left = margin
    for (name, image), panel, slot in zip(shown, panels, slots, strict=True):
        canvas.text((left, top), name, _INK, caption)
        size = f"{image.width} x {image.height}" if image is not None else ""
        canvas.text((left + caption.getlength(name + "  "), top), size, _QUIET, caption)
        page.paste(panel, (left, top + _height(["x"], caption)))
        left += slot + gap
    _write(canvas, (margin, below + gap), footer, small, _QUIET)
    return page


# -- marks --------------------------------------------------------------------------------------------------------


def _label(before: str) -> str:
    """The last few words of the last phrase, without fillers."""
    phrases = [phrase.strip(_DECORATION) for phrase in _ENDS.split(before)]
    words = next((phrase for phrase in reversed(phrases) if phrase), "").split()
    while words and _FILLERS.fullmatch(words[-1].strip(_DECORATION)):
        words.pop()
    words = words[-LABEL_WORDS:]
    while words and _FILLERS.fullmatch(words[0].strip(_DECORATION)):
        words.pop(0)
    return " ".join(words).strip(_DECORATION)[:LABEL_LENGTH].strip()


def _inside(place: tuple[float, ...]) -> tuple[float, ...] | None:
    """The place with its corners in order, without what is left of or above 0; None if nothing is left."""
    if not all(map(math.isfinite, place)):
        return None
    if len(place) == 2:
        return place if min(place) >= 0 else None
    (x1, x2), (y1, y2) = sorted(place[::2]), sorted(place[1::2])
    x1, y1 = max(0.0, x1), max(0.0, y1)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _plot_box(canvas: ImageDraw.ImageDraw, place: Sequence[float], line: int, color: Color) -> Area:
    """An outline within the image, however small the box is; returns what it covers."""
    width, height = canvas.im.size
    halo = max(1, line // 3)
    least = 2 * (line + 2 * halo)
    x1, x2 = _span(place[0], place[2], least, width)
    y1, y2 = _span(place[1], place[3], least, height)
    for inset, thick, ink in ((0, halo, _HALO), (halo, line, color), (halo + line, halo, _SHINE)):
        if min(x2 - x1, y2 - y1) > 2 * inset:
            canvas.rectangle((x1 + inset, y1 + inset, x2 - inset, y2 - inset), outline=ink, width=thick)
    return x1, y1, x2, y2


def _plot_point(canvas: ImageDraw.ImageDraw, place: Sequence[float], line: int, color: Color) -> Area:
    """A dot within the image; returns what it covers."""
    width, height = canvas.im.size
    halo = max(1, line // 3)
    radius = 2 * line + 2 * halo
    x1, x2 = _span(place[0] - radius, place[0] + radius, 2 * radius, width)
    y1, y2 = _span(place[1] - radius, place[1] + radius, 2 * radius, height)
    for inset, ink in ((0, _HALO), (halo, _SHINE), (2 * halo, color)):
        if min(x2 - x1, y2 - y1) > 2 * inset:
            canvas.ellipse((x1 + inset, y1 + inset, x2 - inset, y2 - inset), fill=ink)
    return x1, y1, x2, y2


def _span(low: float, high: float, least: float, size: int) -> tuple[int, int]:
    """First and last pixel from ``low`` to ``high``, ``least`` apart where the image is that large, and within it."""
    first, last = round(low), round(high) - 1
    if last - first < least:
        first = round((low + high - least) / 2)
        last = first + round(least)
    if first < 0:
        first, last = 0, max(last, min(last - first, round(least)))
    if last > size - 1:
        first, last = min(first, max(0, size - 1 - round(least))), size - 1
    return first, max(first, last)


def _plot_tag(
    canvas: ImageDraw.ImageDraw, area: Area, number: int, label: str, font: Font, taken: Sequence[Area]
) -> Area:
    """The number and, if it fits, the label at the first free place around ``area``; returns what it covers."""
    width, height = canvas.im.size
    text = f"{number + 1} {_printable(label)}".strip()
    if font.getlength(text) > max(width / 2, area[2] - area[0]) - 2 * _pad(font):
        text = str(number + 1)
    pad = _pad(font)
    wide, high = round(font.getlength(text)) + 2 * pad, _line_height(font)
    x1, y1, x2, y2 = area
    inside = [(x1, y1), (x2 - wide + 1, y2 - high + 1)] if x2 - x1 > 2 * wide and y2 - y1 > 2 * high else []
    beside = [(x1, y2 + 1), (x2 - wide + 1, y1 - high), (x2 + 1, y1), (x1 - wide, y1), (x2 - wide + 1, y2 + 1)]
    candidates = [(x1, y1 - high), *inside, *beside, *((x1, y1 + step * high) for step in range(1, height // high + 1))]
    places = [(x, y) for x, y in candidates if 0 <= x <= width - wide and 0 <= y <= height - high]
    places = places or [(max(0, min(x1, width - wide)), max(0, min(y1, height - high)))]
    tags = [(x, y, x + wide - 1, y + high - 1) for x, y in places]
    tag = next((each for each in tags if not any(_overlap(each, other) for other in taken)), tags[0])
    color = _COLORS[number % len(_COLORS)]
    canvas.rectangle(tag, fill=color, outline=_HALO)
    canvas.text((tag[0] + pad, tag[1] + high / 2), text, _HALO, font, anchor="lm")
    return tag


def _overlap(a: Area, b: Area) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


# -- pages --------------------------------------------------------------------------------------------------------


def _fitted(size: GridSize, side: int) -> GridSize:
    """The size in a square of ``side``, its longer side filled, its aspect kept as far as whole pixels go."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _panel(image: Image.Image | None, side: int, empty: GridSize) -> Image.Image:
    if image is not None:
        return image.convert("RGB").resize(_fitted(image.size, side), Image.Resampling.LANCZOS)
    panel = Image.new("RGB", (max(empty[0], side // 2), max(empty[1], side // 4)), _EMPTY)
    canvas = ImageDraw.Draw(panel)
    canvas.rectangle((0, 0, panel.width - 1, panel.height - 1), outline=_LINE)
    canvas.text((panel.width / 2, panel.height / 2), "no image", _QUIET, _font(round(side / 24)), anchor="mm")
    return panel


def _wrapped(text: str, font: Font, width: float, most: int) -> list[str]:
    """Lines of the text in ``width`` pixels, words of more than a line broken; the last of ``most`` ends in "..."."""
    text = _printable(" ".join(text.split())[: most * 2000])
    letters = max(4, 2 * round(len(text) * width / max(1.0, font.getlength(text))))
    while True:
        lines = textwrap.wrap(text, letters, max_lines=most, placeholder="...")
        if letters == 4 or max(map(font.getlength, lines), default=0.0) <= width:
            return lines
        letters = max(4, letters - max(1, letters // 20))


def _write(canvas: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], font: Font, color: Color) -> None:
    for number, line in enumerate(lines):
        canvas.text((place[0], place[1] + number * _line_height(font)), line, color, font)


def _height(lines: Sequence[str], font: Font) -> int:
    return len(lines) * _line_height(font)


# -- letters ------------------------------------------------------------------------------------------------------


@functools.cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _line_height(font: Font) -> int:
    return round(font.getbbox("Xgp|")[3] * 1.25)


def _pad(font: Font) -> int:
    return max(2, _line_height(font) // 5)


def _printable(text: str) -> str:
    """The text without accents and control characters, which the font lacks."""
    plain = text.translate(_PLAIN)
    letters = (each for each in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(each))
    return "".join(" " if unicodedata.category(each)[0] == "C" else each for each in letters)


_PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "ß": "ss", "ø": "o", "æ": "ae", "·": "-"})
