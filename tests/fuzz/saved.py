"""Data sets that the package `datasets` saved: one of their files, up to the images at the model's size."""

from __future__ import annotations

import tempfile
from pathlib import Path

from datasets import Dataset, disable_progress_bars
from fuzz.tables import PICTURE, prepared
from fuzzing import Room

from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.errors import EarlError

disable_progress_bars()
with tempfile.TemporaryDirectory() as _folder:
    Dataset.from_dict(
        {
            "source": [PICTURE] * 4,
            "edited": [PICTURE] * 4,
            "instruction": ["a", "b", "c", "d"],
            "tags": [["x"], [], None, ["y"]],
        }
    ).save_to_disk(_folder)
    GOOD = {path.name: path.read_bytes() for path in Path(_folder).iterdir()}
SNIPPETS = (
    b'"\\ud800"', b"[" * 5000, b"9" * 6000, b"-1", b"null", b"{}", b"[]", b'"_type": "Image"', b'"_type": "x"',
    b"\xff" * 8, b"ARROW1", b"\xff\xff\xff\x7f", b'"../../x"', b'"filename": "/etc/passwd"', b'"dtype": "x"',
    b"\xed\xa0\x80",
)  # fmt: skip


def read(name: str, content: bytes, folder: Path) -> str:
    for file, good in GOOD.items():
        (folder / file).write_bytes(content if file == name else good)
    return prepared(open_source(DataLocation(str(folder))), folder)


ROOM = Room("saved", GOOD, read, (EarlError,), SNIPPETS, [("state.json", b"[" * 1_000_000)], 150)
