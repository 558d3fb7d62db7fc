"""``earl edit`` of several images: some are saved while others are sampled, and nothing else is different."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from earl_cli import app
from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import ModelError
from earl_cli.generation import editor, pipeline
from earl_cli.generation.engine import Completion, Engine, OnCompletion, SamplingRequest
from earl_cli.images import image_file

pytestmark = pytest.mark.slow
Deliver = Callable[[int, int], None]
"""Hands a completion over, by the number of its request and of its seed."""


@dataclass
class Watched:
    """The engine of the run, whose completions ``hand_over`` delivers as it likes."""

    engine: Engine
    hand_over: Callable[[Sequence[SamplingRequest], Deliver], None]

    def generate(
        self, requests: Sequence[SamplingRequest], sampling: SamplingParams, _progress: Any, on_completion: OnCompletion
    ) -> list[list[Completion]]:
        found = self.engine.generate(requests, sampling)
        self.hand_over(requests, lambda number, index: on_completion(number, index, found[number][index]))
        return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ten images of noise."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number in range(10):
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"in/{number}.png")
    return tmp_path


@pytest.fixture
def edit(tiny_model_dir: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs ``earl edit in/ --json`` on the tiny model; gives the document."""

    def run(*args: str, what: Sequence[str] = ("in",), output: str = "out", code: int = 0) -> dict[str, Any]:
        options = ["--model", str(tiny_model_dir), "--device", "cpu", "--seed", "1", "--json", *args]
        got = app.run(["edit", *what, "make it snowy", "-o", output, *options])
        out, err = capfd.readouterr()
        assert got == code, err
        assert "Traceback" not in err
        return json.loads(out) if out else {}

    return run


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Sequence[SamplingRequest], Deliver], None]], None]:
    """Lets a function hand over what the run's engine has drawn."""
    load = editor.load_editor

    def watch(hand_over: Callable[[Sequence[SamplingRequest], Deliver], None]) -> None:
        def watched(*args: Any, **options: Any) -> editor.Editor:
            editor = load(*args, **options)
            return replace(editor, engine=Watched(editor.engine, hand_over))

        monkeypatch.setattr(editor, "load_editor", watched)

    return watch


