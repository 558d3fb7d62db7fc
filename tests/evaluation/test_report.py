"""A report is one page that shows everything without a network, and finds what one looks for."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import address, opened
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from playwright.sync_api import expect

from earl_cli.errors import OutputError
from earl_cli.evaluation import statistics
from earl_cli.evaluation.gallery import SIDE, shrunk, spread
from earl_cli.evaluation.report import report
from earl_cli.evaluation.results import EditResult, EvalRun, ScoredResult
from earl_cli.images.html_gallery import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ATTACK = '</script><img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>\u2028</style><b>'
TASKS = ("color", "add", "remove")
SAMPLES = 12
VOID = {"meta", "img", "input", "line", "rect", "path"}


class Read(HTMLParser):
    """The tags of a page with their attributes; all that are opened are closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag and kind in str(found.get("class", ""))]


def run(
    folder: Path,
    editor: str,
    benchmark: str = "edits",
    judge: str = "judge-7b",
    change: Callable[[int, dict[str, Any]], None] | None = None,
) -> EvalRun:
    """Twelve edits of three photos; sample n has a VIEScore of n / 2, and ``change`` may change what a line is of."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(SAMPLES):
        source = Image.linear_gradient("L").resize((160, 120)).rotate(90 * (n % 3))
        photo = ImageOps.colorize(source, (20, 40, 80 * (n % 3)), (240, 220, 180))
        photo.save(folder / f"source{n % 3}.png")
        edited = photo if editor == "copy" else ImageOps.solarize(photo, 40 + 10 * n + len(editor))
        edited.save(folder / f"{editor}{n}.png")
        line: dict[str, Any] = {
            "number": n,
            "seed": 0,
            "id": f"id-{n}",
            "edit_instruction": f"Instruction {n} of all",
            "original_image": f"source{n % 3}.png",
            "edited_image": f"{editor}{n}.png",
            "task": TASKS[n % 3],
            "source": ("photos", "art")[n % 2],
            "picture": str(n // 2),
            "scores": {"vie_all": n / 2 + (0.1 if editor == "b" else 0), "l1": 0.01 * n},
            "missing": {},
            "explanations": {"sc": f"the judge's reason {n}"},
        }
        if change:
            change(n, line)
        metrics = [line.pop(name) for name in ("scores", "missing", "explanations")]
        lines.append(ScoredResult(EditResult(**line), *metrics))
    about = {
        "benchmark": {"name": benchmark, "title": f"The {benchmark}", "fingerprint": "f00d"},
        "versions": {"x": "1"},
    }
    return EvalRun(folder, benchmark, editor, about, {"judge": {"model": judge}, "area": 1024}, tuple(lines))


def odd(n: int, line: dict[str, Any]) -> None:
    """What goes wrong: not drawn, missing, an image that is gone, an instruction that attacks."""
    if n == 1:
        line |= {"edited_image": None, "problem": "the sequence ended early", "scores": {"vie_all": 0.0}}
    if n == 2:
        line |= {"scores": {"l1": 0.02}, "missing": {"vie_all": "the judge gave no numbers"}}
    if n == 3:
        line["edited_image"] = "gone.png"
    if n == 4:
        line |= {"reasoning": "The sky is at [1, 2, 3, 4].", "grounding_image": "source0.png"}


def hostile(n: int, line: dict[str, Any]) -> None:
    if n == 5:
        line |= {"edit_instruction": ATTACK, "explanations": {"sc": ATTACK}, "reasoning": ATTACK, "task": ATTACK}
        line |= {"missing": {"ssim": ATTACK}}


def both(n: int, line: dict[str, Any]) -> None:
    odd(n, line)
    hostile(n, line)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[EvalRun]:
    """Three editors on one benchmark, two on another that two judges scored."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        run(folder / "edits", "copy", change=hostile),
        run(folder / "edits", "a", change=both),
        run(folder / "edits", "b", change=hostile),
        run(folder / "more pairs", "a", "more pairs"),
        run(folder / "more pairs", "b", "more pairs", judge="judge-32b"),
    ]


