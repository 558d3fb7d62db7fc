"""The benchmark that ships with the package: held-out photos, and for each of them several edits with the true result.

``python embedded/benchmark.py WORK`` writes earl_cli/evaluation/embedded_set: images and pairs.jsonl. Every kind of
edit comes equally often, shapes twice; which photo gets which is drawn from a fixed seed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from edits import Edit, catalogue, to_bytes
from PIL import Image

PHOTOS = {  # held-out photos by their file, with short names
    "0218": "cat",
    "0111": "coffee",
    "0102": "palace",
    "0109": "rocket",
    "0048": "flower",
    "0184": "astronaut",
    "0015": "kite",
    "0017": "water",
}
AREA = 256 * 256
EACH = 5
SET = Path(__file__).parents[1] / "earl_cli" / "evaluation" / "embedded_set"


def photo(path: Path) -> Image.Image:
    """An RGB image of about `AREA` pixels."""
    image = Image.open(path).convert("RGB")
    scale = (AREA / (image.width * image.height)) ** 0.5
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def dealt(rng: np.random.Generator) -> list[list[Edit]]:
    """`EACH` edits of different kinds for every photo."""
    by_kind: dict[str, list[Edit]] = {}
    for edit in catalogue():
        by_kind.setdefault(edit.kind, []).append(edit)
    hands: list[list[Edit]] = [[] for _ in PHOTOS]
    deck = [kind for _ in range(2) for kind in rng.permutation(sorted(by_kind))] + ["circle", "square"]
    for kind in deck[: EACH * len(PHOTOS)]:
        free = [hand for hand in hands if len(hand) < EACH and kind not in {edit.kind for edit in hand}]
        fewest = min(len(hand) for hand in free)
        hand = [hand for hand in free if len(hand) == fewest]
        options = by_kind[kind]
        hand[rng.integers(len(hand))].append(options[rng.integers(len(options))])
    return hands


def main() -> None:
    work = Path(sys.argv[1])
    rng = np.random.default_rng(2508)
    SET.mkdir(exist_ok=True)
    lines = []
    for (file, name), edits in zip(PHOTOS.items(), dealt(rng), strict=True):
        source = photo(work / "photos" / "heldout" / f"{file}.png")
        source.save(SET / f"{name}.webp", quality=92, method=6)
        pixels = np.asarray(Image.open(SET / f"{name}.webp").convert("RGB"), dtype=np.float32) / 255
        for edit in edits:
            phrase = edit.phrases[rng.integers(len(edit.phrases))]
            kind = edit.kind.replace(" ", "-")
            target = Image.fromarray(to_bytes(edit.apply(pixels, rng)))
            target.save(SET / f"{name}-{kind}.webp", quality=92, method=6)
            row = {"id": f"{name}-{kind}", "source": f"{name}.webp", "edited": f"{name}-{kind}.webp"}
            lines.append(json.dumps({**row, "instruction": phrase, "task": edit.kind}))
    (SET / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} edits in {SET}")


if __name__ == "__main__":
    main()
