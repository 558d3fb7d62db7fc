"""Results of evaluations: lines, scores, and what is beside them."""

from __future__ import annotations

import json
from pathlib import Path

from fuzzing import Room

from earl_cli.errors import EarlError
from earl_cli.evaluation.results import load_run
from earl_cli.evaluation.statistics import columns_of, summarize
from earl_cli.evaluation.tables import markdown

LINE = {
    "number": 0, "seed": 0, "id": "a", "edit_instruction": "snow", "original_image": "a.png", "edited_image": "b.png",
    "task": "t", "source": "s", "picture": "p", "seconds": 1.5, "VIE_SC": 5.0, "VIE_PQ": 6.0, "VIE_ALL": 5.5,
    "sc_explanation": "fine", "missing": {"lpips": "no"},
}  # fmt: skip
GOOD = {
    "published.jsonl": "".join(json.dumps({**LINE, "number": number}) + "\n" for number in range(4)).encode(),
    "lines/0-of-1.jsonl": "".join(json.dumps({**LINE, "number": number}) + "\n" for number in range(4)).encode(),
    "scored.jsonl": "".join(json.dumps({**LINE, "number": number}) + "\n" for number in range(4)).encode(),
    "run.json": b'{"benchmark": {"name": "b", "samples": 4}, "editor": {"name": "e", "kind": "copy"}}',
    "scoring.json": b'{"judge": {"model": "m"}, "metrics": ["pixels"]}',
}
SNIPPETS = (
    b'"\\ud800"', b"[" * 5000, b"9" * 6000, b"-1", b"null", b"NaN", b"1e999", b"{}", b"[]", b"\n", b'""', b"\0",
    b"\xff", b'"number": "a", ', b'"VIE_SC": 1e308, ', b'"id": {"a": 1}, ', b'"missing": [1], ', b'"seconds": "a", ',
    b"\xed\xa0\x80",
)  # fmt: skip


def read(name: str, content: bytes, folder: Path) -> str:
    for file, good in GOOD.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content if file == name else good)
    run = load_run(folder / name if name == "published.jsonl" else folder, scored=name != "lines/0-of-1.jsonl")
    columns_of([run])
    summarize(run)
    markdown([run])
    return "read"


ROOM = Room("results", GOOD, read, (EarlError,), SNIPPETS, [("run.json", b"[" * 1_000_000)], 200)
