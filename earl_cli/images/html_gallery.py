"""Pages of pictures: one HTML file that needs no network, no script and nothing beside it.

A page is a title, notes and entries; an entry is a title, pictures with captions, and named texts. Whatever goes in as
text comes out as text, whoever wrote it.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from earl_cli.errors import OutputError
from earl_cli.files import whole_file

Pixels: TypeAlias = Image.Image | NDArray[np.uint8]

SMALL_SIDE = 256
"""Pictures up to this side are enlarged with their pixels kept sharp."""
PNG_PIXELS = SMALL_SIDE * SMALL_SIDE
JPEG_QUALITY = 90
LINE = 48
"""Texts up to this length stand beside each other."""
GENERATOR = '<meta name="generator" content="earl">'
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, eq=False)
class ImageFigure:
    """A picture, uint8[h, w, 3], uint8[h, w] or Pillow's, and the words under it."""

    image: Pixels
    caption: str


@dataclass(frozen=True, eq=False)
class Entry:
    """What belongs together: pictures side by side, and texts as (name, text)."""

    title: str
    figures: Sequence[ImageFigure]
    texts: Sequence[tuple[str, str]] = ()


def page(title: str, notes: Sequence[str], entries: Iterable[Entry]) -> str:
    """The page as HTML: ``notes`` stand under the title, the entries follow in their order."""
    lines = [
        *head(title, _POLICY, f"\n{_STYLE}"),
        "<body>",
        "<header>",
        f"<h1>{_text(title)}</h1>",
        *([f"<p>{' <span>·</span> '.join(map(_text, notes))}</p>"] if notes else []),
        "</header>",
        "<main>",
        *(_entry(number, entry) for number, entry in enumerate(entries, start=1)),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def head(title: str, policy: str, style: str) -> list[str]:
    """The lines before a page's body: ``policy`` is its content security policy, ``style`` its CSS."""
    return [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        GENERATOR,
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{_text(title)}</title>",
        f"<style>{style}</style>",
        "</head>",
    ]


def check_page_name(path: Path) -> None:
    """Raise OutputError if something that is no page of ours has this name."""
    if path.exists() and not _is_page(path):
        raise OutputError("this is no page that earl made, and stays", where=str(path), hint="choose another name")


def write_page(path: Path, content: str) -> None:
    """Write a page, whole or not at all, also over an older page; OutputError as `check_page_name`."""
    check_page_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        aside.write_text(content, encoding="utf-8")


def data_uri(image: Pixels) -> str:
    """The picture as a ``data:`` address: PNG up to `PNG_PIXELS` or with transparency, JPEG above."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    see_through = picture.has_transparency_data
    picture = picture.convert("RGBA" if see_through else "L" if picture.mode in ("1", "L") else "RGB")
    encoded = io.BytesIO()
    if see_through or picture.width * picture.height <= PNG_PIXELS:
        kind = "png"
        picture.save(encoded, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode("ascii") in file.read(512)


def _entry(number: int, entry: Entry) -> str:
    name = f"entry-{number}"
    lines = [
        f'<article id="{name}" aria-labelledby="{name}-title">',
        f'<h2 id="{name}-title" dir="auto"><a href="#{name}">{_text(entry.title) or "(untitled)"}</a></h2>',
        '<div class="body">',
    ]
    if entry.figures:
        lines += ['<div class="figures">', *(_figure(entry.title, figure) for figure in entry.figures), "</div>"]
    if entry.texts:
        lines += ["<dl>", *(_named(*text) for text in entry.texts), "</dl>"]
    return "\n".join([*lines, "</div>", "</article>"])


def _figure(title: str, figure: ImageFigure) -> str:
    image = figure.image
    width, height = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
    small = ' class="small"' if max(width, height) <= SMALL_SIDE else ""
    alt = _text(f"{figure.caption}: {title}" if title else figure.caption)
    picture = f'<img{small} src="{data_uri(image)}" width="{width}" height="{height}" alt="{alt}">'
    return f'<figure>{picture}<figcaption dir="auto">{_text(figure.caption)}</figcaption></figure>'


def _named(name: str, text: str) -> str:
    long = ' class="long"' if len(text) > LINE or "\n" in text else ""
    return f'<div{long}><dt>{_text(name)}</dt><dd dir="auto">{_text(text)}</dd></div>'


def _text(text: str) -> str:
    """Text for HTML; what no page may hold, control characters for instance, becomes the replacement character."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", lines))


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f7f6f3; --card: #fffefb; --text: #26241f; --quiet: #6b675e; --line: #e2dfd7; --focus: #2f6f9f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #181715; --card: #211f1c; --text: #e9e5dc; --quiet: #a39d91; --line: #35322d; --focus: #8cc3ea;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: clamp(1rem, 4vw, 3rem); max-width: 74rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%; text-size-adjust: 100%; overflow-wrap: anywhere;
}
header { margin-bottom: clamp(1.25rem, 3vw, 2.25rem); }
h1 {
  margin: 0; font-size: clamp(1.4rem, 1.1rem + 1.5vw, 2rem); font-weight: 600; line-height: 1.2; text-wrap: balance;
}
header p { margin: .6rem 0 0; max-width: 48rem; color: var(--quiet); }
header span { padding: 0 .2em; }
article {
  margin-bottom: 1.25rem; padding: clamp(.9rem, 2.5vw, 1.6rem);
  background: var(--card); border: 1px solid var(--line); border-radius: .75rem; scroll-margin-top: 1rem;
}
article:target { border-color: var(--focus); }
h2 { margin: 0 0 1rem; max-width: 48rem; font-size: 1.15rem; font-weight: 600; line-height: 1.4; }
h2 a { color: inherit; text-decoration: none; white-space: pre-wrap; }
h2 a:hover { text-decoration: underline; text-decoration-thickness: 1px; text-underline-offset: .2em; }
a:focus-visible { outline: 2px solid var(--focus); outline-offset: .25rem; border-radius: .2rem; }
.body { display: flex; flex-wrap: wrap; gap: 1.25rem clamp(1.25rem, 3vw, 2.25rem); }
.figures {
  flex: 3 1 24rem; display: grid; gap: 1rem; align-items: start; align-content: start;
  grid-template-columns: repeat(auto-fill, minmax(min(9rem, 40vw), 1fr));
}
@media (min-width: 60rem) { .figures { grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); } }
.figures:has(figure:nth-child(3)) { flex-basis: 100%; }
figure { margin: 0; }
img {
  display: block; width: 100%; height: auto; max-height: 26rem; border-radius: .35rem;
  object-fit: contain; object-position: left top;
}
img.small { image-rendering: pixelated; }
figcaption { margin-top: .45rem; color: var(--quiet); font-size: .875rem; line-height: 1.4; }
dl {
  flex: 2 1 16rem; display: flex; flex-wrap: wrap; gap: .8rem 1.75rem; align-content: flex-start;
  margin: 0; font-size: .9375rem;
}
.long { flex-basis: 100%; max-width: 48rem; }
dt { color: var(--quiet); font-size: .8125rem; }
dd { margin: 0; white-space: pre-wrap; font-variant-numeric: tabular-nums; }
@media print { body { padding: 0; } article { break-inside: avoid; } }
"""
