"""``earl tokenize import`` as a person types it: what it says, what it writes, and how it fails."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Hub, Repository

from earl_cli import app
from earl_cli.data.store import open_store

Earl = Callable[..., tuple[str, str]]


@pytest.fixture
def earl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Earl:
    """Runs ``earl tokenize import`` in a new folder; gives stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, code: int = 0) -> tuple[str, str]:
        got = app.run(["tokenize", "import", *args])
        captured = capfd.readouterr()
        assert got == code, captured.err
        assert "Traceback" not in captured.err
        return captured.out, captured.err

    return run


def publish(base: Path, count: int = 3, codes: int = 512, **others: Any) -> None:
    """``count`` good pairs, and others by name: what to save, or the bytes of the file."""
    (base / "feature").mkdir(parents=True)
    (base / "list").mkdir()
    grid = np.arange(16).reshape(4, 4) % codes
    good = {
        f"omni_{number}": {"original_image": grid, "edited_image": grid, "CoT": "", "instruction": f"do {number}"}
        for number in range(count)
    }
    for name, content in (good | others).items():
        path = base / "feature" / f"{name}.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    names = [f"{name}.pth" for name in good | others]
    (base / "list/tokenized_datalist.json").write_text(json.dumps({"prefix": "/gone/feature", "path_list": names}))


def test_it_says_what_came_in_and_what_was_left_out(earl: Earl) -> None:
    publish(Path("omni/train"), bad=b"", listed=[1])
    out, err = earl("omni/train", "-o", "store")
    assert "3 examples in store, 2 left out (1 pickle, 1 fields; see *.rejects.jsonl)" in out
    assert "5 files in omni/train" in err
    assert "warning: left out bad.pth: not a readable file of torch.save" in err
    manifest = open_store(Path("store")).manifest
    assert (manifest.codes, manifest.image_area, manifest.vision_fingerprint) == (32768, 65536, "published")
    assert (manifest.dataset, manifest.rows, dict(manifest.origin)) == ("train", 5, {"imported_from": "omni/train"})
    before = Path("store/shard-000000.parquet").stat().st_mtime_ns
    out, _ = earl("omni/train/list/tokenized_datalist.json", "-o", "store", "--json")
    assert json.loads(out) == {
        "store": "store",
        "pairs": 3,
        "rejected": 2,
        "rejects": {"pickle": 1, "fields": 1},
        "codes": 32768,
        "image_area": 65536,
    }
    assert Path("store/shard-000000.parquet").stat().st_mtime_ns == before


def test_the_codebook_is_a_models_or_as_given(earl: Earl, tiny_model_dir: Path) -> None:
    publish(Path("x"), big={"original_image": np.full((1, 1), 600), "instruction": "do"})
    out, err = earl("x", "-o", "store", "--model", str(tiny_model_dir), "--dataset-name", "mine")
    assert "3 examples in store, 1 left out (1 codes" in out
    assert "big.pth: original_image has the code 600, outside of a codebook of 512" in err
    manifest = open_store(Path("store")).manifest
    assert (manifest.codes, manifest.image_area, manifest.dataset) == (512, 1024, "mine")
    assert manifest.vision_fingerprint not in ("", "published")
    earl("x", "-o", "other", "--codes", "1024", "--image-area", "9216")
    assert (open_store(Path("other")).manifest.codes, open_store(Path("other")).manifest.image_area) == (1024, 9216)
    _, err = earl("x", "-o", "third", "--model", str(tiny_model_dir), "--codes", "1024", code=2)
    assert "--codes and --image-area follow from --model" in err
    _, err = earl("x", "-o", "store", code=2)
    assert "this store was made differently: codes 512 there, 32768 now" in err


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch marker",)


def test_failures_name_the_file_and_run_nothing(earl: Earl) -> None:
    publish(Path("evil"), later={"instruction": Evil()})
    out, err = earl("evil", "-o", "store")
    assert "left out later.pth: this file refers to 'posix.system', which could run code" in err
    assert "1 left out as they could run code: don't use data from this source" in err
    assert "3 examples in store, 1 left out (1 unsafe" in out
    publish(Path("bare"), later=pickle.dumps(Evil()))
    out, _ = earl("bare", "-o", "store-2", "--json")
    assert json.loads(out)["rejects"] == {"pickle": 1}
    assert not Path("marker").exists()
    publish(Path("bad"), 0, a=b"", b=b"PK")
    out, err = earl("bad", "-o", "store-3", "--json", code=3)
    assert "not one of 2 files could be used" in json.loads(out)["error"]["what"]
    assert "left out a.pth" in err
    Path("empty").mkdir()
    _, err = earl("empty", "-o", "store-4", code=3)
    assert "error: empty: no tokenized data: there is no list/tokenized_datalist.json" in err
    _, err = earl("bad", "-o", "store-4", "--split", "train", code=2)
    assert "--subset and --split are for data on the Hub" in err
    earl("nowhere", "-o", "store-4", code=2)
    assert not Path("store-4").exists()


def test_tokenized_data_on_the_hub_is_fetched(earl: Earl, hub: Hub, tmp_path: Path) -> None:
    publish(tmp_path / "repository/omni/train")
    publish(tmp_path / "repository/omni/dev", 1)
    hub.add(Repository("org/name", {"main": tmp_path / "repository"}, kind="dataset"))
    out, _ = earl("org/name", "--subset", "omni", "--split", "train", "-o", "store")
    assert "3 examples in store" in out
    store = open_store(Path("store"))
    assert store.manifest.dataset == "org/name/omni/train"
    assert store.table()["instruction"].to_pylist() == ["do 0", "do 1", "do 2"]
    _, err = earl("org/name", "--subset", "omni", "--split", "test", "-o", "other", code=3)
    assert "there is no folder omni/test" in err
    assert "omni/dev, omni/train" in err
