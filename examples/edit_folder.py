"""Edit every photo in a folder, many in one batch. A photo that can't be read doesn't stop the others.

python examples/edit_folder.py docs/photos "make it snowy" snowy/ --seed 7
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from earl_cli import EarlError, load_editor

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Edit the photos, say which file each became, and return 1 if any failed."""
    parser = argparse.ArgumentParser(description="Edit every photo in a folder.")
    parser.add_argument("photos", type=Path)
    parser.add_argument("instruction")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", help="a model folder or Hub id; the embedded model by default")
    parser.add_argument("--seed", type=int, help="the same for every photo; random by default")
    given = parser.parse_args(arguments)

    if not given.photos.is_dir():
        parser.error(f"there is no folder {given.photos}")
    if given.output.resolve() == given.photos.resolve():
        parser.error("the output folder is the photos' own: they would be overwritten")
    photos = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in ENDINGS)
    given.output.mkdir(parents=True, exist_ok=True)
    failures = 0
    with load_editor(given.model) as editor:
        edits = editor.edit_many(photos, given.instruction, seed=given.seed)
        for photo, edited in zip(photos, edits, strict=True):
            if edited.error is not None:
                failures += 1
                print(edited.error, file=sys.stderr)
                continue
            edited.save(given.output / photo.name)
            print(f"{photo} -> {given.output / photo.name} (seed {edited.seed})")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EarlError as error:
        sys.exit(f"error: {error}")
