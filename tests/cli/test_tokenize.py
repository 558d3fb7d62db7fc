"""``earl tokenize`` as a person types it: what is said before anything is done, and what is left out in the end."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from earl_cli.app import run
from earl_cli.data.store import open_store

Earl = Callable[..., tuple[str, str]]


def png(color: str) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (16, 12), color).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture
def earl(tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> Earl:
    """Runs ``earl tokenize`` with a tiny model into ``store``; gives stdout and stderr."""

    def tokenize(*args: str, code: int = 0) -> tuple[str, str]:
        options = ["-o", str(tmp_path / "store"), "--model", str(tiny_model_dir), "--workers", "0"]
        got = run(["tokenize", *args, *options])
        captured = capsys.readouterr()
        assert got == code, captured.err
        return captured.out, captured.err

    return tokenize


def tables(folder: Path, **columns: object) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(pa.table({name: [value] * 2 for name, value in columns.items()}), folder / "0000.parquet")
    return folder


PAIR = {"source": png("red"), "edited": png("grey"), "instruction": "make it grey"}


def test_folders_of_splits(earl: Earl, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "test"):
        tables(data / "default" / split, **{**PAIR, "instruction": split})
    _, err = earl(str(data), code=2)
    assert "there are files of several splits: train, test" in err
    assert "name one with --split (all takes every file), or give its path" in err
    assert not (tmp_path / "store").exists()
    out, _ = earl(str(data), "--split", "train")
    assert "2 examples in" in out
    assert open_store(tmp_path / "store").table()["instruction"].to_pylist() == ["train"] * 2


def test_a_presets_columns_are_compared_with_those_that_are_there(earl: Earl, tmp_path: Path) -> None:
    data = tables(tmp_path / "data", before=png("red"), words="grey")
    _, err = earl(str(data), "--preset", "human-edit", code=3)
    assert "no column 'INPUT_IMG'; no column 'OUTPUT_IMG'; no column 'EDITING_INSTRUCTION'" in err
    assert "--preset human-edit expects INPUT_IMG, OUTPUT_IMG, EDITING_INSTRUCTION" in err
    assert "the columns are before (images), words" in err
    assert "--original-image-key, --edited-image, --edit-instruction" in err


def test_a_presets_split_is_that_of_its_own_place(earl: Earl, tmp_path: Path) -> None:
    data = tables(tmp_path / "copy", source_img=png("red"), target_img=png("grey"), instruction="grey")
    assert "2 examples in" in earl(str(data), "--preset", "magic_brush")[0]


def test_one_bad_sample_is_named_and_the_others_are_there(earl: Earl, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for number, text in enumerate((b"{bad", json.dumps({"instruction": "make it grey"}).encode())):
            for suffix, content in (("source.png", PAIR["source"]), ("edited.png", PAIR["edited"]), ("json", text)):
                assert isinstance(content, bytes)
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    out, err = earl(str(tmp_path / "data.tar"))
    assert "1 examples in" in out
    assert "1 left out" in out
    assert "its .json is not valid JSON" in err
