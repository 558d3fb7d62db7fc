"""The Hub of the tests, asked by the client libraries themselves: what they get, and how little of it they fetch."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import TOKEN, Hub, Repository
from huggingface_hub import HfApi, HfFileSystem, constants, errors, hf_hub_download, snapshot_download
from huggingface_hub.utils import get_session
from PIL import Image

GROUPS, GROUP_BYTES = 8, 200_000


@pytest.fixture
def model(hub: Hub, tmp_path: Path) -> Repository:
    """A model with two revisions and a sub-folder."""
    folders = {"main": tmp_path / "model", "ckpt_001999": tmp_path / "checkpoint"}
    for name, folder in folders.items():
        (folder / "vision").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"revision": name}))
        (folder / "model.safetensors").write_bytes(random.Random(name).randbytes(300_001))
        (folder / "vision" / "config.json").write_text("{}")
    return hub.add(Repository("org/model", folders))


@pytest.fixture
def pairs(hub: Hub, tmp_path: Path) -> Repository:
    """Photo pairs as the Hub keeps them: parquet files by split, pictures within, the features in their metadata."""
    folder = tmp_path / "pairs"
    (folder / "data").mkdir(parents=True)
    features = datasets.Features(
        {"id": datasets.Value("string"), "source": datasets.Image(), "edited": datasets.Image()}
    )
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        rows = [{"id": f"{name} {n}", "source": picture("red"), "edited": picture("blue")} for n in range(3)]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(folder / "data" / f"{name}.parquet")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\nPairs of pictures.\n")
    return hub.add(Repository("org/pairs", {"main": folder}, kind="dataset"))


def picture(color: str) -> dict[str, object]:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, format="png")
    return {"bytes": out.getvalue(), "path": None}


def large_table(path: Path) -> None:
    """A parquet file of `GROUPS` row groups of `GROUP_BYTES` each that don't compress."""
    noise = random.Random(0)
    schema = pa.schema([("group", pa.int64()), ("noise", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for group in range(GROUPS):
            writer.write_table(pa.table({"group": [group], "noise": [noise.randbytes(GROUP_BYTES)]}, schema=schema))


def test_a_snapshot_is_the_folder(hub: Hub, model: Repository) -> None:
    found = Path(snapshot_download("org/model"))
    assert found.name == model.sha()
    assert found.is_relative_to(hub.home)
    served = model.revisions["main"]
    files = sorted(path.relative_to(served) for path in served.rglob("*") if path.is_file())
    assert sorted(path.relative_to(found) for path in found.rglob("*") if path.is_file()) == files
    assert all((found / file).read_bytes() == (served / file).read_bytes() for file in files)
    hub.forget()
    assert Path(snapshot_download("org/model")) == found
    assert hub.sent("model.safetensors") == 0


def test_revisions_are_different_commits(hub: Hub, model: Repository) -> None:
    api = HfApi()
    for name in (None, "main", "ckpt_001999"):
        file = Path(hf_hub_download("org/model", "config.json", revision=name))
        assert json.loads(file.read_text()) == {"revision": name or "main"}
        assert api.model_info("org/model", revision=name).sha == file.parent.name == model.sha(name or "main")
    by_commit = hf_hub_download("org/model", "config.json", revision=model.sha("ckpt_001999"))
    assert Path(by_commit).parent.name == model.sha("ckpt_001999") != model.sha()
    assert len(model.sha()) == 40


def test_what_is_listed(hub: Hub, model: Repository) -> None:
    api = HfApi()
    size = model.revisions["main"].joinpath("model.safetensors").stat().st_size
    assert api.list_repo_files("org/model") == ["config.json", "model.safetensors", "vision/config.json"]
    entries = {entry.path: entry for entry in api.list_repo_tree("org/model")}
    assert sorted(entries) == ["config.json", "model.safetensors", "vision"]
    assert entries["model.safetensors"].size == entries["model.safetensors"].lfs.size == size
    (info,) = api.get_paths_info("org/model", ["model.safetensors", "nothing.json"], expand=True)
    assert (info.size, info.xet_hash, info.last_commit.title) == (size, None, "add files")
    assert [entry.path for entry in api.list_repo_tree("org/model", "vision")] == ["vision/config.json"]
    with pytest.raises(errors.EntryNotFoundError):
        list(api.list_repo_tree("org/model", "nothing"))


def test_what_is_not_there(hub: Hub, model: Repository) -> None:
    hub.add(Repository("org/private", model.revisions, private=True))
    with pytest.raises(errors.EntryNotFoundError, match="Entry Not Found"):
        hf_hub_download("org/model", "nothing.json")
    outside = f"{hub.endpoint}/org/model/resolve/main/%2e%2e/model/config.json"
    assert get_session().get(outside).headers["x-error-code"] == "EntryNotFound"
    with pytest.raises(errors.RevisionNotFoundError, match="Invalid rev id: nothing"):
        snapshot_download("org/model", revision="nothing")
    for unknown in ("org/nothing", "org/private"):
        with pytest.raises(errors.RepositoryNotFoundError, match="Repository Not Found") as stranger:
            snapshot_download(unknown)
        assert stranger.value.response.status_code == 401
    with pytest.raises(errors.RepositoryNotFoundError):
        snapshot_download("org/model", repo_type="dataset")
    assert Path(snapshot_download("org/private", token=TOKEN)).is_dir()


def test_gated_files_need_the_token(hub: Hub, model: Repository) -> None:
    hub.add(Repository("org/gated", model.revisions, gated=True))
    assert HfApi().model_info("org/gated").gated == "auto"
    for token, status, message in ((False, 401, "Please log in"), ("hf_other", 403, "not in the authorized list")):
        with pytest.raises(errors.GatedRepoError, match=message) as refused:
            hf_hub_download("org/gated", "config.json", token=token)
        assert refused.value.response.status_code == status
    assert Path(snapshot_download("org/gated", token=TOKEN)).is_dir()


def test_a_connection_that_breaks_off(hub: Hub, model: Repository) -> None:
    hub.break_off("org/model", "model.safetensors", times=2)
    content = model.revisions["main"].joinpath("model.safetensors").read_bytes()
    assert Path(hf_hub_download("org/model", "model.safetensors")).read_bytes() == content
    downloads = [request for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert [request.sent for request in downloads] == [150_000, 150_000, 300_001]
    hub.break_off("org/model", "config.json")
    with pytest.raises(errors.HTTPError, match="without sending complete message body"):
        hf_hub_download("org/model", "config.json")
    hub.heal()
    assert Path(hf_hub_download("org/model", "config.json")).is_file()


def test_ranges(hub: Hub, model: Repository) -> None:
    content = model.revisions["main"].joinpath("model.safetensors").read_bytes()
    address = f"{hub.endpoint}/org/model/resolve/main/model.safetensors"
    for asked, expected in (("0-9", content[:10]), ("300000-", content[-1:]), ("-5", content[-5:])):
        answer = get_session().get(address, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, expected)
    assert hub.requests[-1].asked == "bytes=-5"
    assert get_session().get(address, headers={"Range": "bytes=300001-"}).status_code == 416
    head = get_session().head(address).headers
    assert (head["content-length"], head["x-linked-size"], head["x-repo-commit"]) == ("300001",) * 2 + (model.sha(),)
    assert not any(name.startswith("x-xet") for name in head)
    assert sum(request.sent for request in hub.requests) == 16


def test_a_row_group_costs_little_more_than_itself(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    large_table(tmp_path / "table" / "data.parquet")
    hub.add(Repository("org/table", {"main": tmp_path / "table"}, kind="dataset"))
    files = HfFileSystem()
    assert files.glob("hf://datasets/org/table/*.parquet") == ["datasets/org/table/data.parquet"]
    with files.open("hf://datasets/org/table/data.parquet", block_size=10_000) as file:
        assert pq.ParquetFile(file).read_row_group(5)["group"].to_pylist() == [5]
    assert GROUP_BYTES < hub.sent("data.parquet") < 2 * GROUP_BYTES
    assert all(request.asked for request in hub.requests if request.sent and "/resolve/" in request.path)


def test_a_data_set_lists_its_files_by_split(hub: Hub, pairs: Repository) -> None:
    builder = datasets.load_dataset_builder("org/pairs")
    prefix = f"hf://datasets/org/pairs@{pairs.sha()}/data/"
    assert builder.config.data_files == {
        "train": [f"{prefix}train-00000-of-00002.parquet", f"{prefix}train-00001-of-00002.parquet"],
        "test": [f"{prefix}test-00000-of-00001.parquet"],
    }
    assert not any("parquet" in request.path and request.sent for request in hub.requests if "/data/" in request.path)


def test_a_data_set_as_a_whole(hub: Hub, pairs: Repository) -> None:
    loaded = datasets.load_dataset("org/pairs")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 6, "test": 3}
    assert loaded["train"][4]["source"].getpixel((0, 0)) == (255, 0, 0)
    assert Path(loaded["test"].cache_files[0]["filename"]).is_relative_to(hub.home)


def test_a_stream_reads_only_what_it_gives(hub: Hub, pairs: Repository) -> None:
    stream = datasets.load_dataset("org/pairs", split="train", streaming=True)
    row = next(iter(stream))
    assert row["id"] == "train-00000-of-00002 0"
    assert row["edited"].getpixel((0, 0)) == (0, 0, 255)
    assert hub.sent("train-00000-of-00002.parquet") > 0
    assert hub.sent("test-00000-of-00001.parquet") == 0
    assert [row["id"][-1] for row in stream] == ["0", "1", "2"] * 2


def test_no_other_host_is_reached(hub: Hub, pairs: Repository) -> None:
    start = time.monotonic()
    datasets.load_dataset_builder("org/pairs")
    assert time.monotonic() - start < 30
    elsewhere = [request for request in hub.requests if not request.path.startswith("/")]
    assert {request.status for request in elsewhere} == {404}
    assert {request.path.split("/")[2].split(":")[0] for request in elsewhere} == {"datasets-server.127.0.0.1"}
    with pytest.raises(errors.HTTPError):
        get_session().get("https://huggingface.co/api/models")
    assert (hub.requests[-1].method, hub.requests[-1].path) == ("CONNECT", "huggingface.co:443")


def test_offline_asks_nothing(hub: Hub, model: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot_download("org/model")
    hub.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Path(snapshot_download("org/model")).name == model.sha()
    with pytest.raises(errors.LocalEntryNotFoundError):
        snapshot_download("org/other")
    assert hub.requests == []


def test_stopped_is_gone(hub: Hub, model: Repository) -> None:
    HfApi().model_info("org/model")  # leaves a connection open
    hub.stop()
    hub.stop()
    with pytest.raises(errors.HTTPError):
        HfApi().model_info("org/model")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(hub.endpoint.rsplit(":", 1)[1])))


def test_the_environment_leads_other_processes_here(
    hub: Hub, pairs: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://elsewhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = "import datasets; print(*datasets.load_dataset('org/pairs', split='test')['id'], sep=', ')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "test-00000-of-00001 0, test-00000-of-00001 1, test-00000-of-00001 2\n", done.stderr
    assert hub.sent("test-00000-of-00001.parquet") > 0
    assert os.environ["HTTPS_PROXY"] == "http://elsewhere"
