"""A benchmark of your own: declare where its samples are, and evaluate models on it.

python examples/own_benchmark.py earl_cli/evaluation/embedded_set results/ --limit 4

The folder has a pairs.jsonl with one sample a line; only the columns that COLUMNS names are read:
{"id": "1", "source": "1.jpg", "edited": "1-target.jpg", "instruction": "make it snowy", "task": "weather"}
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COLUMNS = '{ image = "source", target = "edited", instruction = "instruction", task = "task", id = "id" }'


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the declaration and the results of each model into the output folder; return the exit code of earl eval."""
    parser = argparse.ArgumentParser(description="Evaluate models on a benchmark of your own.")
    parser.add_argument("samples", type=Path, help="a folder with pairs.jsonl")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", action="append", help="may be repeated; the embedded model by default")
    parser.add_argument("--limit", type=int, help="so many samples at random, always the same ones")
    given = parser.parse_args(arguments)

    given.output.mkdir(parents=True, exist_ok=True)
    declaration = given.output / "benchmark.toml"
    place = json.dumps(str((given.samples / "pairs.jsonl").resolve()))  # a JSON string is a TOML string
    declaration.write_text(
        f'[mine]\ntitle = "My photos"\nsize = "source"\n\n[[mine.parts]]\nplace = {place}\ncolumns = {COLUMNS}\n'
    )
    command = ["eval", "-b", str(declaration), "-o", str(given.output / "results")]
    command += [word for model in given.model or ["embedded"] for word in ("-m", model)]
    command += ["--limit", str(given.limit)] if given.limit else []
    return subprocess.run([sys.executable, "-m", "earl_cli", *command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
