"""The public `Editor` on a tiny model: what it takes, what it gives, and that it gives what ``earl edit`` does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from earl_cli.app import run
from earl_cli.errors import EarlError, InputError, ModelError, OutputError, UsageError
from earl_cli.generation.edited_image import EditedImage
from earl_cli.generation.editor import Editor, load_editor
from earl_cli.generation.engine import Completion, Engine, OnCompletion, OnProgress, SamplingParams, SamplingRequest

SNOW = "make it snowy"


@pytest.fixture(scope="module")
def editor(tiny_model_dir: Path) -> Editor:
    return load_editor(tiny_model_dir, device="cpu", engine="transformers")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    noise(0).save(path)
    return path


def noise(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels(edited: EditedImage) -> bytes:
    return edited.image.tobytes()


def test_an_edit_is_that_of_the_command_line_and_saved_the_same(
    editor: Editor, photo: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    line = ["edit", str(photo), SNOW, "-o", f"{tmp_path}/out/", "--seed", "7", "-n", "2", "--temperature", "0.9"]
    assert run([*line, "--model", str(tiny_model_dir), "--device", "cpu", "--quiet"]) == 0
    edits = editor.variants(photo, SNOW, 2, seed=7, sampling={"temperature": 0.9})
    assert [edited.seed for edited in edits] == [7, 8]
    for name, edited in zip(("photo.edited.png", "photo.edited-2.png"), edits, strict=True):
        assert edited.save(tmp_path / "mine.png") == ()
        assert (tmp_path / "mine.png").read_bytes() == (tmp_path / "out" / name).read_bytes()
        with Image.open(tmp_path / "out" / name) as written:
            assert written.convert("RGB").tobytes() == pixels(edited)
    assert pixels(editor.edit(photo, SNOW, seed=8, sampling={"temperature": 0.9})) == pixels(edits[1])
    assert pixels(editor.edit(photo, SNOW, seed=8)) != pixels(edits[1])


def test_an_image_may_come_as_anything(editor: Editor, photo: Path) -> None:
    image = noise(0)
    expected = pixels(editor.edit(photo, SNOW, seed=1))
    with Image.open(photo) as opened, photo.open("rb") as file:
        given: list[Any] = [str(photo), photo.read_bytes(), file, io.BytesIO(photo.read_bytes()), opened, image]
        given += [np.asarray(image), np.asarray(image.convert("RGBA")), np.asarray(image)[:, ::-1][:, ::-1]]
        assert [pixels(each) for each in editor.edit_many(given, SNOW, seed=1)] == [expected] * len(given)
    assert editor.edit(np.asarray(image.convert("L")), SNOW, seed=1).image.mode == "RGB"
    assert image.tobytes() == noise(0).tobytes()


def test_a_pillow_image_on_its_side_is_turned_and_stays_what_it_was(editor: Editor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("photo.jpg", "photo.tif"):
        noise(1).save(tmp_path / name, exif=exif)
        by_path = editor.edit(tmp_path / name, SNOW, seed=1)
        assert by_path.image.size == (40, 60)
        with Image.open(tmp_path / name) as opened:
            assert [pixels(editor.edit(opened, SNOW, seed=1)) for _ in range(2)] == [pixels(by_path)] * 2
        if name == "photo.jpg":  # Pillow turns a TIFF by itself when it loads it
            assert opened.getexif()[0x0112] == 6


def test_transparency_and_the_colour_profile_come_along(editor: Editor, tmp_path: Path) -> None:
    cut_out = noise(2).convert("RGBA")
    cut_out.putalpha(Image.linear_gradient("L").resize(cut_out.size))
    assert editor.edit(cut_out, SNOW, seed=1).image.mode == "RGBA"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise(2).save(tmp_path / "photo.png", icc_profile=profile)
    edited = editor.edit(tmp_path / "photo.png", SNOW, seed=1)
    edited.image.save(tmp_path / "plain.png")
    edited.save(tmp_path / "saved.jpg")
    for name in ("plain.png", "saved.jpg"):
        with Image.open(tmp_path / name) as written:
            assert written.info["icc_profile"] == profile


def test_a_result_says_what_is_known_of_it(editor: Editor, photo: Path) -> None:
    edited = editor.edit(photo, " Please make it SNOWY! ", seed=3)
    assert (edited.source, edited.instruction, edited.seed) == (str(photo), "Please make it SNOWY!", 3)
    assert (edited.understood, edited.problem, edited.error, edited.notes) == (SNOW, None, None, ())
    beyond = editor.edit(noise(0), "add a hat")
    assert (beyond.source, beyond.understood) == ("image", None)
    assert 0 <= beyond.seed < 2**31
    assert any("add a hat" in note for note in beyond.notes)
    assert pixels(editor.edit(noise(0), "add a hat", seed=beyond.seed)) == pixels(beyond)
    assert editor.edit(noise(0), SNOW, seed=3, size="model").image.size == (32, 24)
    assert repr(editor) == f"<Editor {editor.name} on cpu, engine transformers>"
    assert editor.examples == (SNOW, "turn it into night")


def test_many_images_come_in_order_as_each_alone(editor: Editor, tmp_path: Path) -> None:
    images: list[Any] = [noise(number, (60, 40 + 10 * (number % 2))) for number in range(11)]
    images[4] = tmp_path / "nowhere.png"
    texts = [SNOW if number % 3 else "turn it into night" for number in range(11)]
    edits = list(editor.edit_many(images, texts, seed=range(11)))
    assert [edited.seed for edited in edits] == [*range(11)]
    assert [edited.instruction for edited in edits] == texts
    for number in (0, 3, 10):
        assert pixels(edits[number]) == pixels(editor.edit(images[number], texts[number], seed=number))
    assert [number for number, edited in enumerate(edits) if edited.error] == [4]
    assert edits[4].source == str(images[4])
    with pytest.raises(InputError, match="no such file"):
        edits[4].image  # noqa: B018
    with pytest.raises(InputError, match="no such file"):
        edits[4].save(tmp_path / "never.png")
    assert list(editor.edit_many([], SNOW)) == []


def test_images_are_opened_when_their_batch_comes(editor: Editor) -> None:
    taken: list[int] = []

    def images() -> Any:
        for number in range(30):
            taken.append(number)
            yield noise(number, (8, 8))

    edits = editor.edit_many(images(), SNOW, seed=1)
    assert taken == []
    next(edits)
    assert len(taken) <= 2 * editor.batch_size
    edits.close()  # type: ignore[attr-defined]


@dataclass
class Cut:
    """The engine, which ends the completions of one seed too early."""

    engine: Engine
    seed: int

    def generate(
        self,
        requests: Sequence[SamplingRequest],
        sampling: SamplingParams,
        on_progress: OnProgress | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        found = self.engine.generate(requests, sampling, on_progress)
        for number, request in enumerate(requests):
            for index, seed in enumerate(request.seeds):
                whole = found[number][index]
                ids = whole.ids[:5] if seed == self.seed else whole.ids
                assert on_completion is not None
                on_completion(number, index, replace(whole, ids=ids))
        return found


def test_an_incomplete_variant_costs_the_others_nothing(editor: Editor, photo: Path) -> None:
    broken = replace(editor, engine=Cut(editor.engine, 2))
    edits = broken.variants(photo, SNOW, 3, seed=1)
    assert [edited.error is None for edited in edits] == [True, False, True]
    assert pixels(edits[2]) == pixels(editor.edit(photo, SNOW, seed=3))
    with pytest.raises(ModelError, match="generated no image"):
        broken.edit(photo, SNOW, seed=2)


def test_progress_is_reported_and_nothing_is_printed(
    editor: Editor, photo: Path, tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    progress: list[tuple[int, int]] = []
    load_editor(tiny_model_dir, device="cpu").edit(photo, SNOW, on_progress=lambda *counts: progress.append(counts))
    assert progress == sorted(progress)
    assert progress[-1][0] == progress[-1][1] > 10
    assert [bool(edited.error) for edited in editor.edit_many([tiny_model_dir, photo], "add a hat")] == [True, False]
    assert capfd.readouterr() == ("", "")


def test_what_a_callback_raises_is_raised_and_ends_the_work(editor: Editor, photo: Path) -> None:
    class CancelledError(Exception):
        pass

    def stop(done: int, _expected: int) -> None:
        if done > 4:
            raise CancelledError

    with pytest.raises(CancelledError):
        editor.edit(photo, SNOW, on_progress=stop)
    with pytest.raises(CancelledError):
        list(editor.edit_many([photo] * 3, SNOW, on_progress=stop))
    assert editor.edit(photo, SNOW, seed=1).error is None


def test_torch_has_its_threads_back_and_a_small_model_takes_one(
    photo: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        editor = load_editor(tiny_model_dir, device="cpu", engine="transformers")
        editor.edit(photo, SNOW, on_progress=lambda *_: seen.append(torch.get_num_threads()))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_what_the_caller_does_with_torch_changes_nothing_and_is_not_changed(editor: Editor, photo: Path) -> None:
    expected = pixels(editor.edit(photo, SNOW, seed=1))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert pixels(editor.edit(photo, SNOW, seed=1)) == expected
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_may_share_an_editor(editor: Editor) -> None:
    alone = [pixels(editor.edit(noise(number), SNOW, seed=number)) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda number: pixels(editor.edit(noise(number), SNOW, seed=number)), range(4))
    assert list(together) == alone


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda editor: editor.edit("nowhere.png", SNOW), InputError, "no such file"),
        (lambda editor: editor.edit(b"no image", SNOW), InputError, "image: this isn't a"),
        (lambda editor: editor.edit(np.zeros((4, 4, 3)), SNOW), InputError, r"float64\[4, 4, 3\] is no image"),
        (lambda editor: editor.edit(np.zeros((3, 4, 5), np.uint8), SNOW), InputError, r"uint8\[3, 4, 5\]"),
        (lambda editor: editor.edit(np.zeros((0, 4, 3), np.uint8), SNOW), InputError, r"uint8\[0, 4, 3\]"),
        (lambda editor: editor.edit(torch.zeros(4, 4, 3), SNOW), InputError, "a Tensor is no image"),
        (lambda editor: editor.edit(io.StringIO("x"), SNOW), InputError, "open as text"),
        (lambda editor: editor.edit(noise(0), SNOW, max_pixels=None), UsageError, "max_pixels: None"),
        (lambda editor: editor.edit(None, SNOW), InputError, "a NoneType is no image"),
        (lambda editor: editor.edit(noise(0), SNOW, max_pixels=99), InputError, "2,400 pixels"),
        (lambda editor: editor.edit(noise(0), " "), UsageError, "instruction is empty"),
        (lambda editor: editor.edit(noise(0), None), UsageError, "a NoneType is no instruction"),
        (lambda editor: editor.edit(noise(0), "x" * 5000), UsageError, "5,000 characters"),
        (lambda editor: editor.edit(noise(0), SNOW, seed=-1), UsageError, "seed: -1"),
        (lambda editor: editor.edit(noise(0), SNOW, seed=2**31), UsageError, "seed: 2147483648"),
        (lambda editor: editor.edit(noise(0), SNOW, seed=1.5), UsageError, "seed: 1.5"),
        (lambda editor: editor.edit(noise(0), SNOW, size="large"), UsageError, "'large' is no size"),
        (lambda editor: editor.edit(noise(0), SNOW, sampling={"temprature": 1}), UsageError, "'temprature'"),
        (lambda editor: editor.edit(noise(0), SNOW, sampling={"top_p": "1"}), UsageError, "top_p: must be above 0"),
        (lambda editor: editor.edit(noise(0), SNOW, sampling={"top_p": 2}), UsageError, "top_p: must be above 0"),
        (lambda editor: editor.variants(noise(0), SNOW, 0), UsageError, "count: 0"),
        (lambda editor: editor.edit_many("a.png", SNOW), UsageError, "one image, not several"),
        (lambda editor: editor.edit_many(noise(0), SNOW), UsageError, "one image, not several"),
        (lambda editor: editor.edit_many([noise(0)], [SNOW] * 2), UsageError, "1 images"),
        (lambda editor: editor.edit_many([noise(0)] * 2, SNOW, seed=[1]), UsageError, "2 images"),
        (lambda editor: editor.edit_many([noise(0)], [""]), UsageError, "instruction is empty"),
        (lambda _: load_editor(engine="fast"), UsageError, "'fast' is no engine"),  # type: ignore[arg-type]
        (lambda _: load_editor(mode="dream"), UsageError, "'dream' is no mode"),  # type: ignore[arg-type]
        (lambda _: load_editor(image_area=1), UsageError, "image_area: 1"),
        (lambda _: load_editor(sampling={"heat": 1}), UsageError, "'heat'"),
        (lambda _: load_editor(device="tpu"), UsageError, "'tpu' is not a device"),
        (lambda _: load_editor(engine_args={"a": 1}), UsageError, "only the engine vllm"),
        (lambda _: load_editor(Path("nowhere")), ModelError, "no such folder"),
    ],
)
def test_what_can_not_be_used_is_one_error(
    call: Callable[[Editor], object], error: type[EarlError], why: str, editor: Editor
) -> None:
    with pytest.raises(error, match=why) as caught:
        call(editor)
    assert type(caught.value) is error
    assert caught.value.hint or "must be" in caught.value.what or error is InputError


def test_a_file_that_can_not_be_written(editor: Editor, tmp_path: Path) -> None:
    edited = editor.edit(noise(0), SNOW)
    with pytest.raises(UsageError, match=r"\.txt"):
        edited.save(tmp_path / "edit.txt")
    with pytest.raises(OutputError):
        edited.save(tmp_path / "nowhere" / "edit.png")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_or_torn_pillow_image_is_no_image(editor: Editor, photo: Path, tmp_path: Path) -> None:
    opened = Image.open(photo)
    opened.close()
    torn = tmp_path / "torn.png"
    torn.write_bytes(photo.read_bytes()[:2000])
    for image in (opened, Image.open(torn)):
        with pytest.raises(InputError, match="can't be decoded"):
            editor.edit(image, SNOW)


def test_a_with_block_ends_the_engine(editor: Editor, photo: Path) -> None:
    with editor as same:
        assert same is editor
    assert editor.edit(photo, SNOW).image  # only vLLM's engine is gone then
