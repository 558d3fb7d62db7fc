"""From pictures to a store: right codes, bad rows left out by name, and the same store after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earl_cli.data.batches import collate, example_data
from earl_cli.data.pairs import Columns, Pair, read_pairs
from earl_cli.data.store import Store, open_store, shard_path
from earl_cli.data.tokenizing import TokenizeSettings, tokenize_pairs
from earl_cli.errors import InputError
from earl_cli.images.area import resize_to_area
from earl_cli.models.vision import encode, load_vision, pixels_of
from earl_cli.tokens.layout import Layout
from earl_cli.tokens.text import load_text_tokenizer
from earl_cli.tokens.vocabulary import Vocabulary

SETTINGS = TokenizeSettings(image_area=32 * 32, rows_per_shard=4)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    rng = np.random.default_rng(0)
    folder = tmp_path / "a folder"
    folder.mkdir()
    rows = []
    for index in range(10):
        size = (40, 30) if index % 2 else (25, 50)
        for name in ("s", "t"):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}{index}.png")
        source = "s0.png" if index == 2 else f"s{index}.png"
        rows.append({"id": f"p{index}", "source": source, "edited": f"t{index}.png", "instruction": "make it snowy"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_pairs(folder, Columns())


def tokenized(pairs: list[Pair], model: Path, output: Path, settings: TokenizeSettings = SETTINGS) -> Store:
    return tokenize_pairs(pairs, load_vision(model / "vision"), "vq", output, settings, "test", lambda _rows: None)


def layout_of(model: Path) -> Layout:
    described = json.loads((model / "earl.json").read_text())
    return Layout(Vocabulary.from_dict(described["vocabulary"]), load_text_tokenizer(model))


def test_the_codes_are_those_of_the_resized_pictures(pairs: list[Pair], tiny_model_dir: Path, tmp_path: Path) -> None:
    store = tokenized(pairs, tiny_model_dir, tmp_path / "store")
    vision = load_vision(tiny_model_dir / "vision")
    rows = store.table().to_pylist()
    assert [row["id"] for row in rows] == [pair.id for pair in pairs]
    for pair, row in zip(pairs, rows, strict=True):
        image = resize_to_area(Image.open(pair.target), SETTINGS.image_area)
        expected = encode(vision, pixels_of([image]))[0]
        assert row["target"] == expected.flatten().tolist()
        assert (row["target_height"], row["target_width"]) == tuple(expected.shape)
    assert rows[0]["source_hash"] == rows[2]["source_hash"] != rows[1]["source_hash"]


def test_an_interrupted_pass_ends_in_the_same_store(pairs: list[Pair], tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = tokenized(pairs, tiny_model_dir, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(_rows: int) -> None:
        raise StoppedError

    vision = load_vision(tiny_model_dir / "vision")
    with pytest.raises(StoppedError):
        tokenize_pairs(pairs, vision, "vq", tmp_path / "torn", SETTINGS, "test", stop)
    assert len(open_store(tmp_path / "torn").shards) == 1
    (tmp_path / "torn/.shard-000001.parquet.1.partial").write_bytes(b"half a shard")
    resumed = tokenized(pairs, tiny_model_dir, tmp_path / "torn")
    for index in range(3):
        assert shard_path(whole.folder, index).read_bytes() == shard_path(resumed.folder, index).read_bytes()


def test_bad_pictures_are_left_out_with_their_reason(pairs: list[Pair], tiny_model_dir: Path, tmp_path: Path) -> None:
    pairs[3].source.write_bytes(b"")
    pairs[7].target.unlink()
    store = tokenized(pairs, tiny_model_dir, tmp_path / "store")
    assert store.table().num_rows == 8
    reasons = {reject["id"]: reject["reason"] for reject in store.rejects()}
    assert set(reasons) == {"p3", "p7"}
    assert "s3.png" in reasons["p3"]
    assert "t7.png" in reasons["p7"]


def test_a_seed_shuffles_and_a_limit_cuts(pairs: list[Pair], tiny_model_dir: Path, tmp_path: Path) -> None:
    def ids(name: str, seed: int | None, limit: int | None) -> list[str]:
        settings = TokenizeSettings(SETTINGS.image_area, seed, limit, 4)
        return [str(i) for i in tokenized(pairs, tiny_model_dir, tmp_path / name, settings).table()["id"].to_pylist()]

    assert ids("a", 1, 5) == ids("b", 1, None)[:5] != ids("c", 2, 5)
    assert ids("d", None, 3) == ["p0", "p1", "p2"]


def test_batches_carry_loss_after_the_instruction_only(pairs: list[Pair], tiny_model_dir: Path, tmp_path: Path) -> None:
    layout = layout_of(tiny_model_dir)
    data = example_data([tokenized(pairs, tiny_model_dir, tmp_path / "store")], layout)
    batch = collate([data[0], data[1]], layout.vocabulary.pad)
    for row in range(2):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        example = data[row]
        assert (labels[: example.loss_from] == -100).all()
        length = len(example.ids)
        assert (labels[example.loss_from : length] == ids[example.loss_from : length]).all()
        assert (ids[length:] == layout.vocabulary.pad).all()
        assert (labels[length:] == -100).all()
        assert int(ids[example.loss_from]) == layout.vocabulary.boi


def test_an_unfinished_store_is_not_trained_on(pairs: list[Pair], tiny_model_dir: Path, tmp_path: Path) -> None:
    store = tokenized(pairs, tiny_model_dir, tmp_path / "store")
    shard_path(store.folder, 1).unlink()
    with pytest.raises(InputError, match="not finished"):
        example_data([open_store(store.folder)], layout_of(tiny_model_dir))
