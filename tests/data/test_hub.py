"""Data on the Hub, by the real client against a real server: streamed, cached, gated, broken off, tokenized already."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import TOKEN, Hub, Repository

from earl_cli.app import run
from earl_cli.data.image_cells import image_bytes
from earl_cli.data.shard_plan import RowOrder
from earl_cli.data.sources.base import Row, Source, row_count
from earl_cli.data.sources.hub import fetch_published
from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.data.store import open_store
from earl_cli.errors import EarlError, InputError, UsageError

from .conftest import as_json_lines, as_parquet, as_tars, rows_with_images

COLUMNS = ("id", "source", "edited", "instruction", "plan")


def read_all(source: Source) -> list[dict[str, Any]]:
    found = []
    for chunk in RowOrder(source.bounds).chunks(0, row_count(source)):
        for row in source.read(chunk, COLUMNS):
            assert isinstance(row, Row), row
            images = {name: image_bytes(row.values[name], source.base) for name in ("source", "edited")}
            found.append({**row.values, **images})
    return found


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = as_parquet(tmp_path / "tables", rows_with_images())
    (folder / "data").mkdir()
    for file in folder.glob("*.parquet"):
        file.rename(folder / "data" / f"train-0000{file.stem[-1]}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows_with_images(2)), folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_on_the_hub_streamed_or_cached(hub: Hub, tables: Path, streaming: bool) -> None:
    hub.add(Repository("org/pairs", {"main": tables}, kind="dataset"))
    source = open_source(DataLocation("org/pairs", split="train", streaming=streaming))
    assert (source.name, source.base, row_count(source)) == ("org/pairs", None, 11)
    assert read_all(pickle.loads(pickle.dumps(source))) == rows_with_images()


def test_streaming_reads_only_what_it_needs(hub: Hub, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = [{"id": str(i), "source": noise.bytes(300_000), "edited": b"x", "instruction": "go"} for i in range(40)]
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=4)
    hub.add(Repository("org/large", {"main": tmp_path}, kind="dataset"))
    source = open_source(DataLocation("org/large", streaming=True))
    hub.forget()
    (row,) = source.read([17], ("source",))
    assert isinstance(row, Row)
    assert image_bytes(row.values["source"], None) == rows[17]["source"]
    assert hub.sent(file.name) < file.stat().st_size / 3


def test_a_revision_and_patterns_choose_the_files(hub: Hub, tables: Path, tmp_path: Path) -> None:
    other = as_parquet(tmp_path / "other", rows_with_images(3))
    hub.add(Repository("org/pairs", {"main": tables, "v2": other}, kind="dataset"))
    assert row_count(open_source(DataLocation("org/pairs@v2"))) == 3
    assert row_count(open_source(DataLocation("org/pairs", revision="v2"))) == 3
    assert row_count(open_source(DataLocation("org/pairs", data_files=("data/train-00001*",)))) == 4
    first, second = (open_source(DataLocation(f"org/pairs{at}", split="train")).fingerprint for at in ("", "@v2"))
    assert first != second


def test_other_kinds_of_data_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    rows = rows_with_images()
    hub.add(Repository("org/tars", {"main": as_tars(tmp_path / "tars", rows)}, kind="dataset"))
    assert read_all(open_source(DataLocation("org/tars"))) == rows
    lines = as_json_lines(tmp_path / "lines", rows)
    (lines / "pairs.jsonl").write_bytes((lines / "pairs.jsonl").read_bytes().removeprefix(b"\xef\xbb\xbf"))
    hub.add(Repository("org/lines", {"main": lines}, kind="dataset"))
    with pytest.raises(UsageError, match="only Parquet can be streamed"):
        open_source(DataLocation("org/tars", streaming=True))


def test_an_ambiguous_split_is_refused(hub: Hub, tables: Path) -> None:
    hub.add(Repository("org/pairs", {"main": tables}, kind="dataset"))
    with pytest.raises(UsageError, match=r"several splits.*--split is one of train, test"):
        open_source(DataLocation("org/pairs"))
    with pytest.raises(UsageError, match=r"no split 'dev'.*train, test"):
        open_source(DataLocation("org/pairs", split="dev"))


def test_splits_by_other_names_and_all_of_them(hub: Hub, tables: Path, tmp_path: Path) -> None:
    (tables / "data" / "test-00000-of-00001.parquet").rename(tables / "data" / "dev-00000-of-00001.parquet")
    hub.add(Repository("org/pairs", {"main": tables}, kind="dataset"))
    assert row_count(open_source(DataLocation("org/pairs", split="val"))) == 2
    assert row_count(open_source(DataLocation("org/pairs", split="all"))) == 13
    lines = as_json_lines(tmp_path / "lines", rows_with_images(3))
    content = (lines / "pairs.jsonl").read_bytes().removeprefix(b"\xef\xbb\xbf")
    (lines / "pairs.jsonl").unlink()
    for split in ("train", "test"):
        (lines / f"{split}.jsonl").write_bytes(content)
    hub.add(Repository("org/lines", {"main": lines}, kind="dataset"))
    assert row_count(open_source(DataLocation("org/lines", split="all"))) == 6


def test_an_ambiguous_configuration_is_refused(hub: Hub, tables: Path) -> None:
    described = [{"config_name": name, "data_files": f"data/{name}-*"} for name in ("train", "test")]
    (tables / "README.md").write_text(f"---\nconfigs: {json.dumps(described)}\n---\n")
    hub.add(Repository("org/pairs", {"main": tables}, kind="dataset"))
    with pytest.raises(UsageError, match=r"several configurations.*--subset is one of train, test"):
        open_source(DataLocation("org/pairs"))
    with pytest.raises(UsageError, match=r"no configuration 'simple'.*--subset is one of train, test"):
        open_source(DataLocation("org/pairs", subset="simple"))
    assert row_count(open_source(DataLocation("org/pairs", subset="test"))) == 2


def test_rows_that_datasets_cant_read_are_not_a_hub_error(hub: Hub, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "train.jsonl").write_text('{"id": 1, "prompt": "snow"}\n{broken\n')
    hub.add(Repository("org/broken", {"main": lines}, kind="dataset"))
    with pytest.raises(InputError, match=r"`datasets` can't read this data: .+hf download`"):
        open_source(DataLocation("org/broken"))
    assert row_count(open_source(DataLocation(str(lines)))) == 2


def test_errors_of_the_hub(hub: Hub, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(Repository("org/gated", {"main": tables}, kind="dataset", gated=True))
    with pytest.raises(InputError, match=r"this data set is gated.*hf auth login"):
        open_source(DataLocation("org/gated", split="train"))
    with pytest.raises(InputError, match=r"no such public data set"):
        open_source(DataLocation("org/unknown"))
    hub.add(Repository("org/open", {"main": tables}, kind="dataset"))
    with pytest.raises(InputError, match=r"org/open@nowhere: the Hub has no such revision"):
        open_source(DataLocation("org/open@nowhere", split="train"))
    with pytest.raises(InputError, match="no such file or folder, and no Hub id"):
        open_source(DataLocation("org/name/more"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert row_count(open_source(DataLocation("org/gated", split="train"))) == 11


def test_no_hub_at_all(hub: Hub) -> None:
    hub.stop()
    with pytest.raises(InputError, match=r"org/pairs: "):
        open_source(DataLocation("org/pairs"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_truncated_file_stops_the_pass_and_finished_shards_stay(
    hub: Hub, tables: Path, tmp_path: Path, tiny_model_dir: Path, streaming: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(Repository("org/pairs", {"main": tables}, kind="dataset"))
    options = ["--split", "train", "--model", str(tiny_model_dir), "--workers", "0"]
    options += ["--streaming"] if streaming else []
    store = tmp_path / "store"
    source = open_source(DataLocation("org/pairs", split="train", streaming=streaming))
    hub.break_off("org/pairs", "data/train-00001-of-00002.parquet")
    with pytest.raises(EarlError):
        read_all(source)
    assert run(["tokenize", "org/pairs", *options, "-o", str(store)]) != 0
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert not store.exists() or not open_store(store).complete
    hub.heal()
    assert run(["tokenize", "org/pairs", *options, "-o", str(store)]) == 0
    assert open_store(store).table()["id"].to_pylist() == [row["id"] for row in rows_with_images()]


def test_published_tokens_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "omniedit" / "train" / "list"
    folder.mkdir(parents=True)
    (folder / "tokenized_datalist.json").write_text(json.dumps({"prefix": "x/feature", "path_list": []}))
    (tmp_path / "vismin" / "train").mkdir(parents=True)
    (tmp_path / "vismin" / "train" / "x.pth").write_bytes(b"x")
    hub.add(Repository("org/tokens", {"main": tmp_path}, kind="dataset"))
    found = fetch_published("org/tokens", "omniedit", "train")
    assert (found / "list" / "tokenized_datalist.json").is_file()
    assert not hub.sent("x.pth")
    with pytest.raises(InputError, match=r"no folder omniedit/dev.*omniedit/train, vismin/train"):
        fetch_published("org/tokens", "omniedit", "dev")
