"""Edits that need more than one look at the instruction: counting, places, relations, two edits at once.

All of them are made of the simple edits in edits.py, and as exactly defined as these: three dots lie in a row, four in
the corners, so that there is one true image for every request.
"""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
from edits import (
    COLOURS,
    GLOBAL,
    SHAPE_RADIUS,
    TINTS,
    Apply,
    Edit,
    Pixels,
    article,
    catalogue,
    down,
    shape_at,
    tint,
)

from earl_cli.models.abilities import expand_pattern

DOT_RADIUS = 0.11
COUNTS = {
    "two": ((0.25, 0.5), (0.75, 0.5)),
    "three": ((0.18, 0.5), (0.5, 0.5), (0.82, 0.5)),
    "four": ((0.22, 0.22), (0.78, 0.22), (0.22, 0.78), (0.78, 0.78)),
}
RELATIONS = {
    "to the left of": ((0.25, 0.5), (0.75, 0.5)),
    "to the right of": ((0.75, 0.5), (0.25, 0.5)),
    "above": ((0.5, 0.25), (0.5, 0.75)),
    "below": ((0.5, 0.75), (0.5, 0.25)),
}
HALVES = ("left", "right", "top", "bottom")
OF_HALVES = ("black and white", "negative", "darker", "brighter")  # and every tint
PHRASES_OF_EACH = 3  # ways to ask for each part of two edits at once


def one_after_another(*parts: Apply) -> Apply:
    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return reduce(lambda done, part: np.clip(part(done, rng), 0, 1), parts, pixels)

    return apply


def on_half(half: str, whole: Apply) -> Apply:
    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        across = np.linspace(0, 1, pixels.shape[1], dtype=np.float32)[None, :, None]
        place = {"left": 1 - across, "right": across, "top": 1 - down(pixels), "bottom": down(pixels)}[half]
        return np.where(place > 0.5, whole(pixels, rng), pixels)

    return apply


def counting() -> list[Edit]:
    edits = []
    for (number, centres), name in itertools.product(COUNTS.items(), COLOURS):
        dots = one_after_another(*(shape_at("circle", name, centre, DOT_RADIUS) for centre in centres))
        phrases = expand_pattern(f"{{add|put|draw|paint}} {number} {name} {{dots|circles|balls}}")
        edits.append(Edit("count", phrases, dots, f"with {number} {name} dots", f"{number} {name} dots"))
    return edits


def places() -> list[Edit]:
    whole = {kind: apply for kind, apply, _, _ in GLOBAL}
    changes = {kind: whole[kind] for kind in OF_HALVES} | {name: tint(name) for name in TINTS}
    edits = []
    for half, (word, change) in itertools.product(HALVES, changes.items()):
        phrases = expand_pattern(f"{{make|turn}} the {half} {{half|side|part}} {word}")
        edits.append(
            Edit("place", phrases, on_half(half, change), f"with the {half} half {word}", f"{word} {half} half")
        )
    return edits


def relations() -> list[Edit]:
    edits = []
    for (relation, (one, other)), a, b in itertools.product(RELATIONS.items(), COLOURS, COLOURS):
        if a == b:
            continue
        both = one_after_another(shape_at("square", b, other, SHAPE_RADIUS), shape_at("circle", a, one, SHAPE_RADIUS))
        words = f"{article(a)} {a} circle {relation} {article(b)} {b} square"
        phrases = expand_pattern(f"{{add|put|draw|paint|place}} {words}")
        edits.append(Edit("relation", phrases, both, f"with {words}", f"{a} circle {relation} {b} square"))
    return edits


def two_at_once() -> list[Edit]:
    """Every global edit or tint, then a circle at a place or the mirroring."""
    simple = catalogue()
    first = [edit for edit in simple if edit.kind not in ("circle", "square", "mirror")]
    mirrored = next(edit for edit in simple if edit.kind == "mirror")
    circles = [edit for edit in simple if edit.kind == "circle"]
    edits = []
    for one in first:
        for other in (*circles, *[mirrored] * (len(circles) // 4)):
            requested = itertools.product(one.phrases[:PHRASES_OF_EACH], other.phrases[:PHRASES_OF_EACH])
            both = one_after_another(one.apply, other.apply)
            phrases, but = tuple(f"{a} and {b}" for a, b in requested), f"{one.but} and {other.but}"
            edits.append(Edit("two edits", phrases, both, but, f"{one.plan} then {other.plan}"))
    return edits


def complex_catalogue() -> tuple[Edit, ...]:
    return (*counting(), *places(), *relations(), *two_at_once())
