"""The samples of a report's page: every editor's edit of each, beside its source and target.

An image that stands in several places is embedded once.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from earl_cli.evaluation.comparing import benchmark_title, by_benchmark, editor_names, is_floor
from earl_cli.evaluation.results import COLUMNS, EditResult, EvalRun, ScoredResult
from earl_cli.evaluation.tables import floor_last
from earl_cli.images.html_gallery import data_uri

SIDE = 320
"""No image on the page is longer than this."""
PNG_PIXELS = 96 * 96
JPEG_QUALITY = 85
HEADLINE = ("vie_all", "reference", "ssim", "l1")
"""The metric that stands for an edit: the first of these that there is."""
EXPLAINED = {"sc": "semantic consistency", "pq": "perceptual quality", "ground_score": "ground score"}


@dataclass(frozen=True)
class GalleryImage:
    """An image for the page: its ``data:`` address and size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class GalleryEdit:
    """What one editor made of a sample; an image is None where there is none or its file can't be read."""

    editor: str
    floor: bool
    line: ScoredResult
    edited: GalleryImage | None
    overview: GalleryImage | None
    boxes: GalleryImage | None

    @property
    def failed(self) -> bool:
        """Whether there is no image, or a metric is missing."""
        return bool(self.line.missing) or not self.edited

    @property
    def absent(self) -> str:
        """Why there is no image."""
        result = self.line.result
        if result.edited_image is None:
            return f"No image: {result.problem.strip() or 'no reason is known'}"
        return f"The edited image can't be read: {result.edited_image}"

    @property
    def columns(self) -> list[str]:
        """The metrics that there are or that are missing, the headline first."""
        names = [name for name in COLUMNS if name in self.line.scores or name in self.line.missing]
        headline = next((name for name in HEADLINE if name in names), None)
        return sorted(names, key=lambda name: name != headline)

    @property
    def scores(self) -> str:
        """The metrics as JSON, for the page's script."""
        return json.dumps({name: value for name, value in self.line.scores.items() if math.isfinite(value)})

    @property
    def missing(self) -> Mapping[str, Sequence[str]]:
        """Titles of the missing metrics, by the reason."""
        titles: dict[str, list[str]] = {}
        for name, reason in self.line.missing.items():
            title = COLUMNS[name].title if name in COLUMNS else name
            titles.setdefault(str(reason) if reason else "no reason is known", []).append(title)
        return titles

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """The judge's explanations, by what each explains."""
        return [(EXPLAINED.get(key, key), text) for key, text in self.line.explanations.items() if text.strip()]


@dataclass(frozen=True, eq=False)
class GallerySample:
    """One number and seed of a benchmark, and its edits in the order of the benchmark's runs."""

    anchor: str
    benchmark: int
    title: str
    edits: tuple[GalleryEdit, ...]
    source: GalleryImage | None
    target: GalleryImage | None
    has_target: bool

    @property
    def first(self) -> EditResult:
        """The result of the first edit, for what all edits share."""
        return self.edits[0].line.result

    @property
    def instruction(self) -> str:
        return self.first.edit_instruction.strip()

    @property
    def failed(self) -> bool:
        return any(edit.failed for edit in self.edits)

    @property
    def search_text(self) -> str:
        """What the page's search looks through."""
        return f"{self.first.id} {self.first.edit_instruction}".lower()

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Where the sample is from, by name."""
        result = self.first
        named = [("benchmark", self.title), ("id", result.id), ("source", result.source), ("task", result.task)]
        return [*named, ("sample", str(result.number)), ("seed", str(result.seed))]


@dataclass
class ImageStore:
    """The images of a page; each file is read once."""

    _read: dict[Path, GalleryImage | None] = field(default_factory=dict)
    _uses: Counter[GalleryImage] = field(default_factory=Counter)

    def add(self, folder: Path, name: str | None) -> GalleryImage | None:
        """The image of this name in a results' folder, None if there is none that can be read."""
        if not name:
            return None
        path = folder / name
        if path not in self._read:
            self._read[path] = shrunk(path)
        image = self._read[path]
        if image:
            self._uses[image] += 1
        return image

    def shared(self) -> dict[GalleryImage, str]:
        """An id for each image that was added more than once."""
        return {image: f"p{i}" for i, image in enumerate(each for each, uses in self._uses.items() if uses > 1)}


def shrunk(path: Path) -> GalleryImage | None:
    """The image in a file, at most `SIDE` pixels long: PNG if it is small or see-through, else JPEG."""
    try:
        with Image.open(path) as file:
            file.draft("RGB", (2 * SIDE, 2 * SIDE))  # a large JPEG is decoded at a part of its size
            image = ImageOps.exif_transpose(file)
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    return GalleryImage(data_uri(image, PNG_PIXELS, quality=JPEG_QUALITY, subsampling=2), *image.size)


def spread(runs: Sequence[EvalRun], entries: int) -> list[tuple[int, int]]:
    """At most ``entries`` of the (number, seed) that any run has, in order, all seeds of a sample together.

    They are spread evenly over sources and tasks, and within each over the numbers.
    """
    keys = sorted({line.result.key for run in runs for line in run.lines})
    parts = {line.result.number: (line.result.source, line.result.task) for run in runs for line in run.lines}
    numbers = sorted(parts, key=lambda number: (parts[number], number))
    wanted = min(len(numbers), max(1, entries * len(numbers) // len(keys))) if keys else 0
    chosen = {numbers[(2 * i + 1) * len(numbers) // (2 * wanted)] for i in range(wanted)}
    return [key for key in keys if key[0] in chosen]


def samples_of(runs: Sequence[EvalRun], entries_per_run: int, store: ImageStore) -> list[GallerySample]:
    """The samples that a report shows, benchmark by benchmark; their images are in the store."""
    samples: list[GallerySample] = []
    slugs: list[str] = []
    for index, (name, some) in enumerate(by_benchmark(runs).items()):
        slug = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-") or "benchmark"
        slugs.append(slug if slug not in slugs else f"{slug}-{index}")
        names = dict(zip(map(id, some), editor_names(some), strict=True))
        ordered = [(run, {line.result.key: line for line in run.lines}) for run in floor_last(some)]
        for key in spread(some, entries_per_run):
            there = [(run, lines[key]) for run, lines in ordered if key in lines]
            samples.append(
                GallerySample(
                    anchor=f"s-{slugs[-1]}-{key[0]}-{key[1]}",
                    benchmark=index,
                    title=benchmark_title(some),
                    edits=tuple(_edit(names[id(run)], run, line, store) for run, line in there),
                    source=_first(store, [(run.folder, line.result.original_image) for run, line in there]),
                    target=_first(store, [(run.folder, line.result.gt_edited_image) for run, line in there]),
                    has_target=any(line.result.gt_edited_image for _, line in there),
                )
            )
    return samples


def _edit(editor: str, run: EvalRun, line: ScoredResult, store: ImageStore) -> GalleryEdit:
    names = line.result.edited_image, line.result.overview, line.result.grounding_image
    return GalleryEdit(editor, is_floor(run), line, *(store.add(run.folder, name) for name in names))


def _first(store: ImageStore, names: Sequence[tuple[Path, str | None]]) -> GalleryImage | None:
    return next(filter(None, (store.add(folder, name) for folder, name in names)), None)
