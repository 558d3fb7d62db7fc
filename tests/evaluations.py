"""Small benchmarks and an editor for tests of evaluation: images of a few pixels, edits that can be foreseen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from earl_cli.evaluation.editors import EditorOutput, EditTask, OnFraction

TASKS = ("colour", "weather")


def random_image(seed: int, width: int = 24, height: int = 16) -> Image.Image:
    """A smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def inverted(image: Image.Image) -> Image.Image:
    return Image.fromarray(255 - np.asarray(image))


def pairs(folder: Path, count: int = 6, *, targets: bool = True) -> Path:
    """A local benchmark: two samples for each source image, tasks in turn, the target is the inverted image."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        source = random_image(number // 2)
        source.save(folder / f"{number // 2}.png")
        row = {"id": f"s{number}", "source": f"{number // 2}.png", "instruction": f"invert {number}"}
        if targets:
            inverted(source).save(folder / f"{number}-edited.png")
            row["edited"] = f"{number}-edited.png"
        rows.append({**row, "task": TASKS[number % 2]})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder


@dataclass
class Inverting:
    """Inverts an image, with a spot whose place is the seed's; ``stops_after`` so many edits it fails as a whole.

    It makes no image where the instruction holds ``refuses``. ``tasks`` are all that it got.
    """

    name: str = "inverting"
    batch_size: int = 2
    stops_after: float = float("inf")
    refuses: str = "nothing holds this"
    reasoning: str = ""
    tasks: list[EditTask] = field(default_factory=list)

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "kind": "inverting", "fingerprint": "f00"}

    def edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None = None) -> list[EditorOutput]:
        if len(self.tasks) + len(tasks) > self.stops_after:
            raise KeyboardInterrupt
        self.tasks += tasks
        if on_progress:
            on_progress(0.5)
        return [self._drawn(task) for task in tasks]

    def _drawn(self, task: EditTask) -> EditorOutput:
        if self.refuses in task.instruction:
            return EditorOutput(None, problem="it didn't want to")
        pixels = 255 - np.asarray(task.image)
        pixels[task.seed % pixels.shape[0], 0] = task.seed % 251
        return EditorOutput(Image.fromarray(pixels), self.reasoning, seen=(12, 8) if self.reasoning else None)
