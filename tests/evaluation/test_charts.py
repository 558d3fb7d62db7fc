"""Places in a reasoning, marks on an image, and pages of source, edit and target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from earl_cli.evaluation.charts import LABEL_LENGTH, Mark, boxes_and_points, overview, plot_marks

LONG = "make the sky above the old town darker and let it rain on every roof of it " * 80


def plain(width: int, height: int, color: str = "gray") -> Image.Image:
    return Image.new("RGB", (width, height), color)


def changed(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int]:
    """The box around all pixels that differ: left, top, right, bottom, the last two not in it."""
    rows, columns = np.nonzero((np.asarray(before) != np.asarray(after)).any(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("The cat [10, 20, 110, 220] sits", [("cat", (10, 20, 110, 220))]),
        ("a dot at (3, 4.5) or [7,8]", [("dot", (3, 4.5)), ("dot", (7, 8))]),
        ("The bounding box of the red car is located at: [1.5, 2, 3, 4].", [("red car", (1.5, 2, 3, 4))]),
        ("Cups: [[1, 2, 3, 4], [5, 6, 7, 8]]", [("Cups", (1, 2, 3, 4)), ("Cups", (5, 6, 7, 8))]),
        ("cup (1, 2); **spoon**: [3, 4]", [("cup", (1, 2)), ("spoon", (3, 4))]),
        ('{"bbox_2d": [1, 2, 3, 4]}', [("", (1, 2, 3, 4))]),
        ("one two three four five six [1, 2]", [("three four five six", (1, 2))]),
        ("the cat [1, 2] is here, the cat [1, 2] stays", [("cat", (1, 2))]),
        ("猫 [1, 2, 3, 4]", [("猫", (1, 2, 3, 4))]),
        ("the cat (1, 2, 3, 4), the dog (5.5,6, 7, 8)", [("cat", (1, 2, 3, 4)), ("dog", (5.5, 6, 7, 8))]),
        (
            "cat (1, 2, 3, 4) and [1, 2, 3, 4] and [(1, 2), (3, 4)]",
            [("cat", p) for p in [(1, 2, 3, 4), (1, 2), (3, 4)]],
        ),
        ("[1, 2, 3] (1, 2, 3) (1, 2, 3, 4] [a, b] (1) [1.2]", []),
        ("", []),
    ],
)
def test_places_are_found_with_the_words_before_them(text: str, marks: list[tuple[str, tuple[float, ...]]]) -> None:
    assert boxes_and_points(text) == [Mark(label, place) for label, place in marks]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[30, 40, 10, 20]", (10, 20, 30, 40)),
        ("[-5, -6, 10, 20]", (0, 0, 10, 20)),
        ("[-5, 3, -1, 20]", None),
        ("[5, 5, 5, 5]", None),
        ("[5, 5, 9, 5]", None),
        ("(-1, 5)", None),
        (f"[0, 0, {'9' * 400}, 5]", None),
    ],
)
def test_nonsense_is_put_right_or_dropped(text: str, place: tuple[float, ...] | None) -> None:
    assert [mark.place for mark in boxes_and_points(text)] == ([] if place is None else [place])


@given(st.text(st.sampled_from("0123456789.,-[]() catsé\n") | st.characters(), max_size=200))
@example("[" * 5000 + "1," * 5000)
def test_no_text_breaks_the_search(text: str) -> None:
    for mark in boxes_and_points(text):
        assert len(mark.label) <= LABEL_LENGTH
        assert min(mark.place) >= 0
        assert len(mark.place) in (2, 4)


def test_marks_are_scaled_from_the_judged_size_to_the_images() -> None:
    image = plain(800, 400)
    rendered = plot_marks(image, [Mark("", (100, 100, 150, 150))], (200, 200))
    left, top, right, bottom = changed(image, rendered)
    assert (left, right, bottom) == (400, 600, 300)
    assert top < 200  # the number stands above the box
    assert changed(image.crop((0, 200, 800, 400)), rendered.crop((0, 200, 800, 400))) == (400, 0, 600, 100)
    assert rendered.getpixel((500, 250)) == image.getpixel((500, 250))  # what is inside stays to be seen


@pytest.mark.parametrize("color", ["black", "white", "#ff5252", "#808080"])
def test_an_outline_stands_out_from_any_image(color: str) -> None:
    image = plain(300, 300, color)
    rendered = np.asarray(plot_marks(image, [Mark("", (100, 100, 200, 200))], (300, 300)).convert("L"), dtype=int)
    side = rendered[150, 95:110]
    assert side.max() - side.min() > 200


@pytest.mark.parametrize(
    "place",
    [
        (0, 0),
        (299, 199),
        (0, 199),
        (0, 0, 300, 200),
        (0, 0, 1, 1),
        (298, 198, 299, 199),
        (290, 190, 900, 900),
        (9, 9, 9.2, 99),
    ],
    ids=str,
)
def test_marks_at_the_edge_stay_visible(place: tuple[float, ...]) -> None:
    image = plain(300, 200)
    mark = plot_marks(image, [Mark("here", place)], (300, 200))
    difference = (np.asarray(mark) != np.asarray(image)).any(-1)
    assert difference.sum() > 100
    near = difference[max(0, int(place[1]) - 12) : int(place[1]) + 12, max(0, int(place[0]) - 12) : int(place[0]) + 12]
    assert near.sum() > 20


def test_a_mark_beyond_the_image_is_not_rendered_and_keeps_its_number() -> None:
    image = plain(300, 200)
    beyond, inside = Mark("", (400, 300, 500, 400)), Mark("", (50, 50, 100, 100))
    assert plot_marks(image, [beyond, Mark("", (300, 10))], (300, 200)) == image
    assert plot_marks(image, [beyond, inside], (300, 200)) != plot_marks(image, [inside], (300, 200))


def test_the_image_itself_stays_as_it_is() -> None:
    image, copy = plain(50, 50), plain(50, 50)
    assert plot_marks(image, [Mark("x", (10, 10))], (50, 50)) != image
    assert image == copy
    assert plot_marks(plain(50, 50).convert("RGBA"), [], (50, 50)).mode == "RGB"


def test_labels_do_not_hide_each_other() -> None:
    image = plain(400, 400)
    same = [Mark("", (100 + n, 100, 300, 300)) for n in range(4)]
    counts = {color: count for count, color in plot_marks(image, same, (400, 400)).getcolors(1000) or []}
    fills = [color for color, count in counts.items() if count > 150 and max(color) - min(color) > 100]
    assert len(fills) == 4  # the last box hides the lines of the others, and no tag


place = st.floats(0, 2000)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.lists(st.tuples(place, place, place, place) | st.tuples(place, place), max_size=4),
    st.text(max_size=20),
)
def test_any_marks_on_any_image(size: tuple[int, int], places: list[tuple[float, ...]], label: str) -> None:
    assert plot_marks(plain(*size), [Mark(label, each) for each in places], (500, 700)).size == size


def test_a_page_has_all_images_at_one_scale() -> None:
    red, green, blue = plain(300, 200, "#ff0000"), plain(150, 100, "#00ff00"), plain(300, 200, "#0000ff")
    page = overview(red, green, blue, "make it green")
    counts = {color: count for count, color in page.getcolors(100_000) or []}
    areas = [counts[color] for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert areas == [60_000] * 3  # the edit is shown in the source's size
    rows = [np.nonzero((np.asarray(page) == color).all(-1))[0].min() for color in ((255, 0, 0), (0, 255, 0))]
    assert rows[0] == rows[1]
    assert overview(red, green, None, "make it green").width < page.width


def test_an_edit_that_is_not_there_is_an_empty_frame() -> None:
    red = plain(300, 200, "#ff0000")
    assert overview(red, None, None, "x").size == overview(red, plain(300, 200), None, "x").size


def test_long_texts_end_and_short_ones_take_less_room() -> None:
    source = plain(300, 200)
    short, long, longer = (overview(source, source, None, text) for text in ("rain", LONG, LONG * 3))
    assert short.height < long.height == longer.height < short.height + 150
    assert np.array_equal(np.asarray(long), np.asarray(longer))
    with_reasoning = overview(source, source, None, "rain", LONG)
    assert short.height < with_reasoning.height < short.height + 200
    assert overview(source, source, None, "").height < short.height


@pytest.mark.parametrize(
    "text",
    [
        "雪を降らせて" * 200,
        "сделай снег",
        "أضف ثلجًا",
        "x" * 50_000,
        "a\ud800b\x00\u200fc",
        "🎉👩‍👩‍👧",
        "\n\n \t",
        "é" * 3000,
        "﷽" * 500,
    ],
    ids=lambda text: ascii(text[:6]),
)
def test_any_text_can_stand_on_a_page(text: str) -> None:
    source = plain(64, 64)
    page = overview(source, source, None, text, text)
    assert page.mode == "RGB"
    assert page.height < 1000


def test_accents_are_left_out() -> None:
    source = plain(64, 64)
    assert overview(source, None, None, "Füge Café – größer") == overview(source, None, None, "Fuge Cafe - grosser")


@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000), (2000, 1500)], ids=str)
def test_images_of_any_size(size: tuple[int, int]) -> None:
    page = overview(plain(*size), plain(90, 400), plain(*size[::-1]), "make it snowy", LONG)
    assert max(page.size) < 2000
    assert overview(plain(*size), None, None, "").height < 700
    assert overview(plain(*size).convert("L"), plain(*size).convert("RGBA"), None, "x").mode == "RGB"
