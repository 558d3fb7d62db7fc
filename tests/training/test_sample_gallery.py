"""Galleries during training: a page of sampled edits, without any effect on the training."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import options, write_pairs

from earl_cli.app import run
from earl_cli.config.sampling import SamplingParams
from earl_cli.data.batches import ExampleData, load_rows
from earl_cli.models.bundle import EarlModel, load_model
from earl_cli.models.vision import decode, images_of
from earl_cli.training.sft.run import write_gallery


class Page(HTMLParser):
    """The images of a page in their order, and everything it shows as text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[Image.Image] = []
        self.text = ""
        self.outside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        place = given.get("src") or given.get("href") or "#"
        if tag == "img" and place.startswith("data:image/"):
            self.images.append(Image.open(io.BytesIO(base64.b64decode(place.partition(",")[2]))))
        elif not place.startswith("#"):
            self.outside.append(place)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> EarlModel:
    return load_model(str(tiny_model_dir), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("gallery") / "store", 8)


def draw(model: EarlModel, data: ExampleData, count: int, path: Path) -> Page:
    write_gallery(model.language, model.vision, model.layout, data, count, SamplingParams(), path, "my <run>, step 7")
    return Page(path)


def pixels(model: EarlModel, codes: np.ndarray) -> np.ndarray:
    (image,) = images_of(decode(model.vision, torch.from_numpy(codes.astype("int64"))[None]))
    return np.asarray(image)


def test_the_page_is_one_file_with_source_edit_and_target_of_the_first_rows(
    model: EarlModel, store: Path, tmp_path: Path
) -> None:
    rows = load_rows([store], model.layout)
    page = draw(model, ExampleData(rows, np.array([5, 1, 3])), 2, tmp_path / "validation" / "step-000007.html")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["step-000007.html"]
    assert page.outside == []
    assert len(page.images) == 2 * 3
    for (source, generated, target), row in zip((page.images[:3], page.images[3:]), (5, 1), strict=True):
        assert np.array_equal(np.asarray(source), pixels(model, rows.source(row)))
        assert np.array_equal(np.asarray(target), pixels(model, rows.target(row)))
        assert generated.size == target.size
        assert rows.id(row) in page.text
    assert rows.id(3) not in page.text
    assert page.text.count("make it snowy") == 2
    assert "my <run>, step 7" in page.text


def test_the_same_weights_give_the_same_page(model: EarlModel, store: Path, tmp_path: Path) -> None:
    data = ExampleData(load_rows([store], model.layout), np.arange(2))
    draw(model, data, 2, tmp_path / "first.html")
    torch.rand(3)
    draw(model, data, 2, tmp_path / "again.html")
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "again.html").read_bytes()


def test_more_examples_than_rows_are_all_of_them(model: EarlModel, store: Path, tmp_path: Path) -> None:
    data = ExampleData(load_rows([store], model.layout), np.arange(3))
    assert len(draw(model, data, 100, tmp_path / "page.html").images) == 3 * 3


def test_a_model_that_thinks_samples_in_reasoning_mode(model: EarlModel, store: Path, tmp_path: Path) -> None:
    page = draw(model, ExampleData(load_rows([store], model.layout, ["plan"]), np.arange(1)), 1, tmp_path / "page.html")
    assert len(page.images) in (2, 3)  # random weights may give something else than a plan
    assert "thinking" in page.text or "problem" in page.text


@pytest.mark.slow
def test_galleries_change_no_weight_of_the_training(store: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    small = {"max_steps": 4, "batch_size": 2, "accumulation": 1, "warmup_steps": 1, "learning_rate": 3e-3}
    sets = options(**small, validate_every=1, log_every=1, precision="float32")
    command = ["sft", "--model", str(tiny_model_dir), "--data", str(store), "--device", "cpu", *sets]
    held = ["--validation", str(store)]
    ways = {
        "drawn": [*held, *options(gallery_examples=2)],
        "measured": [*held, *options(gallery_examples=0)],
        "neither": [],
    }
    for name, more in ways.items():
        assert run([*command, *more, "-o", str(tmp_path / name)]) == 0
    with_gallery, measured, neither = ((tmp_path / name / "model.safetensors").read_bytes() for name in ways)
    assert with_gallery == measured == neither
    pages = sorted(path.name for path in (tmp_path / "drawn" / "validation").iterdir())
    assert pages == [f"step-{step:06}.html" for step in (1, 2, 3, 4)]
    assert all(len(Page(tmp_path / "drawn" / "validation" / page).images) == 6 for page in pages)
    assert not (tmp_path / "measured" / "validation").exists()
