"""Commands from a cold start: what each takes as it is, and with Python's search for garbage left on while it starts.

Each is a process of its own, on the same few pairs of photos with the embedded model, the two sides in turn.

``python benchmarks/starting.py [--rounds 5]``; ``--smoke`` runs every command once, all of them in one process, and
compares the edit of both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
AS_IT_IS, SEARCHING = "as it is", "searching"
SETTING = {AS_IT_IS: "", SEARCHING: "import gc; gc.disable = gc.freeze = lambda: None\n"}
STORE = ("tokenize", "pairs", "-o", "store")
COMMANDS: Mapping[str, Sequence[str]] = {
    "edit": ("edit", "pairs/0.png", "make it snowy", "--quiet", "--force"),
    "tokenize": ("tokenize", "pairs", "-o", "{new}"),
    "sft --dry-run": ("sft", "--config", "embedded/sft", "--data", "store", "-o", "trained", "--dry-run"),
    "rl --dry-run": ("rl", "--config", "embedded/rl", "--data", "store", "-o", "better", "--dry-run"),
    "eval --limit 1": ("eval", "--limit", "1", "-o", "{new}"),
}


def prepare(folder: Path) -> None:
    """Eight pairs, and a store of them."""
    (folder / "pairs").mkdir()
    with Image.open(ROOT / "docs" / "photos" / "coffee.jpg") as photo:
        small = photo.resize((120, 80))
    rows = []
    for index in range(8):
        small.save(folder / "pairs" / f"{index}.png")
        rows.append({"id": str(index), "source": f"{index}.png", "edited": f"{index}.png", "instruction": "blur it"})
    (folder / "pairs" / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def seconds(folder: Path, side: str, *commands: Sequence[str]) -> float:
    """Of one run of all of these in a process. Raises CalledProcessError if one fails."""
    args = [[part.format(new=f"new-{time.monotonic_ns()}") for part in command] for command in commands]
    program = f"{SETTING[side]}import sys; from earl_cli.app import run; sys.exit(max(map(run, {args!r})))"
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def smoke(folder: Path) -> None:
    """Every command once, and the edit on the other side too, whose image has to be the same."""
    edits = {side: (*COMMANDS["edit"], "--seed", "7", "-o", f"{side}.png") for side in SETTING}
    taken = seconds(folder, AS_IT_IS, STORE, edits[AS_IT_IS], *COMMANDS.values())
    taken += seconds(folder, SEARCHING, edits[SEARCHING])
    if (folder / f"{AS_IT_IS}.png").read_bytes() != (folder / f"{SEARCHING}.png").read_bytes():
        raise SystemExit("error: the edits of both sides differ")
    print(f"{len(COMMANDS)} commands and an edit of both sides: {taken:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    rounds = given.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        if given.smoke:
            smoke(folder)
            return
        seconds(folder, AS_IT_IS, STORE)
        print(f"seconds, median of {rounds} runs\n{'':16}{AS_IT_IS:>10}{SEARCHING:>11}  ratio (range of pairs)")
        for label, command in COMMANDS.items():
            pairs = [(seconds(folder, AS_IT_IS, command), seconds(folder, SEARCHING, command)) for _ in range(rounds)]
            ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratios = [searching / as_it_is for as_it_is, searching in pairs]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{label:16}{ours:10.2f}{theirs:11.2f}  {theirs / ours:.2f} ({spread})", flush=True)


if __name__ == "__main__":
    main()
