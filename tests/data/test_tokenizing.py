"""From images to a store: right codes, bad rows left out by name, and the same store after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Emu3VQVAE

from earl_cli.data import tokenizing
from earl_cli.data.batches import ExampleData, collate, load_rows
from earl_cli.data.columns import ExampleColumns
from earl_cli.data.merging import merge
from earl_cli.data.shard_plan import ShardShare
from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.data.store import Store, open_store, shard_path
from earl_cli.data.tokenizing import PassProgress, TokenizeSettings, tokenize
from earl_cli.errors import InputError, OutputError, UsageError
from earl_cli.files import folder_lock
from earl_cli.images.resize import resize_to_area
from earl_cli.models.vision import encode, load_vision, pixels_of
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.tokens.text import load_text_tokenizer
from earl_cli.tokens.vocabulary import Vocabulary

from .conftest import Form, as_json_lines, rows_with_images

SETTINGS = TokenizeSettings(image_area=32 * 32, rows_per_shard=4)
ROWS = 10


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "a folder"
    folder.mkdir()
    rows = []
    for index in range(ROWS):
        size = (40, 30) if index % 2 else (25, 50)
        for name in ("s", "t"):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}{index}.png")
        source = "s0.png" if index == 2 else f"s{index}.png"
        rows.append({"id": f"p{index}", "source": source, "edited": f"t{index}.png", "instruction": "make it snowy"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def tokenized(examples: Path, model: Path, output: Path, settings: TokenizeSettings = SETTINGS) -> Store:
    vision = load_vision(model / "vision")
    return tokenize(open_source(DataLocation(str(examples))), vision, "vq", output, settings, "test")


def layout_of(model: Path) -> SequenceLayout:
    described = json.loads((model / "earl.json").read_text())
    return SequenceLayout(Vocabulary.from_dict(described["vocabulary"]), load_text_tokenizer(model))


def files(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.iterdir() if path.suffix != ".partial"}


def test_codes_are_those_of_the_resized_images(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    store = tokenized(examples, tiny_model_dir, tmp_path / "store")
    vision = load_vision(tiny_model_dir / "vision")
    rows = store.table().to_pylist()
    assert [(row["row"], row["id"]) for row in rows] == [(index, f"p{index}") for index in range(ROWS)]
    for index, row in enumerate(rows):
        image = resize_to_area(Image.open(examples / f"t{index}.png"), SETTINGS.image_area)
        expected = encode(vision, pixels_of([image]))[0]
        assert row["target"] == expected.flatten().tolist()
        assert (row["target_height"], row["target_width"]) == tuple(expected.shape)
    assert rows[0]["source_hash"] == rows[2]["source_hash"] != rows[1]["source_hash"]


def test_the_vision_tokenizer_says_how_many_pixels_a_code_is(
    examples: Path, fine_vision: Emu3VQVAE, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, image_area=36 * 36)
    store = tokenize(
        open_source(DataLocation(str(examples))), fine_vision, "fine", tmp_path / "store", settings, "pairs"
    )
    for index, row in enumerate(store.table().to_pylist()):
        image = resize_to_area(Image.open(examples / f"t{index}.png"), 36 * 36, 4)
        assert (row["target_height"], row["target_width"]) == (image.height // 4, image.width // 4)


def test_every_kind_of_source_gives_the_same_rows(form: Form, tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, columns=ExampleColumns(thoughts=("plan",)))
    rows = rows_with_images(6)
    found = tokenized(form(tmp_path / "this" / "data", rows), tiny_model_dir, tmp_path / "store", settings).table()
    lines = as_json_lines(tmp_path / "lines" / "data", rows)
    expected = tokenized(lines, tiny_model_dir, tmp_path / "expected", settings).table()
    assert found.equals(expected)
    assert dict(found["thoughts"][1].as_py())["plan"] == "look\nat [1, 8, 16, 24], «there»"


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_nothing(workers: int, examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    (examples / "s5.png").unlink()
    alone = tokenized(examples, tiny_model_dir, tmp_path / "alone")
    helped = tokenized(examples, tiny_model_dir, tmp_path / "helped", replace(SETTINGS, workers=workers))
    assert files(alone) == files(helped)


def test_an_interrupted_pass_ends_in_the_same_store(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = tokenized(examples, tiny_model_dir, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(tally: PassProgress) -> None:
        if tally.rows:
            raise StoppedError

    vision = load_vision(tiny_model_dir / "vision")
    with pytest.raises(StoppedError):
        tokenize(open_source(DataLocation(str(examples))), vision, "vq", tmp_path / "torn", SETTINGS, "test", stop)
    assert open_store(tmp_path / "torn").missing == [1, 2]
    (tmp_path / "torn/.shard-000001.parquet.0123.partial").write_bytes(b"half a shard")
    resumed = tokenized(examples, tiny_model_dir, tmp_path / "torn")
    assert files(whole) == files(resumed)
    assert not list(resumed.folder.glob(".*"))


def test_all_shares_together_make_the_store(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = tokenized(examples, tiny_model_dir, tmp_path / "whole")
    for index in (1, 0):
        share = tokenized(examples, tiny_model_dir, tmp_path / "parts", replace(SETTINGS, share=ShardShare(index, 2)))
    assert files(whole) == files(share)


def test_a_share_is_done_by_one_process_at_a_time(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    parts = [replace(SETTINGS, share=ShardShare(index, 2)) for index in range(2)]
    tokenized(examples, tiny_model_dir, tmp_path / "store", parts[0])
    with folder_lock(tmp_path / "store", "earl tokenize", "1/2"):
        for settings in (SETTINGS, parts[0]):
            with pytest.raises(OutputError, match="another earl tokenize is at work here"):
                tokenized(examples, tiny_model_dir, tmp_path / "store", settings)
        store = tokenized(examples, tiny_model_dir, tmp_path / "store", parts[1])
        with pytest.raises(OutputError, match="another earl tokenize is at work here"):
            merge([store], tmp_path / "store", lambda _rows: None)
    assert files(store) == files(tokenized(examples, tiny_model_dir, tmp_path / "alone"))


def test_invalid_images_are_rejects_with_their_reason(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    (examples / "s3.png").write_bytes(b"")
    (examples / "t7.png").unlink()
    heard: list[dict[str, int]] = []
    store = tokenize(
        open_source(DataLocation(str(examples))),
        load_vision(tiny_model_dir / "vision"),
        "vq",
        tmp_path / "store",
        SETTINGS,
        "test",
        lambda tally: heard.append({"rows": tally.rows, **tally.rejected}),
    )
    assert store.table().num_rows == 8
    reasons = {reject.id: (reject.row, reject.kind, reject.reason) for reject in store.rejects()}
    assert set(reasons) == {"p3", "p7"}
    assert reasons["p3"][:2] == (3, "image")
    assert "line 4, source: the file is empty" in reasons["p3"][2]
    assert "t7.png: there is no such file" in reasons["p7"][2]
    assert heard == [
        {"rows": 0},
        {"rows": 4, "image": 1},
        {"rows": 8, "image": 2},
        {"rows": 10, "image": 2},
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_notes_on_images_are_counted(workers: int, examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    Image.new("CMYK", (40, 30)).save(examples / "s4.png", "JPEG")
    for name in ("s5.png", "t5.png"):
        Image.new("L", (40, 30)).save(
            examples / name, "GIF", save_all=True, append_images=[Image.new("L", (40, 30), 255)]
        )
    (examples / "s3.png").write_bytes(b"8BPS" + bytes(40))
    counts: dict[str, int] = {}
    settings = replace(SETTINGS, workers=workers)
    store = tokenize(
        open_source(DataLocation(str(examples))),
        load_vision(tiny_model_dir / "vision"),
        "vq",
        tmp_path / "store",
        settings,
        "test",
        lambda tally: counts.update(tally.notes),
    )
    assert counts == {
        "CMYK without a profile: colours are approximate": 1,
        "several frames: only the first is used": 2,
    }
    (reject,) = store.rejects()
    assert "Photoshop document (PSD), which can't be read (save it as PNG" in reject.reason


def test_too_many_rejects_stop_the_pass_and_finished_shards_stay(
    examples: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (0, 1, 3):
        (examples / f"s{index}.png").write_bytes(b"")
    monkeypatch.setattr(tokenizing, "MIN_ROWS_FOR_RATE", 4)
    with pytest.raises(InputError, match=r"\d of \d rows were left out .* image\), more than the share of 0\.3"):
        tokenized(examples, tiny_model_dir, tmp_path / "store", replace(SETTINGS, max_reject_rate=0.3))
    done = open_store(tmp_path / "store")
    assert done.shards
    assert tokenized(examples, tiny_model_dir, tmp_path / "store").table().num_rows == 6


def test_a_seed_shuffles_and_a_limit_cuts(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    def ids(name: str, seed: int | None, limit: int | None) -> list[str]:
        settings = replace(SETTINGS, seed=seed, limit=limit, rows_per_shard=5)
        return sorted(tokenized(examples, tiny_model_dir, tmp_path / name, settings).table()["id"].to_pylist())

    assert ids("a", 1, 5) != ids("c", 2, 5)
    assert set(ids("a", 1, 5)) < set(ids("b", 1, None))
    assert ids("d", None, 3) == ["p0", "p1", "p2"]


def test_a_store_of_another_seed_limit_or_data_is_refused(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenized(examples, tiny_model_dir, tmp_path / "store")
    for other, message in (
        ({"seed": 1}, "seed None there, 1 now"),
        ({"limit": 5}, "rows 10 there, 5 now"),
        ({"image_area": 4096}, "image_area 1024 there, 4096 now"),
        ({"grids": ((4, 4),)}, "shapes 'floored' there, '4x4' now"),
        ({"columns": ExampleColumns(thoughts=("id",))}, "columns"),
    ):
        with pytest.raises(UsageError, match=message):
            tokenized(examples, tiny_model_dir, tmp_path / "store", replace(SETTINGS, **other))
    (examples / "pairs.jsonl").write_text((examples / "pairs.jsonl").read_text().replace("snowy", "rainy"))
    with pytest.raises(UsageError, match="other data"):
        tokenized(examples, tiny_model_dir, tmp_path / "store")


def test_a_store_of_rounded_sides_can_be_read_but_not_continued(
    examples: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    store = tokenized(examples, tiny_model_dir, tmp_path / "store")
    manifest = tmp_path / "store" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["shapes"]  # as stores were written before
    manifest.write_text(json.dumps(content))
    assert open_store(tmp_path / "store").table().equals(store.table())
    with pytest.raises(UsageError, match="shapes 'rounded' there, 'floored' now"):
        tokenized(examples, tiny_model_dir, tmp_path / "store")


def test_a_model_of_few_grids_gets_codes_in_these(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    store = tokenized(examples, tiny_model_dir, tmp_path / "store", replace(SETTINGS, grids=((2, 5),)))
    table = store.table()
    assert set(zip(table["target_height"].to_pylist(), table["target_width"].to_pylist(), strict=True)) == {(2, 5)}


def test_memory_that_runs_out_halves_the_batch(
    examples: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenized(examples, tiny_model_dir, tmp_path / "whole")
    sizes: list[int] = []

    def small_memory(vision: object, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(vision, pixels)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenizing, "encode", small_memory)
    found = tokenized(examples, tiny_model_dir, tmp_path / "small", replace(SETTINGS, batch_size=4))
    assert found.table().equals(whole.table())
    assert max(sizes) == 4
    assert sizes[-1] <= 2


def test_batches_carry_loss_after_the_instruction_only(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    layout = layout_of(tiny_model_dir)
    rows = load_rows([tokenized(examples, tiny_model_dir, tmp_path / "store").folder], layout)
    data = ExampleData(rows, np.arange(len(rows)))
    batch = collate([data[0], data[1]], layout.vocabulary.pad)
    for row in range(2):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        _, example = data[row]
        assert len(example.ids) == rows.lengths[row]
        assert (labels[: example.loss_from] == -100).all()
        length = len(example.ids)
        assert (labels[example.loss_from : length] == ids[example.loss_from : length]).all()
        assert (ids[length:] == layout.vocabulary.pad).all()
        assert (labels[length:] == -100).all()
        assert int(ids[example.loss_from]) == layout.vocabulary.boi


def test_an_incomplete_store_is_not_trained_on(examples: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    store = tokenized(examples, tiny_model_dir, tmp_path / "store")
    shard_path(store.folder, 1).unlink()
    with pytest.raises(InputError, match="incomplete"):
        load_rows([store.folder], layout_of(tiny_model_dir))