@pytest.fixture(scope="module")
def html(runs: list[EvalRun]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MIN_IMAGES", 2)  # so that a task of so few samples has an interval to draw
        return report(runs, "Editors & others")


@pytest.fixture(scope="module")
def file(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(path, html)
    return path


def test_tables_charts_and_samples_are_in_the_page_itself(html: str) -> None:
    read = Read(html)
    words = " ".join(" ".join(read.words).split())
    assert len(read.all("article", "sample")) == 2 * SAMPLES
    assert len(read.all("section", "edit")) == 5 * SAMPLES
    for text in (
        "Editors & others",
        "2 benchmarks",
        "3 editors: a, b, copy",
        "the judge's model differs: judge-7b (a), judge-32b (b)",
        "No image: the sequence ended early",
        "VIEScore missing: the judge gave no numbers",
        "The edited image can't be read: gone.png",
        "The sky is at [1, 2, 3, 4].",
        "The edits: all 12 samples",
        "of 10",
    ):
        words = words.replace(" missing:", " missing:")
        assert text in words.replace("</b>", "")
    assert len(read.all("table", "sortable")) >= 2
    assert len([each for each in read.all("div", "chart") if "hidden" not in each]) == 2


def test_nothing_on_the_page_points_elsewhere_or_may_run_but_its_own_script(html: str) -> None:
    read = Read(html)
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert {tag for tag, _ in read.tags}.isdisjoint({"link", "iframe", "object", "base", "b-attack"})
    names = {found["id"] for _, found in read.tags if "id" in found}
    for tag, found in read.tags:
        assert not [name for name in found if name.startswith("on") or name == "style"]
        assert str(found.get("src", "data:image/")).startswith("data:image/")
        if "href" in found:
            target = str(found["href"])
            assert target.startswith("data:image/") if tag == "image" else target[1:] in names
    (policy,) = [str(meta["content"]) for meta in read.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"url\(|@import|fetch|XMLHttp|innerHTML|\beval\b", html.replace("data-", ""))


def page_of(text: str) -> Read:
    """A page that has a text wherever one may come from outside."""
    edit = EditResult(0, 0, text, text, text, text, text, None, text, text, task=text, source=text, problem=text)
    line = ScoredResult(edit, {"l1": 0.5}, {"ssim": text, f"{text}!": text}, {"sc": text, f"{text}!": text})
    about = {"benchmark": {"title": text}, "versions": {text: text}}
    scoring = {"judge": {"model": text}, f"{text}!": text}
    return Read(report([EvalRun(Path("nowhere"), text, f"{text} 1", about, scoring, (line,))], text))


@cache
def harmless_tags() -> list[tuple[str, list[str]]]:
    return [(tag, [*found]) for tag, found in page_of("x").tags]


@given(st.text(max_size=40).filter(str.strip))
@example(ATTACK)
def test_a_text_from_outside_is_shown_and_is_never_a_tag(text: str) -> None:
    read = page_of(text)
    assert [(tag, [*found]) for tag, found in read.tags] == harmless_tags()
    (sample,) = read.all("article", "sample")
    for shown, given_ in zip(str(sample["data-task"]), text.replace("\r\n", "\n").replace("\r", "\n"), strict=True):
        assert shown == given_ or (shown == "\ufffd" and not given_.isprintable())


def test_an_image_that_is_in_several_places_is_embedded_once(html: str) -> None:
    read = Read(html)
    uris = [str(found["src"]) for found in read.all("img")] + [str(found["href"]) for found in read.all("image")]
    assert len(uris) == len(set(uris))
    uses = [str(found["href"]) for found in read.all("use")]
    assert set(uses) == {f"#{found['id']}" for found in read.all("image")}
    assert all(uses.count(name) > 1 for name in uses)


def test_images_are_made_small_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.effect_noise((1200, 600), 90).convert("RGB").save(tmp_path / "big.jpg", exif=exif)
    big = shrunk(tmp_path / "big.jpg")
    assert big is not None
    assert ((big.width, big.height), big.uri[:16]) == ((SIDE // 2, SIDE), "data:image/jpeg;")
    Image.new("RGBA", (400, 200)).save(tmp_path / "clear.png")
    clear = shrunk(tmp_path / "clear.png")
    assert clear is not None
    assert clear.uri.startswith("data:image/png;")
    (tmp_path / "broken.png").write_bytes((tmp_path / "clear.png").read_bytes()[:60])
    assert shrunk(tmp_path / "broken.png") is shrunk(tmp_path / "gone.png") is shrunk(tmp_path) is None


def test_a_large_benchmark_is_shown_in_an_even_spread_that_the_page_tells(runs: list[EvalRun], tmp_path: Path) -> None:
    content = report(runs[:3], "x", entries_per_run=5)
    assert len(Read(content).all("article", "sample")) == 5
    assert "The edits: 5 of 12 samples, spread evenly" in content

    def line(number: int, seed: int) -> ScoredResult:
        task = TASKS[number % 3]
        return ScoredResult(EditResult(number, seed, "x", "x", "a.png", None, task=task))

    several = EvalRun(tmp_path, "x", "x", {}, {}, tuple(line(number, seed) for number in range(300) for seed in (0, 1)))
    keys = spread([several], 60)
    assert len(keys) == 60
    assert keys == sorted(keys)
    assert {seed for _, seed in keys} == {0, 1}
    numbers = sorted({number for number, _ in keys})
    assert [sum(number % 3 == task for number in numbers) for task in range(3)] == [10, 10, 10]
    assert max(b - a for a, b in pairwise(numbers)) <= 30
    assert spread([several], 600) == spread([several], 10_000) == [line.result.key for line in several.lines]
    assert spread([], 10) == []


def test_results_without_scores_or_without_lines_have_a_page(tmp_path: Path) -> None:
    bare = ScoredResult(EditResult(0, 0, "x", "edit", "a.png", None))
    for lines in ((), (bare,)):
        read = Read(report([EvalRun(tmp_path, "editor", "", {}, {}, lines)], "x"))
        assert len(read.all("article", "sample")) == len(lines)
    assert Read(report([], "x")).all("article", "sample") == []


def test_a_report_replaces_a_report_and_nothing_else(html: str, tmp_path: Path) -> None:
    write_page(tmp_path / "r.html", "x")
    with pytest.raises(OutputError):
        write_page(tmp_path / "r.html", html)
    write_page(tmp_path / "new/r.html", html)
    write_page(tmp_path / "new/r.html", html)
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["r.html"]


# From here on a browser opens the page; whatever it logs as an error or asks the network for fails a test.


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    with opened(browser, address(file)) as page:
        yield page


def shown(page: Page) -> list[str]:
    return [str(each.get_attribute("id")) for each in page.query_selector_all(".sample:not([hidden])")]


def settle(page: Page, count: int) -> None:
    """Until the gallery says that so many samples are shown."""
    expect(page.locator("#count")).to_have_text(f"{count} of {2 * SAMPLES} samples")


@pytest.mark.slow
def test_tables_are_sorted_by_click_and_by_keyboard(page: Page) -> None:
    table = page.locator("table.sortable").first
    heading = table.locator("thead th", has_text="VIEScore")
    editors = table.locator("tbody th[scope=row]")
    assert [text.split()[0] for text in editors.all_inner_texts()] == ["a", "b", "copy"]
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    best = [float(text) for text in table.locator("tbody td:nth-child(2) .mean").all_inner_texts()]
    assert best == sorted(best, reverse=True)
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    worst = [float(text) for text in table.locator("tbody td:nth-child(2) .mean").all_inner_texts()]
    assert worst == best[::-1]
    table.locator("thead th", has_text="L1").locator("button").focus()
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "none"


@pytest.mark.slow
def test_one_chart_is_shown_of_the_chosen_benchmark_and_metric(page: Page) -> None:
    charts = page.locator(".chart:visible")
    assert charts.count() == 1
    page.select_option("#chart-benchmark", "more pairs")
    page.select_option("#chart-column", "l1")
    assert charts.count() == 1
    assert "The more pairs: L1, by task" in charts.inner_text()
    assert charts.locator("rect").count() == 2 * len(TASKS)
    assert charts.locator(".whisker").count() > 0


@pytest.mark.slow
def test_filters_keep_what_they_name(page: Page) -> None:
    settle(page, 24)
    page.select_option("#filter-benchmark", "0")
    settle(page, 12)
    page.select_option("#filter-task", "=color")
    settle(page, 4)
    page.select_option("#filter-source", "=art")
    settle(page, 2)
    assert shown(page) == ["s-edits-3-0", "s-edits-9-0"]
    page.click("button[type=reset]")
    settle(page, 24)
    page.fill("#filter-words", "INSTRUCTION 7")
    settle(page, 2)
    page.fill("#filter-words", "id-11")
    settle(page, 2)
    page.fill("#filter-words", "")
    page.fill("#filter-low", "5")
    settle(page, 4)
    page.fill("#filter-high", "5")
    settle(page, 2)
    page.click("button[type=reset]")
    page.check("#filter-failed")
    settle(page, 4)  # not drawn, missing, gone, and the attack's missing figure
    page.check("input[name=editor][value='=b']", force=True)
    settle(page, 1)


@pytest.mark.slow
def test_samples_are_ordered_by_score_and_back(page: Page) -> None:
    first = shown(page)
    page.select_option("#filter-benchmark", "1")
    page.select_option("#filter-order", "down")
    expect(page.locator(".sample:visible").first).to_have_id("s-more-pairs-11-0")
    assert shown(page) == [f"s-more-pairs-{n}-0" for n in reversed(range(12))]
    page.select_option("#filter-order", "up")
    expect(page.locator(".sample:visible").first).to_have_id("s-more-pairs-0-0")
    page.click("button[type=reset]")
    settle(page, 24)
    assert shown(page) == first


@pytest.mark.slow
def test_a_switch_shows_all_editors_side_by_side_or_one(page: Page) -> None:
    sample = page.locator("#s-edits-7-0")
    assert sample.locator(".edit:visible").count() == 3
    places = [each.bounding_box() for each in sample.locator(".frame").all()]
    assert len({round(place["y"]) for place in places if place}) == 1
    page.focus("input[name=editor]:checked")
    page.keyboard.press("ArrowRight")
    assert sample.locator(".edit:visible").count() == 1
    assert sample.locator(".edit:visible figcaption").first.text_content() == "Edit by a"
    page.check("input[name=editor][value='=copy']", force=True)
    assert sample.locator(".edit:visible").get_attribute("data-editor") == "copy"
    settle(page, 12)  # the other benchmark has no copy
    page.evaluate("location.hash = 's-more-pairs-2-0'")
    assert page.locator("#s-more-pairs-2-0 .edit:visible").count() == 2


@pytest.mark.slow
def test_a_slider_lays_the_source_over_the_edit_by_key_and_mouse(page: Page) -> None:
    edit = page.locator("#s-edits-7-0 .edit").first
    slider = edit.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    frame = edit.locator(".edited .frame")
    whole = frame.screenshot()
    assert slider.get_attribute("aria-valuetext") == "100 % source"
    page.keyboard.press("Home")
    assert slider.input_value() == "0"
    assert frame.screenshot() != whole
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1"
    box = frame.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.mouse.up()
    assert abs(int(slider.input_value()) - 50) <= 1
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    assert abs(int(slider.input_value()) - 50) <= 1
    assert page.locator("#s-edits-1-0 .edit").first.locator("input[type=range]").count() == 0  # nothing was drawn


@pytest.mark.slow
def test_a_finger_moves_the_slider_too(browser: Browser, file: Path) -> None:
    with opened(browser, address(file, "s-edits-7-0"), size=(390, 800), touch=True) as page:
        edit = page.locator("#s-edits-7-0 .edit:visible")
        expect(edit).to_have_count(1)
        frame, slider = edit.locator(".edited .frame"), edit.locator("input[type=range]")
        box = frame.bounding_box()
        assert box is not None
        page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + 20)
        expect(slider).to_have_value(re.compile("7[456]"))
        box = slider.bounding_box()
        assert box is not None
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(slider).to_have_value(re.compile("49|50|51"))


@pytest.mark.slow
def test_a_link_opens_its_sample_whatever_the_filters_are(browser: Browser, file: Path) -> None:
    with opened(browser, address(file, "s-more-pairs-10-0")) as page:
        sample = page.locator("#s-more-pairs-10-0")
        expect(page.locator("#s-more-pairs-10-0")).to_be_focused()
        expect(sample.locator("h3")).to_be_in_viewport(ratio=1)
        assert "linked" in str(sample.get_attribute("class"))
        assert sample.locator(".said").first.is_visible()
        page.fill("#filter-words", "id-3")
        settle(page, 2)
        assert shown(page) == ["s-edits-3-0", "s-more-pairs-3-0", "s-more-pairs-10-0"]
        page.evaluate("location.hash = 's-edits-11-0'")
        expect(page.locator("#s-edits-11-0")).to_be_focused()
        assert shown(page) == ["s-edits-3-0", "s-edits-11-0", "s-more-pairs-3-0"]
        page.evaluate("location.hash = 's-edits-99-0'")
        page.locator("#absent").wait_for()
        assert "s-edits-99-0" in page.inner_text("#absent")


@pytest.mark.slow
def test_keys_lead_to_the_next_sample_and_back(page: Page) -> None:
    def focused() -> str:
        return str(page.evaluate("document.activeElement.id"))

    walk = []
    for key in ("j", "j", "ArrowRight", "k", "ArrowLeft"):
        page.keyboard.press(key)
        walk.append(focused())
    assert walk == [f"s-edits-{n}-0" for n in (0, 1, 2, 1, 0)]
    page.focus("#filter-words")
    page.keyboard.type("jk")
    assert page.input_value("#filter-words") == "jk"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 768])
def test_nothing_is_wider_than_the_screen(browser: Browser, file: Path, width: int) -> None:
    with opened(browser, address(file), size=(width, 700), touch=True) as page:
        for editor in page.locator("#editors input").all():
            editor.check(force=True)
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("innerWidth") == width


@pytest.mark.slow
def test_the_page_is_dark_in_the_dark(browser: Browser, file: Path) -> None:
    found = []
    for scheme in ("light", "dark"):
        with opened(browser, address(file), scheme=scheme) as page:  # type: ignore[arg-type]
            found.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert found == ["rgb(247, 246, 243)", "rgb(24, 23, 21)"]


def colors(png: bytes) -> int:
    return len(Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24) or [])


@pytest.mark.slow
def test_without_scripts_tables_and_images_are_there(browser: Browser, file: Path) -> None:
    with opened(browser, address(file), script=False) as page:
        assert page.locator("table.sortable").first.is_visible()
        assert page.locator(".chart:visible").count() == 2
        assert not page.locator("#filters").is_visible()
        sample = page.locator("#s-edits-7-0")
        sample.scroll_into_view_if_needed()
        for image in sample.locator(".image").all():
            box = image.bounding_box()
            assert box is not None
            assert box["height"] > 50
        for figure in ("source", "edited"):
            assert colors(sample.locator(f".{figure} .frame").first.screenshot()) > 20


@pytest.mark.slow
def test_what_an_instruction_says_never_runs(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.locator("#s-edits-5-0").scroll_into_view_if_needed()
    page.select_option("#filter-task", f"={ATTACK}")
    settle(page, 1)
    assert page.evaluate("window.hacked") is None
    assert ATTACK.split("\u2028", maxsplit=1)[0] in page.locator("#s-edits-5-0 h3").inner_text()
    assert page.locator("img[onerror]").count() == 0
