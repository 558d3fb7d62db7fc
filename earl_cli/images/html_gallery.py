"""Pages of images: one HTML file that needs no network and nothing beside it.

`page` gives a gallery: a title, notes and entries; an entry is a title, images with captions, and named texts. `render`
gives a page from any package's Jinja template. All text is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from earl_cli.errors import OutputError
from earl_cli.files import atomic_write

if TYPE_CHECKING:
    from jinja2 import Environment

Pixels: TypeAlias = Image.Image | NDArray[np.uint8]

SMALL_SIDE = 256
"""Images up to this side are enlarged with their pixels kept sharp."""
PNG_PIXELS = SMALL_SIDE * SMALL_SIDE
JPEG_QUALITY = 90
SHORT_TEXT = 48
"""Texts up to this length stand beside each other."""
GENERATOR = '<meta name="generator" content="earl">'
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, eq=False)
class ImageFigure:
    """An image, uint8[h, w, 3], uint8[h, w] or Pillow's, with its caption."""

    image: Pixels
    caption: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if isinstance(self.image, Image.Image):
            return self.image.size
        return self.image.shape[1], self.image.shape[0]

    @property
    def is_small(self) -> bool:
        """Whether the page enlarges it without blurring its pixels."""
        return max(self.size) <= SMALL_SIDE

    @property
    def uri(self) -> str:
        """The image as a ``data:`` address."""
        return data_uri(self.image)


@dataclass(frozen=True, eq=False)
class Entry:
    """What belongs together: images side by side, and texts as (name, text)."""

    title: str
    figures: Sequence[ImageFigure]
    texts: Sequence[tuple[str, str]] = ()


def page(title: str, notes: Sequence[str], entries: Iterable[Entry]) -> str:
    """The gallery as HTML: ``notes`` stand under the title, the entries follow in their order."""
    return render(__package__, "gallery", title, notes=notes, entries=entries, short=SHORT_TEXT)


def render(package: str, name: str, title: str, **values: Any) -> str:
    """The page that ``name``.html makes in the ``templates`` of ``package``, with the style and script beside it.

    Templates extend page.html, whose policy allows this style, this script and embedded images only. Every value is
    escaped; control characters, which no page may hold, become the replacement character.
    """
    from markupsafe import Markup

    files = {kind: resources.files(package) / "templates" / f"{name}.{kind}" for kind in ("css", "js")}
    style, script = (file.read_text("utf-8") if file.is_file() else "" for file in files.values())
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    policy += f"; script-src {_hash(script)}" if script else ""
    template = _environment(package).get_template(f"{name}.html")
    content = template.render(title=title, policy=policy, style=Markup(style), script=Markup(script), **values)
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", content.replace("\r\n", "\n").replace("\r", "\n")) + "\n"


@cache
def _environment(package: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__package__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def check_page_name(path: Path) -> None:
    """Raise OutputError if something that is no page of EARL has this name."""
    if path.exists() and not _is_page(path):
        raise OutputError("this is no page that earl made, and stays", where=str(path), hint="choose another name")


def write_page(path: Path, content: str) -> None:
    """Write a page, whole or not at all, also over an older page; OutputError as `check_page_name`."""
    check_page_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        aside.write_text(content, encoding="utf-8")


def data_uri(image: Pixels, png_pixels: int = PNG_PIXELS, *, quality: int = JPEG_QUALITY, subsampling: int = 0) -> str:
    """The image as a ``data:`` address: PNG up to ``png_pixels`` or with transparency, JPEG above."""
    shown = image if isinstance(image, Image.Image) else Image.fromarray(image)
    see_through = shown.has_transparency_data
    shown = shown.convert("RGBA" if see_through else "L" if shown.mode in ("1", "L") else "RGB")
    encoded = io.BytesIO()
    if see_through or shown.width * shown.height <= png_pixels:
        kind = "png"
        shown.save(encoded, "PNG", optimize=True)
    else:
        kind = "jpeg"
        shown.save(encoded, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode("ascii") in file.read(512)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode('utf-8')).digest()).decode('ascii')}'"
