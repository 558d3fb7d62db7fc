"""From image to image on a tiny model: grids, sizes, what a variant depends on, and sheets of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Emu3VQVAE

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import InputError, ModelError
from earl_cli.evaluation.editors import EarlEditor, EditTask
from earl_cli.generation.editing import (
    SHEET_SIDE,
    EditJob,
    EditSettings,
    SampledEdit,
    contact_sheet,
    decode_image,
    encode_image,
    render_edit,
    sample_edits,
)
from earl_cli.generation.editor import Editor, load_editor
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.images.color import on_white
from earl_cli.models.bundle import EarlModel, load_model
from earl_cli.tokens.layout import ParsedCompletion

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> EarlModel:
    return load_model(str(tiny_model_dir), device="cpu")


@pytest.fixture(scope="module")
def engine(model: EarlModel) -> TransformersEngine:
    return TransformersEngine(model.language, model.layout)


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (1, 1), (7, 300), (32, 32)])
def test_the_edit_has_the_photos_size_and_its_grid_the_models_area(
    model: EarlModel, engine: TransformersEngine, width: int, height: int
) -> None:
    photo = random_image(width, height)
    ((variant,),) = sample_edits(model, engine, [EditJob(photo, "make it snowy", (1,))], EditSettings(GREEDY))
    assert variant.completion.problem is None
    assert variant.completion.codes is not None
    assert variant.completion.codes.shape == variant.source.shape
    assert 0.5 * model.image_area <= 64 * variant.source.size <= 1.5 * model.image_area
    before = decode_image(model, variant.source)
    assert before.shape == (8 * variant.source.shape[0], 8 * variant.source.shape[1], 3)
    assert before.dtype == np.float32
    assert 0 <= before.min() <= before.max() <= 1
    assert render_edit(model, photo, before, variant, "source").image.size == (width, height)
    assert render_edit(model, photo, before, variant, "model").image.size == before.shape[1::-1]


def test_an_image_for_which_the_model_has_no_room_is_refused_before_it_is_encoded(
    model: EarlModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earl_cli.models.vision.encode", lambda *_: pytest.fail("it took the memory"))
    with pytest.raises(InputError, match=r"200\*300 codes and its edit are more than the model's \d+ positions"):
        encode_image(model, random_image(60, 40), 2400 * 1600)


def test_sizes_that_a_model_never_saw_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for area, warned in [(None, False), (20_000, True)]:
        load_editor("embedded", device="cpu", engine="transformers", image_area=area)
        assert ("embedded was trained on 9 shapes of about 9216 pixels" in caplog.text) == warned


def test_the_vision_tokenizer_says_how_many_pixels_a_code_is(
    model: EarlModel, engine: TransformersEngine, fine_vision: Emu3VQVAE
) -> None:
    fine, photo = replace(model, vision=fine_vision), random_image(72, 72)
    assert encode_image(fine, photo, 36 * 36).shape == (9, 9)
    ((variant,),) = sample_edits(fine, engine, [EditJob(photo, "x", (1,))], EditSettings(GREEDY, image_area=36 * 36))
    before = decode_image(fine, variant.source)
    assert before.shape == (36, 36, 3)
    assert render_edit(fine, photo, before, variant, "model").image.size == (36, 36)
    assert render_edit(fine, photo, before, variant, "source").image.size == photo.size
    loaded = Editor(fine, engine, EditSettings(GREEDY, image_area=36 * 36))
    (generated,) = EarlEditor("fine", None, "model", lambda: loaded).edit([EditTask("a", photo, "x", 1)])
    assert generated.seen == (36, 36)


def test_a_larger_area_gives_more_codes(model: EarlModel) -> None:
    assert encode_image(model, random_image(64, 64), 64 * 64).shape == (8, 8)
    assert encode_image(model, random_image(64, 64)).shape == (4, 4)


def test_a_draft_depends_on_its_photo_and_seed_alone(model: EarlModel, engine: TransformersEngine) -> None:
    first, second = random_image(60, 40, 1), random_image(40, 60, 2)
    jobs = [EditJob(first, "turn it into night", (1, 2)), EditJob(second, "make it snowy", (1, 2, 3))]
    together = sample_edits(model, engine, jobs, EditSettings(SamplingParams()))
    (alone,) = sample_edits(model, engine, [EditJob(second, "make it snowy", (3,))], EditSettings(SamplingParams()))
    assert np.array_equal(together[1][2].completion.codes, alone[0].completion.codes)
    assert not np.array_equal(together[1][1].completion.codes, alone[0].completion.codes)


def test_a_jobs_drafts_are_given_out_as_soon_as_all_are_there(model: EarlModel) -> None:
    engine = TransformersEngine(model.language, model.layout, max_batch_tokens=200)  # some batches
    jobs = [EditJob(random_image(60, 40, number), "make it snowy", (1, 2)) for number in range(4)]
    given: list[tuple[int, list[SampledEdit]]] = []
    counts: list[int] = []
    drafts = sample_edits(
        model,
        engine,
        jobs,
        EditSettings(SamplingParams()),
        lambda *_: counts.append(len(given)),
        lambda *it: given.append(it),
    )
    assert sorted(number for number, _ in given) == [0, 1, 2, 3]
    assert all([each.seed for each in of_job] == [1, 2] for _, of_job in given)
    assert all(one is other for number, of_job in given for one, other in zip(drafts[number], of_job, strict=True))
    assert any(0 < count < 4 for count in counts)


def test_a_model_that_chose_another_grid_is_brought_to_the_photo(model: EarlModel) -> None:
    photo = random_image(50, 30)
    source = encode_image(model, photo)
    answer = ParsedCompletion(np.zeros((3, 3), dtype=np.int64), None, "thoughts", True, None)
    assert render_edit(
        model, photo, decode_image(model, source), SampledEdit(source, 0, answer), "source"
    ).image.size == (50, 30)


def test_a_cut_out_stays_one_and_is_shown_on_white_in_a_sheet(model: EarlModel) -> None:
    cut_out = Image.new("RGBA", (50, 30), (200, 30, 30, 0))
    source = encode_image(model, on_white(cut_out))
    same = SampledEdit(source, 0, ParsedCompletion(source, None, None, True, None))
    edit = render_edit(model, cut_out, decode_image(model, source), same, "source").image
    assert edit.tobytes() == cut_out.tobytes()
    assert render_edit(model, cut_out, decode_image(model, source), same, "model").image.mode == "RGB"
    assert contact_sheet([edit]).getpixel((5, 5)) == (255, 255, 255)


def test_no_image_is_an_error_that_says_why(model: EarlModel) -> None:
    photo = random_image(50, 30)
    source = encode_image(model, photo)
    answer = ParsedCompletion(None, None, None, False, "stops after 3 of 16 codes")
    with pytest.raises(ModelError, match="stops after 3 of 16 codes") as caught:
        render_edit(model, photo, decode_image(model, source), SampledEdit(source, 5, answer), "source")
    assert "5" in (caught.value.hint or "")


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.none() | st.integers(1, 9))
def test_a_sheet_shows_every_tile_unchanged(count: int, width: int, height: int, columns: int | None) -> None:
    colours = [(10 * index, 255 - 10 * index, 7) for index in range(1, count + 1)]
    whole = contact_sheet([Image.new("RGB", (width, height), colour) for colour in colours], columns)
    counts = {colour: number for number, colour in whole.getcolors(maxcolors=1 << 16) or []}
    assert all(counts[colour] == width * height for colour in colours)


def test_a_sheet_of_huge_images_stays_openable() -> None:
    whole = contact_sheet([Image.new("RGB", (9000, 3000))] * 4, columns=4)
    assert max(whole.size) <= SHEET_SIDE
    assert whole.height > 500
