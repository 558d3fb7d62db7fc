"""The gallery of a report: what every editor made of a sample, beside its source and target, as HTML.

A picture that stands in several places is embedded once. Whatever goes in as text comes out as text.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from earl_cli.evaluation.comparing import benchmark_title, by_benchmark, editor_names, is_floor
from earl_cli.evaluation.results import COLUMNS, EvalRun, ScoredResult
from earl_cli.evaluation.tables import floor_last, heading, number

SIDE = 320
"""No picture on the page is longer than this."""
PNG_PIXELS = 96 * 96
JPEG_QUALITY = 85
HEADLINE = ("vie_all", "reference", "ssim", "l1")
"""The figure that stands for an edit: the first of these that there is."""
EXPLAINED = {"sc": "semantic consistency", "pq": "perceptual quality", "ground_score": "ground score"}
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class GalleryImage:
    """A picture for the page: its ``data:`` address and size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class GalleryEdit:
    """What one editor made of a sample; a picture is None where there is none or its file can't be read."""

    editor: int
    line: ScoredResult
    edited: GalleryImage | None
    overview: GalleryImage | None
    boxes: GalleryImage | None


@dataclass(frozen=True, eq=False)
class GallerySample:
    """One number and seed of a benchmark, and its edits in the order of the benchmark's runs."""

    anchor: str
    benchmark: int
    edits: tuple[GalleryEdit, ...]
    source: GalleryImage | None
    target: GalleryImage | None
    has_target: bool


@dataclass
class ImageStore:
    """The pictures of a page; each is read once, and those that are used twice are embedded once."""

    _read: dict[Path, GalleryImage | None] = field(default_factory=dict)
    _uses: Counter[str] = field(default_factory=Counter)
    _shared: dict[str, tuple[str, GalleryImage]] = field(default_factory=dict)

    def add(self, folder: Path, name: str | None) -> GalleryImage | None:
        """The picture of this name in a results' folder, None if there is none that can be read."""
        if not name:
            return None
        path = folder / name
        if path not in self._read:
            self._read[path] = shrunk(path)
        picture = self._read[path]
        if picture:
            self._uses[picture.uri] += 1
        return picture

    def tag(self, picture: GalleryImage, alt: str) -> str:
        """The picture as HTML, after all were added."""
        size = f'width="{picture.width}" height="{picture.height}"'
        if self._uses[picture.uri] < 2:
            return f'<img class="picture" src="{picture.uri}" {size} alt="{text(alt)}" decoding="async">'
        name, _ = self._shared.setdefault(picture.uri, (f"p{len(self._shared)}", picture))
        box = f'viewBox="0 0 {picture.width} {picture.height}" {size}'
        use = f'<use href="#{name}"></use>'
        return f'<svg class="picture" {box} preserveAspectRatio="none" role="img" aria-label="{text(alt)}">{use}</svg>'

    def shared(self) -> str:
        """What the tags of shared pictures refer to."""
        images = (
            f'<image id="{name}" width="{each.width}" height="{each.height}" href="{each.uri}"></image>'
            for name, each in self._shared.values()
        )
        return f'<svg class="shared" width="0" height="0" aria-hidden="true"><defs>{"".join(images)}</defs></svg>'


