"""A reward of your own: more warmth, at the brightness of the photo. Tried on four edits of a photo:

python examples/own_reward.py docs/photos/palace.jpg "make it warmer"

and trained with, in this folder, on a store that `earl tokenize` wrote:

earl rl --config embedded/rl --data store/ --reward own_reward:warmth -o warmer/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from earl_cli import EarlError, Edit, Score, load_editor, reward


@reward
def warmth(edit: Edit) -> Score | None:
    """How much redder than blue the edit has become, minus how much its brightness changed; 1 is the whole range."""
    if edit.edited is None:  # the model completed no image
        return None
    before, after = (image.mean(axis=(0, 1)) / 255 for image in (edit.source, edit.edited))
    gained = float((after[0] - after[2]) - (before[0] - before[2]))
    changed = float(abs(after.mean() - before.mean()))
    return Score(gained - changed, {"warmth": gained, "brightness_change": changed})


def main(arguments: Sequence[str]) -> int:
    """Print the scores of four edits of a photo."""
    if len(arguments) != 2:
        sys.exit('usage: python examples/own_reward.py PHOTO "INSTRUCTION"')
    photo, instruction = arguments
    try:
        with Image.open(photo) as image:
            source = np.asarray(image.convert("RGB"))
    except OSError as error:  # missing, or not an image
        sys.exit(f"error: {error}")
    with load_editor() as editor:
        variants = editor.variants(source, instruction, 4, seed=0)
    edits = [
        Edit(f"seed {each.seed}", instruction, source, None if each.error else np.asarray(each.image))
        for each in variants
    ]
    for edit, score in zip(edits, warmth(edits), strict=True):
        print(f"{edit.id}: {score.value} {dict(score.parts)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EarlError as error:
        sys.exit(f"error: {error}")
