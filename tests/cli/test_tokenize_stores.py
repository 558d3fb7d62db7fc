"""Looking at stores, checking, merging and exporting them, as a person at the keyboard does it."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from stores import REJECTED, ROWS, contents, write_store

from earl_cli.app import run
from earl_cli.data.inspecting import sample_examples
from earl_cli.data.store import open_store, shard_path
from earl_cli.models.bundle import load_vision_of
from earl_cli.models.vision import decode, images_of

PAIRS = ROWS - len(REJECTED)


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_inspect_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "s", shards=[0, 1])
    assert run(["tokenize", "inspect", str(tmp_path / "s")]) == 0
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert ["examples", f"10 of {ROWS} rows"] in lines
    assert ["rejected", "2 (1 image, 1 text)"] in lines
    assert ["shards", "2 of 4, missing: 2 to 3"] in lines
    assert ["dataset", "set 0"] in lines
    assert any(line[0] == "plan, characters" for line in lines)


def test_inspect_is_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "s")
    assert run(["tokenize", "inspect", str(tmp_path / "s"), "--json"]) == 0
    found = document(capsys)
    assert (found["pairs"], found["rows"], found["missing"], found["html"]) == (PAIRS, ROWS, [], None)
    assert found["manifest"]["vision_fingerprint"] == "vq"


def test_the_page_shows_what_the_codes_decode_to(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision = load_vision_of(str(tiny_model_dir), device="cpu")
    store = write_store(tmp_path / "s", vision_fingerprint=vision.fingerprint)
    page = tmp_path / "pairs.html"
    given = ["--sample", "3", "--seed", "5", "--html", str(page), "--model", str(tiny_model_dir), "--device", "cpu"]
    assert run(["tokenize", "inspect", str(store.folder), *given, "--json"]) == 0
    assert document(capsys)["drawn"] == 3
    text = page.read_text(encoding="utf-8")
    shown = [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r'base64,([^"]+)"', text)]
    chosen = sample_examples(store, 3, 5)
    codes = [side for pair in chosen for side in (pair.source, pair.target)]
    for image, expected in zip(shown, codes, strict=True):
        generated = images_of(decode(vision.model, torch.from_numpy(expected.astype(np.int64))[None]))[0]
        assert np.array_equal(np.asarray(image), generated)
    for pair in chosen:
        assert f">{pair.id}<" in text
        assert f"source, {pair.source.shape[0]} × {pair.source.shape[1]}" in text
    assert run(["tokenize", "inspect", str(store.folder), *given[2:]]) == 0
    assert "8 examples in" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").count("<img") == 16


def test_another_tokenizer_is_refused_and_the_right_one_named(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = str(tmp_path / "p.html")
    own = ["--html", page, "--model", str(tiny_model_dir), "--device", "cpu"]
    write_store(tmp_path / "s")
    assert run(["tokenize", "inspect", str(tmp_path / "s"), *own]) == 2
    assert "is of the vision tokenizer vq, and that of" in (errors := capsys.readouterr().err)
    assert "hint: --model a/model" in errors
    write_store(tmp_path / "other", codes=32768, vision_fingerprint="published", origin={})
    assert run(["tokenize", "inspect", str(tmp_path / "other"), *own]) == 2
    assert "has a codebook of 32768 codes" in (errors := capsys.readouterr().err)
    assert "name the model that the store was made with: --model" in errors
    assert not Path(page).exists()
    write_store(tmp_path / "published", vision_fingerprint="published")
    assert run(["tokenize", "inspect", str(tmp_path / "published"), *own]) == 0
    assert Path(page).exists()


@pytest.mark.parametrize(
    ("more", "code", "what"),
    [
        (["--sample", "3"], 2, "--sample is for the page of examples"),
        (["--model", "x"], 2, "--model is for the page of examples"),
        (["--sample", "0", "--html", "p.html"], 2, "greater than or equal to 1"),
        (["--html", "notes.html"], 8, "no page that earl made"),
    ],
)
def test_what_inspect_cannot_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_store(Path("s"))
    Path("notes.html").write_text("mine")
    assert run(["tokenize", "inspect", "s", *more]) == code
    assert what in capsys.readouterr().err
    assert Path("notes.html").read_text() == "mine"


def test_a_store_without_examples_gives_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "s", rejected=range(ROWS))
    assert run(["tokenize", "inspect", str(tmp_path / "s")]) == 0
    assert run(["tokenize", "inspect", str(tmp_path / "s"), "--html", str(tmp_path / "p.html")]) == 3
    assert "this store has no examples" in capsys.readouterr().err


# -- verify ------------------------------------------------------------------------------------------------------------


def test_verify_says_that_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_store(tmp_path / name, seed=i).folder) for i, name in enumerate("ab")]
    assert run(["tokenize", "verify", *folders]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: {PAIRS} examples in 4 shards: no problem found" for folder in folders
    ]
    assert run(["tokenize", "verify", *folders, "--json"]) == 0
    assert document(capsys)["stores"] == [{"store": folder, "pairs": PAIRS, "problems": []} for folder in folders]


def test_verify_lists_every_problem_of_every_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, none = (tmp_path / name for name in ("good", "bad", "none"))
    write_store(good)
    write_store(bad, shards=[0, 1, 3])
    shard_path(bad, 3).write_bytes(b"torn")
    command = ["tokenize", "verify", str(none), str(bad), str(good)]
    assert run(command) == 3
    shown = capsys.readouterr()
    assert f"{good}: {PAIRS} examples" in shown.out
    for where, what in [
        (none, "there is no such token store"),
        (bad, r"shard 2 is missing \(of 4\)"),
        (shard_path(bad, 3), "this shard can't be read"),
    ]:
        assert re.search(rf"^{re.escape(str(where))} +{what}", shown.out, re.MULTILINE)
    assert f"error: {none}, {bad}: 3 problems found" in shown.err
    assert run([*command, "--json"]) == 3
    found = document(capsys)
    assert [len(store["problems"]) for store in found["stores"]] == [1, 2, 0]
    assert found["stores"][1]["problems"][0] == {"where": str(bad), "what": "shard 2 is missing (of 4)"}
    assert (found["error"]["exit_code"], found["error"]["what"]) == (3, "3 problems found")


# -- merge -------------------------------------------------------------------------------------------------------------


def test_merge_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_store(tmp_path / "whole").folder
    parts = [str(write_store(tmp_path / str(i), shards=range(i, 4, 3)).folder) for i in range(3)]
    output = tmp_path / "out"
    assert run(["tokenize", "merge", *parts[:2], "-o", str(output)]) == 0
    shown = capsys.readouterr()
    assert "warning: not finished: shard 2 is missing (of 4)" in shown.err
    assert run(["tokenize", "merge", *parts, "--output", str(output), "--json"]) == 0
    expected = {"store": str(output), "pairs": PAIRS, "rows": ROWS, "shards": 4, "missing": []}
    assert document(capsys) == expected
    assert contents(output) == contents(whole)


def test_merge_names_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "a", seed=1)
    write_store(tmp_path / "b", seed=2, image_area=9216)
    assert run(["tokenize", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "out")]) == 2
    assert f"image_area is 9216 in {tmp_path / 'b'}, 1024 in {tmp_path / 'a'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "jsonl", "pth"])
def test_export_and_export_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    store, output = write_store(tmp_path / "s").folder, tmp_path / "out"
    command = ["tokenize", "export", str(store), "--format", form, "-o", str(output)]
    assert run([*command, "--json"]) == 0
    assert document(capsys) == {"store": str(store), "format": form, "output": str(output), "pairs": PAIRS}
    if form == "parquet":
        assert pq.read_metadata(output).num_rows == PAIRS
    elif form == "jsonl":
        assert len(output.read_text(encoding="utf-8").splitlines()) == PAIRS
    else:
        assert len(list(output.rglob("*.pth"))) == PAIRS
    assert run(command) == 8
    assert "--force overwrites it" in capsys.readouterr().err
    assert run([*command, "--force"]) == 0


def test_a_stopped_export_of_pth_files_goes_on(tmp_path: Path) -> None:
    store, output = write_store(tmp_path / "s").folder, tmp_path / "out"
    command = ["tokenize", "export", str(store), "--format", "pth", "-o", str(output)]
    assert run(command) == 0
    whole = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for path in list(whole)[:5] + list(output.rglob("*.json")):
        path.unlink(missing_ok=True)
    assert run(command) == 0
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == whole


@pytest.mark.parametrize("form", ["parquet", "jsonl", "pth"])
def test_an_unfinished_store_is_exported_only_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    store = write_store(tmp_path / "s", shards=[0, 2]).folder
    command = ["tokenize", "export", str(store), "--format", form, "-o", str(tmp_path / "out")]
    assert run(command) == 3
    errors = capsys.readouterr().err
    assert "not finished: shards 1 and 3 are missing (of 4)" in errors
    assert "--partial" in errors
    assert not (tmp_path / "out").exists()
    assert run([*command, "--partial"]) == 0
    assert "12 examples in" in capsys.readouterr().out
    assert open_store(store).missing == [1, 3]


@pytest.mark.parametrize(
    ("form", "output", "code", "what"),
    [
        ("jsonl", "folder", 2, "this is a folder"),
        ("pth", "file", 2, "this is a file"),
        ("pth", "folder", 8, "this exists already"),
        ("parquet", "file", 8, "this exists already"),
        ("jsonl", "s/rows.jsonl", 2, "inside the store"),
        ("csv", "new", 2, "'csv' is not one of"),
    ],
)
def test_where_an_export_cannot_go(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    output: str,
    code: int,
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_store(Path("s"))
    Path("folder").mkdir()
    Path("folder/mine").touch()
    Path("file").write_text("mine")
    assert run(["tokenize", "export", "s", "--format", form, "-o", output]) == code
    assert what in capsys.readouterr().err
    assert Path("file").read_text() == "mine"


def test_nothing_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "s", rejected=range(ROWS))
    assert run(["tokenize", "export", str(tmp_path / "s"), "--format", "jsonl", "-o", str(tmp_path / "out")]) == 3
    assert "this store has no examples" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