def shrunk(path: Path) -> GalleryImage | None:
    """The picture in a file, at most `SIDE` pixels long: PNG if it is small or see-through, else JPEG."""
    try:
        with Image.open(path) as file:
            file.draft("RGB", (2 * SIDE, 2 * SIDE))  # a large JPEG is decoded at a part of its size
            picture = ImageOps.exif_transpose(file)
            see_through = picture.has_transparency_data
            picture = picture.convert("RGBA" if see_through else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    encoded = io.BytesIO()
    small = see_through or picture.width * picture.height <= PNG_PIXELS
    if small:
        picture.save(encoded, "PNG", optimize=True)
    else:
        picture.save(encoded, "JPEG", quality=JPEG_QUALITY, optimize=True)
    content = base64.b64encode(encoded.getvalue()).decode("ascii")
    return GalleryImage(f"data:image/{'png' if small else 'jpeg'};base64,{content}", *picture.size)


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


def samples_of(runs: Sequence[EvalRun], entries_per_run: int, album: ImageStore) -> list[GallerySample]:
    """The samples that a report shows, benchmark by benchmark; their pictures are in the album."""
    samples: list[GallerySample] = []
    slugs: list[str] = []
    for index, (name, some) in enumerate(by_benchmark(runs).items()):
        slug = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-") or "benchmark"
        slugs.append(slug if slug not in slugs else f"{slug}-{index}")
        ordered = floor_last(some)
        lines = [{line.result.key: line for line in run.lines} for run in ordered]
        for key in spread(some, entries_per_run):
            there = [(i, run, of[key]) for i, (run, of) in enumerate(zip(ordered, lines, strict=True)) if key in of]
            edits = tuple(_edit(i, run.folder, line, album) for i, run, line in there)
            source = _first(album, [(run.folder, line.result.original_image) for _, run, line in there])
            target = _first(album, [(run.folder, line.result.gt_edited_image) for _, run, line in there])
            has_target = any(line.result.gt_edited_image for _, _, line in there)
            anchor = f"s-{slugs[-1]}-{key[0]}-{key[1]}"
            samples.append(GallerySample(anchor, index, edits, source, target, has_target))
    return samples


def gallery(runs: Sequence[EvalRun], samples: Sequence[GallerySample], album: ImageStore) -> Iterator[str]:
    """The HTML of each sample."""
    groups = list(by_benchmark(runs).values())
    titles = [benchmark_title(some) for some in groups]
    names = [dict(zip(map(id, some), editor_names(some), strict=True)) for some in groups]
    editors = [[(names[i][id(run)], is_floor(run)) for run in floor_last(some)] for i, some in enumerate(groups)]
    for sample in samples:
        yield _article(sample, titles[sample.benchmark], editors[sample.benchmark], album)


def text(content: str) -> str:
    """Text for HTML; what no page may hold, control characters for instance, becomes the replacement character."""
    lines = content.replace("\r\n", "\n").replace("\r", "\n")
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", lines))


def _edit(editor: int, folder: Path, line: ScoredResult, album: ImageStore) -> GalleryEdit:
    result = line.result
    pictures = [album.add(folder, name) for name in (result.edited_image, result.overview, result.grounding_image)]
    return GalleryEdit(editor, line, *pictures)


def _first(album: ImageStore, names: Sequence[tuple[Path, str | None]]) -> GalleryImage | None:
    for folder, name in names:
        found = album.add(folder, name)
        if found:
            return found
    return None


def _article(sample: GallerySample, benchmark: str, editors: Sequence[tuple[str, bool]], album: ImageStore) -> str:
    result = sample.edits[0].line.result
    failed = any(edit.line.missing or not edit.edited for edit in sample.edits)
    data = {
        "benchmark": str(sample.benchmark),
        "task": result.task,
        "source": result.source,
        "failed": "1" if failed else "",
        "words": f"{result.id} {result.edit_instruction}".lower(),
    }
    facts = [("benchmark", benchmark), ("id", result.id), ("source", result.source), ("task", result.task)]
    facts += [("sample", str(result.number)), ("seed", str(result.seed))]
    facts = [(name, value) for name, value in facts if value]
    instruction = result.edit_instruction.strip() or "(no instruction)"
    lines = [
        f'<article class="sample" id="{sample.anchor}" tabindex="-1" aria-labelledby="{sample.anchor}-title" '
        f"{_data(data)}>",
        f'<h3 id="{sample.anchor}-title" dir="auto"><a href="#{sample.anchor}" title="Link to this sample">'
        f"{text(instruction)}</a></h3>",
        '<p class="facts">' + "".join(f"<span><b>{name}</b> {text(value)}</span>" for name, value in facts) + "</p>",
        '<div class="stage">',
        _figure("source", sample.source, "Source", instruction, album, "The source's picture file can't be read."),
    ]
    lines += [_section(edit, *editors[edit.editor], instruction, album) for edit in sample.edits]
    if sample.has_target:
        problem = "The target's picture file can't be read."
        lines.append(_figure("target", sample.target, "Target", instruction, album, problem))
    return "\n".join([*lines, "</div>", "</article>"])


def _figure(kind: str, picture: GalleryImage | None, caption: str, of: str, album: ImageStore, absent: str) -> str:
    shown = album.tag(picture, f"{caption}: {of}") if picture else f'<p class="absent">{text(absent)}</p>'
    return f'<figure class="{kind}"><div class="frame">{shown}</div><figcaption>{text(caption)}</figcaption></figure>'


def _section(edit: GalleryEdit, name: str, floor: bool, instruction: str, album: ImageStore) -> str:
    line, result = edit.line, edit.line.result
    if result.edited_image is None:
        absent = f"Not drawn: {result.problem.strip() or 'no reason is known'}"
    else:
        absent = f"The edit's picture file can't be read: {result.edited_image}"
    finite = {column: value for column, value in line.scores.items() if math.isfinite(value)}
    data = {
        "editor": name,
        "scores": json.dumps(finite),
        "failed": "1" if line.missing or not edit.edited else "",
    }
    problem = result.problem.strip() if edit.edited else ""
    parts = [
        f'<section class="edit{" floor" if floor else ""}" aria-label="Edit by {text(name)}" {_data(data)}>',
        _figure("edited", edit.edited, f"Edit by {name}", instruction, album, absent),
        f'<div class="figures">{_scores(line)}',
        f'<p class="problem">{text(problem)}</p></div>' if problem else "</div>",
        f'<div class="words">{_words(edit, instruction, album)}</div>',
        "</section>",
    ]
    return "\n".join(parts)


def _words(edit: GalleryEdit, instruction: str, album: ImageStore) -> str:
    """What the judge and the model said, with the picture of the places that the model named."""
    result = edit.line.result
    reasons = [(EXPLAINED.get(key, key), said) for key, said in edit.line.explanations.items() if said.strip()]
    found = _details("Judge’s reasons", reasons) if reasons else ""
    pictures, thoughts = "", result.reasoning.strip()
    if result.grounding_image:
        absent = "The picture with boxes can't be read."
        pictures = _figure("boxes", edit.boxes, "Boxes", instruction, album, absent)
    if edit.overview:
        pictures += _figure("overview", edit.overview, "Overview", instruction, album, "")
    if thoughts or pictures:
        title = "Model’s reasoning" if thoughts or result.grounding_image else "Overview"
        found += _details(title, [("", thoughts)] if thoughts else [], pictures)
    return found


def _scores(line: ScoredResult) -> str:
    names = [name for name in COLUMNS if name in line.scores or name in line.missing]
    if not names:
        return '<p class="unscored">not scored</p>'
    headline = next((name for name in HEADLINE if name in names), names[0])
    names.remove(headline)
    rows = "".join(_score(line, name, "") for name in names)
    reasons: dict[str, list[str]] = {}
    for name, reason in line.missing.items():
        title = COLUMNS[name].title if name in COLUMNS else name
        reasons.setdefault(str(reason) if reason else "no reason is known", []).append(title)
    missing = "".join(
        f'<p class="problem"><b>{text(", ".join(titles))} missing:</b> {text(reason)}</p>'
        for reason, titles in reasons.items()
    )
    return f'<dl class="scores">{_score(line, headline, "headline")}{rows}</dl>{missing}'


def _score(line: ScoredResult, name: str, kind: str) -> str:
    title, arrow, unit = heading(name)
    value = number(name, line.scores[name]) if name in line.scores else "missing"
    absent = "" if name in line.scores else " none"
    shown_unit = f" <small>{unit}</small>" if unit and not absent and (kind or not unit.startswith("of")) else ""
    return f'<div class="{kind}{absent}"><dt>{text(title)} <i>{arrow}</i></dt><dd>{value}{shown_unit}</dd></div>'


def _details(title: str, texts: Sequence[tuple[str, str]], more: str = "") -> str:
    parts = [
        (f"<h4>{text(name)}</h4>" if name else "") + f'<p class="said" dir="auto">{text(said.strip())}</p>'
        for name, said in texts
    ]
    return f"<details><summary>{title}</summary>{more}{''.join(parts)}</details>"


def _data(values: Mapping[str, str]) -> str:
    return " ".join(f'data-{name}="{text(value)}"' for name, value in values.items())
