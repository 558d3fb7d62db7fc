"""Token stores: one of their files, and what the commands that read stores make of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fuzzing import Room
from stores import contents, write_store

from earl_cli.data.inspecting import summary, verify
from earl_cli.data.store import examples_of, open_store
from earl_cli.errors import EarlError

with tempfile.TemporaryDirectory() as _folder:
    GOOD = contents(write_store(Path(_folder) / "store").folder)
SNIPPETS = (
    b'"\\ud800"', b"[" * 5000, b"9" * 6000, b"-1", b"null", b"NaN", b"PAR1", b"\xff\xff\xff\xff", b'{"row": 1}',
    b"\n", b'"shards": 99999999999', b'"rows": -1', b'"columns": []', b'"format": 1', b"../", b"\xed\xa0\x80",
)  # fmt: skip


def read(name: str, content: bytes, folder: Path) -> str:
    for file, good in GOOD.items():
        (folder / file).write_bytes(content if file == name else good)
    store = open_store(folder)
    problems = verify(store)
    summary(store)
    for table in store.tables():
        for _pair in examples_of(table):
            pass
    list(store.rejects())
    return "problems" if problems else "fine"


ROOM = Room("stores", GOOD, read, (EarlError,), SNIPPETS, [("manifest.json", b"[" * 1_000_000)], 300)
