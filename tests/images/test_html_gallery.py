"""A page is one file that shows its images without a network, and never takes a text for anything else."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from earl_cli.errors import OutputError
from earl_cli.images.html_gallery import (
    PNG_PIXELS,
    SMALL_SIDE,
    Entry,
    ImageFigure,
    check_page_name,
    data_uri,
    page,
    write_page,
)

VOID = {"meta", "img"}
ATTACK = '<script>alert("x")</script> & <img src=http://evil.example/x.png onerror=y> "\' </style></title>'


class Read(HTMLParser):
    """What a browser would find: tags with their attributes, the text in each, and whether all are closed."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def image_in(uri: str | None) -> Image.Image:
    assert uri is not None
    head, _, content = uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    assert head == f"data:image/{str(image.format).lower()};base64"
    return image


def test_images_captions_and_texts_are_there_in_order() -> None:
    entries = [
        Entry(
            f"edit {i}",
            [ImageFigure(noise(8, 12 + i, 3), f"{name} {i}") for name in ("source", "target")],
            [("id", str(i))],
        )
        for i in range(3)
    ]
    read = Read(page("Pairs", ["a store", "3 of 10"], entries))
    assert not read.open
    assert read.texts["title"] == read.texts["h1"] == ["Pairs"]
    assert read.texts["figcaption"] == [f"{name} {i}" for i in range(3) for name in ("source", "target")]
    assert read.texts["a"] == ["edit 0", "edit 1", "edit 2"]
    assert (read.texts["dt"], read.texts["dd"]) == (["id"] * 3, ["0", "1", "2"])
    for index, image in enumerate(read.all("img")):
        photo = image_in(image["src"])
        assert np.array_equal(np.asarray(photo), noise(8, 12 + index // 2, 3))
        assert (image["width"], image["height"]) == (str(photo.width), str(photo.height))
        assert image["alt"] == f"{read.texts['figcaption'][index]}: edit {index // 2}"


def test_nothing_on_a_page_points_elsewhere_or_runs() -> None:
    content = page(ATTACK, [ATTACK], [Entry(ATTACK, [ImageFigure(noise(4, 4, 3), ATTACK)], [(ATTACK, ATTACK)])])
    read = Read(content)
    assert not read.open
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    names = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    for _, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert str(attributes.get("src", "data:image/")).startswith("data:image/")
        link = str(attributes.get("href", f"#{min(names)}"))
        assert link[0] == "#"
        assert link[1:] in names
    style = read.texts["style"][0]
    assert "url(" not in style
    assert "@import" not in style
    assert read.texts["a"] == read.texts["dt"] == read.texts["dd"] == read.texts["figcaption"] == [ATTACK]
    (policy,) = [meta["content"] for meta in read.all("meta") if "http-equiv" in meta]
    assert str(policy).startswith("default-src 'none'; img-src data:;")


@given(st.text())
def test_every_text_comes_out_as_it_went_in(text: str) -> None:
    read = Read(page("x", [], [Entry("x", [], [("name", text)])]))
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    for shown, given_ in zip(read.texts["dd"][0], lines, strict=True):
        assert shown == given_ or (shown == "\ufffd" and not given_.isprintable())


@pytest.mark.parametrize("text", ["\0", "\x1b[31m", "\ud800", "\x85"])
def test_what_no_page_may_hold_is_replaced(tmp_path: Path, text: str) -> None:
    write_page(tmp_path / "p.html", page(text, [text], [Entry(text, [], [])]))
    assert text not in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_small_images_are_exact_and_large_ones_small() -> None:
    small, large = noise(SMALL_SIDE, SMALL_SIDE, 3), np.full((SMALL_SIDE, SMALL_SIDE + 1, 3), 200, np.uint8)
    assert image_in(data_uri(small)).format == "PNG"
    assert np.array_equal(np.asarray(image_in(data_uri(small))), small)
    encoded = image_in(data_uri(large))
    assert (encoded.format, encoded.size) == ("JPEG", (SMALL_SIDE + 1, SMALL_SIDE))
    assert np.abs(np.asarray(encoded).astype(int) - large).max() <= 2
    assert large.shape[0] * large.shape[1] > PNG_PIXELS


def test_only_small_images_are_enlarged_with_sharp_pixels() -> None:
    metrics = [ImageFigure(Image.new("RGB", size), str(size)) for size in [(96, 64), (256, 256), (257, 8), (900, 600)]]
    read = Read(page("x", [], [Entry("x", metrics)]))
    assert ["small" in str(image.get("class")) for image in read.all("img")] == [True, True, False, False]
    assert "img.small { image-rendering: pixelated; }" in read.texts["style"][0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("side", [8, 300])
def test_every_kind_of_image_is_shown(mode: str, side: int) -> None:
    shown = image_in(data_uri(Image.new(mode, (side, side))))
    assert shown.size == (side, side)
    assert shown.mode in ("L", "RGB", "RGBA")
    if mode in ("LA", "RGBA"):
        assert np.asarray(shown)[..., 3].max() == 0
    assert image_in(data_uri(noise(side, side))).mode == "L"


def test_a_page_is_readable_in_the_dark_on_a_phone_and_by_keyboard() -> None:
    read = Read(page("x", [], [Entry("", [ImageFigure(noise(2, 2, 3), "a")])]))
    metas = {str(meta["name"]): meta["content"] for meta in read.all("meta") if "name" in meta}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"
    style = read.texts["style"][0]
    for rule in ("prefers-color-scheme: dark", ":focus-visible"):
        assert rule in style
    assert read.all("html") == [{"lang": "en"}]
    (article,) = read.all("article")
    assert article["aria-labelledby"] in [heading["id"] for heading in read.all("h2")]
    assert read.texts["a"] == ["(untitled)"]


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new/p.html"
    write_page(path, page("one", [], []))
    write_page(path, page("two", [], []))
    assert "<h1>two</h1>" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["p.html"]
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    for other in (tmp_path / "notes.html", tmp_path):
        with pytest.raises(OutputError, match="no page that earl made"):
            check_page_name(other)
        with pytest.raises(OutputError, match="no page that earl made"):
            write_page(other, page("x", [], []))
    assert (tmp_path / "notes.html").read_text() == "<p>mine</p>"