def written(folder: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def appears(path: Path) -> bool:
    """Whether a file is there within a minute."""
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return path.exists()


def test_an_image_is_saved_before_the_next_one_is_sampled(edit: Any, engine: Any) -> None:
    seen: list[bool] = []

    def one_by_one(requests: Sequence[SamplingRequest], deliver: Deliver) -> None:
        for number in range(len(requests)):
            deliver(number, 0)
            seen.append(appears(Path(f"out/{len(seen)}.edited.png")))

    engine(one_by_one)
    edit()
    assert seen == [True] * 10


def test_an_image_is_saved_after_all_of_its_variants_are_sampled(edit: Any, engine: Any) -> None:
    last = False

    def seed_by_seed(requests: Sequence[SamplingRequest], deliver: Deliver) -> None:
        nonlocal last
        for index in reversed(range(3)):
            for number in range(len(requests)):
                last = index == 0
                deliver(number, index)

    def save(*args: Any, **options: Any) -> tuple[str, ...]:
        assert last
        return save_image(*args, **options)

    save_image = image_file.save_image
    engine(seed_by_seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_file, "save_image", save)
        assert len(edit("-n", "3")["results"]) == 30


def test_order_and_bytes_are_those_of_one_image_at_a_time(edit: Any, engine: Any) -> None:
    options = ("-n", "2", "--grid", "--compare")
    alone = [edit(*options, what=[f"in/{number}.png"], output="alone/")["results"] for number in range(10)]

    def backwards(requests: Sequence[SamplingRequest], deliver: Deliver) -> None:
        for number in reversed(range(len(requests))):
            for index in (1, 0):
                deliver(number, index)

    engine(backwards)
    together = edit(*options)["results"]
    assert written("out") == written("alone")
    assert len(written("out")) == 40
    for result in together:
        result["output"] = result["output"].replace("out/", "alone/")
    assert together == [result for results in alone for result in results]


def test_a_name_that_is_a_folders_is_passed_over(edit: Any) -> None:
    for number in (3, 8):
        Path(f"out/{number}.edited.png").mkdir(parents=True)
    outputs = [Path(result["output"]).name for result in edit("--force")["results"]]
    assert outputs == [f"{number}.edited{'-2' * (number in (3, 8))}.png" for number in range(10)]


def test_a_full_disk_costs_only_what_does_not_fit(edit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save = image_file.save_image

    def full(image: Image.Image, path: Path, **options: Any) -> tuple[str, ...]:
        if path.name.startswith("0"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(image, path, **options)

    monkeypatch.setattr(image_file, "save_image", full)
    document = edit("-n", "2", code=7)
    assert [(failed["source"], failed["exit_code"]) for failed in document["failed"]] == [
        ("in/0.png, seed 1", 8),
        ("in/0.png, seed 2", 8),
    ]
    assert document["error"]["what"] == "2 failed, 18 written; failed: in/0.png, seed 1; in/0.png, seed 2"
    assert len(written("out")) == 18


def test_a_grid_that_can_not_be_written_is_named_and_costs_nothing_else(
    edit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = image_file.save_image

    def full(image: Image.Image, path: Path, **options: Any) -> tuple[str, ...]:
        if ".grid" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(image, path, **options)

    monkeypatch.setattr(image_file, "save_image", full)
    document = edit("-n", "2", "--grid", "--compare", what=["in/0.png"], output="out/", code=7)
    assert [(failed["source"], failed["exit_code"]) for failed in document["failed"]] == [("in/0.png, grid", 8)]
    assert sorted(written("out")) == ["0.edited-2.png", "0.edited.compare.png", "0.edited.png"]


def test_a_chosen_name_that_is_taken_is_an_error_and_loses_no_edit(edit: Any, engine: Any) -> None:
    def interfere(requests: Sequence[SamplingRequest], deliver: Deliver) -> None:
        Path("late.png").write_bytes(b"theirs")
        deliver(0, 0)

    engine(interfere)
    document = edit(what=["in/0.png"], output="late.png", code=7)
    assert Path("late.png").read_bytes() == b"theirs"
    assert [result["output"] for result in document["results"]] == ["late-2.png"]
    assert [(failed["where"], "late-2.png" in failed["what"]) for failed in document["failed"]] == [("late.png", True)]


def test_a_prompt_that_fails_is_found_and_nothing_is_sampled_twice(edit: Any, engine: Any) -> None:
    prompts: list[tuple[int, ...]] = []
    delivered: list[tuple[int, ...]] = []

    def third_fails(requests: Sequence[SamplingRequest], deliver: Deliver) -> None:
        prompts.extend(request.prompt for request in requests if request.prompt not in prompts)
        for number, request in enumerate(requests):
            if request.prompt == prompts[2]:
                raise ModelError("the third is at fault")
            deliver(number, 0)
            delivered.append(request.prompt)

    engine(third_fails)
    document = edit(code=7)
    assert [failed["source"] for failed in document["failed"]] == ["in/2.png"]
    assert len(delivered) == len(set(delivered)) == len(document["results"]) == 9


def test_ctrl_c_leaves_whole_files_and_waits_for_no_other(
    edit: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[pipeline.PostprocessThread] = []
    saving: list[Path] = []
    save, thread = image_file.save_image, pipeline.PostprocessThread

    def watched(number: int | None) -> pipeline.PostprocessThread:
        threads.append(thread(number))
        return threads[0]

    def slowly(image: Image.Image, path: Path, **options: Any) -> tuple[str, ...]:
        saving.append(path)
        assert threads[0].stopping.wait(60)
        return save(image, path, **options)

    def interrupted(requests: Sequence[SamplingRequest], deliver: Deliver) -> None:
        for number in range(len(requests)):
            for index in range(2):
                deliver(number, index)
        while not saving:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "PostprocessThread", watched)
    monkeypatch.setattr(image_file, "save_image", slowly)
    engine(interrupted)
    edit("-n", "2", code=130)
    assert [path.name for path in Path("out").iterdir()] == ["0.edited.png"]
    with Image.open("out/0.edited.png") as image:
        image.load()


def test_no_more_than_two_batches_are_open(edit: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, saved = [], []
    open_image, save_image = image_file.open_image, image_file.save_image

    def opening(*args: Any, **options: Any) -> image_file.ImageFile:
        opened.append(1)
        assert len(opened) - len(saved) // 8 <= 2
        return open_image(*args, **options)

    def saving(*args: Any, **options: Any) -> tuple[str, ...]:
        time.sleep(0.01)  # slower than the sampling
        lost = save_image(*args, **options)
        saved.append(1)
        return lost

    monkeypatch.setattr(image_file, "open_image", opening)
    monkeypatch.setattr(image_file, "save_image", saving)
    assert len(edit("-n", "8")["results"]) == 80
