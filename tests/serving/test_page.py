"""The page in a browser: drop, type, watch, compare, download; on a phone, in the dark, by keyboard, with mistakes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import opened
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving_servers import Gate, Running, png, running, saved

from earl_cli.errors import InputError
from earl_cli.generation.editor import load_editor
from earl_cli.serving.limits import ServerLimits
from earl_cli.serving.service import service_of
from earl_cli.serving.site import Site

pytestmark = pytest.mark.slow
PHOTO = png(1, (300, 200))
DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  return transfer;
}"""


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[Running]:
    editor = load_editor(str(tiny_model_dir), device="cpu", engine="transformers")
    with running(
        service=service_of(editor, ServerLimits(rate=0, upload=1_000_000), None, Site(is_local=True))
    ) as server:
        yield server


@pytest.fixture
def gate() -> Gate:
    return Gate()


def drop(page: Page, content: bytes = PHOTO, name: str = "holiday.png") -> None:
    transfer = page.evaluate_handle(DROP, [name, base64.b64encode(content).decode()])
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def edited(page: Page, prompt: str = "make it snowy") -> None:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    expect(page.locator("#download")).to_be_visible()


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def at(page: Page) -> float:
    return float(page.evaluate("Number(document.querySelector('#frame').style.getPropertyValue('--at'))"))


def test_drop_type_watch_compare_download(server: Running, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, server.address) as page:
        expect(page.locator("#suggestions button")).to_have_text(["make it snowy", "turn it into night"])
        drop(page)
        expect(page.locator("#before")).to_be_visible()
        page.click("summary")
        page.fill("#seed", "7")
        edited(page)
        expect(page.locator("#caption")).to_contain_text("seed 7")
        page.wait_for_timeout(1100)  # until the slider has swept in
        assert at(page) == 50
        page.focus("#slider")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert at(page) == 53
        page.keyboard.press("End")
        assert at(page) == 100
        expect(page.locator("#slider")).to_have_attribute("aria-valuetext", "0 % edited")
        box = page.locator("#frame").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20, steps=4)
        page.mouse.up()
        assert abs(at(page) - 25) < 1
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == "holiday.edited.png"
        download.value.save_as(tmp_path / "got.png")
    answer = server.post(image=PHOTO, seed=7).json()["data"][0]["b64_json"]
    assert (tmp_path / "got.png").read_bytes() == base64.b64decode(answer)


def test_variants_history_and_going_on(server: Running, browser: Browser) -> None:
    with opened(browser, server.address) as page:
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": PHOTO})
        page.click("summary")
        page.fill("#n", "3")
        edited(page)
        thumbs = page.locator("#variants button")
        expect(thumbs).to_have_count(3)
        first = page.locator("#after").get_attribute("src")
        thumbs.nth(2).focus()
        page.keyboard.press("Enter")
        expect(thumbs.nth(2)).to_have_attribute("aria-pressed", "true")
        expect(thumbs.nth(2)).to_be_focused()
        assert page.locator("#after").get_attribute("src") != first
        page.fill("#n", "1")
        page.click("#further")
        expect(page.locator("#caption")).to_contain_text("a.edited.png")
        page.click("#suggestions button:nth-child(2)")
        expect(page.locator("#made button")).to_have_text(["turn it into night", "make it snowy"])
        page.click("#made button:nth-child(2)")
        expect(page.locator("#caption")).to_contain_text("make it snowy")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(server: Running, browser: Browser, scheme: str) -> None:
    with opened(browser, server.address, size=(390, 844), scheme=scheme, touch=True) as page:  # type: ignore[arg-type]
        expect(page.locator("#suggestions button").first).to_be_visible()
        assert fits(page)
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": PHOTO})
        edited(page)
        assert fits(page)
        page.locator("#frame").tap(position={"x": 40, "y": 60})
        assert at(page) < 30
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(247, 246, 243)", "dark": "rgb(24, 23, 21)"}[scheme]


def test_progress_waiting_and_stopping(browser: Browser, gate: Gate) -> None:
    with running(gate) as server, opened(browser, server.address) as page:
        drop(page)
        page.fill("#prompt", "make it snowy")
        page.click("#go")
        expect(page.locator("#state")).to_have_text("editing: 50 %")
        assert page.evaluate("document.querySelector('#progress').value") == 0.5
        page.click("#stop")
        expect(page.locator("#busy")).to_be_hidden()
        expect(page.locator("#error")).to_be_hidden()
        page.wait_for_function("fetch('/health').then((a) => a.json()).then((h) => h.queue.drawing === 0)")
        gate.open.set()
        page.click("#go")
        expect(page.locator("#download")).to_be_visible()


def test_mistakes_are_explained(browser: Browser, gate: Gate) -> None:
    gate.open.set()
    gate.breaks = lambda order: InputError("the model minds this") if "bad" in order.instruction else None
    with running(gate, ServerLimits(rate=0, upload=1 << 20)) as server, opened(browser, server.address) as page:
        error = page.locator("#error")
        page.wait_for_function("document.querySelector('#model').textContent !== ''")
        page.click("#go")
        expect(error).to_have_text("Choose a photo first.")
        drop(page, bytes(2_000_000))
        expect(error).to_contain_text("larger than 1 MB")
        drop(page)
        page.click("#go")
        expect(error).to_have_text("Say what should change.")
        page.fill("#prompt", "bad")
        page.click("#go")
        expect(error).to_have_text("The model minds this.")
        edited(page, "good")
        expect(error).to_be_hidden()


def test_the_page_asks_for_a_key(browser: Browser) -> None:
    with running(key="open sesame") as server, opened(browser, server.address) as page:
        drop(page)
        page.fill("#key", "schön")
        page.fill("#prompt", "make it snowy")
        page.click("#go")
        expect(page.locator("#error")).to_have_text("This key isn't the right one.")
        page.fill("#key", "open sesame")
        edited(page)
        assert page.locator("#key").get_attribute("type") == "password"


def test_what_the_browser_can_not_show_can_be_edited(server: Running, browser: Browser) -> None:
    with opened(browser, server.address) as page:
        content = saved(Image.new("RGB", (40, 40), "teal"), "TIFF")
        page.set_input_files("#file", {"name": "a.tif", "mimeType": "image/tiff", "buffer": content})
        expect(page.locator("#unseen")).to_be_visible()
        edited(page)
        expect(page.locator("#after")).to_be_visible()
        expect(page.locator("#slider")).to_be_hidden()


def test_without_motion_the_slider_is_there_at_once(server: Running, browser: Browser) -> None:
    with opened(browser, server.address) as page:
        page.emulate_media(reduced_motion="reduce")
        drop(page)
        edited(page)
        assert at(page) == 50


def test_without_script_the_page_says_so(server: Running, browser: Browser) -> None:
    with opened(browser, server.address, script=False) as page:
        expect(page.get_by_text("earl edit")).to_be_visible()
