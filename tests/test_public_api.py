"""``import earl_cli``: the names that are promised, what importing them loads, docs/API.md and the examples."""

from __future__ import annotations

import inspect
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from trainings import options, write_pairs

import earl_cli
from earl_cli import app

ROOT = Path(earl_cli.__file__).parents[1]
PAGE = (ROOT / "docs" / "API.md").read_text(encoding="utf-8")

NAMES = {
    "DeviceError",
    "EarlError",
    "Edit",
    "EditedImage",
    "Editor",
    "InputError",
    "JudgeDownError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Reward",
    "Score",
    "UsageError",
    "__version__",
    "load_editor",
    "reward",
}
"""A name that leaves this list needs a new version, as docs/RELEASING.md says."""


def test_the_public_names_are_these_and_documented() -> None:
    assert set(earl_cli.__all__) == NAMES
    assert set(dir(earl_cli)) >= NAMES
    assert earl_cli.__version__ == metadata.version("earl-cli")
    for name in NAMES - {"__version__"}:
        assert len(inspect.getdoc(getattr(earl_cli, name)) or "") > 20, name
    errors = [getattr(earl_cli, name) for name in NAMES if name.endswith("Error")]
    assert all(issubclass(error, earl_cli.EarlError) for error in errors)


def test_parameters_and_fields_of_the_public_names_are_these() -> None:
    def parameters(function: object) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]

    chosen = ["seed", "size", "sampling", "max_pixels", "on_progress"]
    loading = ["model", "device", "sampling", "mode", "image_area", "engine", "engine_args"]
    assert parameters(earl_cli.load_editor) == loading
    assert parameters(earl_cli.Editor.edit) == ["image", "instruction", *chosen]
    assert parameters(earl_cli.Editor.variants) == ["image", "instruction", "count", *chosen]
    assert parameters(earl_cli.Editor.edit_many) == ["images", "instruction", *chosen]
    assert parameters(earl_cli.Edit) == ["id", "instruction", "source", "edited", "target"]
    assert parameters(earl_cli.Score) == ["value", "parts", "reason", "explanations", "missing", "places"]
    for name in ("source", "instruction", "seed", "understood", "problem", "thoughts", "notes", "error"):
        assert name in parameters(earl_cli.EditedImage)
    for name in ("name", "device", "examples", "batch_size", "close"):
        assert inspect.getdoc(getattr(earl_cli.Editor, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_editr'"):
        earl_cli.load_editr  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="load_editr"):
        from earl_cli import load_editr  # type: ignore[attr-defined]  # noqa: F401


def test_importing_loads_nothing_heavy_and_a_reward_needs_no_torch() -> None:
    script = (
        "import sys, earl_cli; dir(earl_cli); first = {*sys.modules}; from earl_cli import Edit, Score, reward;"
        "print(*first, '|', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, _, second = (set(part.split()) for part in done.stdout.partition("|"))
    assert {name for name in first if name.startswith("earl_cli")} == {"earl_cli"}
    assert not first & {"numpy", "PIL", "torch", "typer", "importlib.metadata"}
    assert not second & {"PIL", "torch", "typer", "pydantic"}


def test_the_package_is_marked_as_typed() -> None:
    assert (resources.files("earl_cli") / "py.typed").is_file()


def test_the_page_names_every_public_name() -> None:
    named = set(re.findall(r"\w+", PAGE))
    assert named >= NAMES


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small photo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with Image.open(ROOT / "docs" / "photos" / "coffee.jpg") as photo:
        photo.resize((120, 80)).save("photo.jpg")
    return tmp_path


@pytest.mark.slow
def test_the_examples_of_the_page(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In order, as one program."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    assert len(blocks) > 6
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        line = PAGE[: PAGE.index(block)].count("\n")
        exec(compile("\n" * line + block, "docs/API.md", "exec", dont_inherit=True), names)
    printed = capsys.readouterr()
    assert printed.out.count("there is no such file missing.jpg") == 2
    assert "make it sepia (120, 80)" in printed.out
    assert printed.err == ""
    assert {path.name for path in workplace.iterdir()} == {"photo.jpg", "snowy.jpg", "night.png"}


def example(name: str) -> Callable[..., int]:
    found: Callable[..., int] = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]
    return found


@pytest.mark.slow
def test_edit_a_folder(workplace: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = workplace / "photos"
    photos.mkdir()
    for name in ("a.png", "c.png"):
        with Image.open("photo.jpg") as photo:
            photo.save(photos / name)
    (photos / "b.png").write_bytes(b"torn")
    (photos / "notes.txt").write_text("no photo")
    arguments = [str(photos), "make it snowy", "out", "--model", str(tiny_model_dir), "--seed", "1"]
    assert example("edit_folder")(arguments) == 1
    printed = capsys.readouterr()
    assert [line.split(" ->")[0] for line in printed.out.splitlines()] == [f"{photos}/a.png", f"{photos}/c.png"]
    assert "b.png: " in printed.err
    assert {path.name for path in Path("out").iterdir()} == {"a.png", "c.png"}
    assert Path("out/a.png").read_bytes() == Path("out/c.png").read_bytes()
    for place, output, why in (("nowhere", "out", "no folder nowhere"), ("photos", "photos", "overwritten")):
        with pytest.raises(SystemExit):
            example("edit_folder")([place, "make it snowy", output])
        assert why in capsys.readouterr().err


@pytest.mark.slow
def test_a_reward_of_ones_own_scores_edits_and_trains(
    workplace: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example("own_reward")(["photo.jpg", "make it warmer"]) == 0
    with pytest.raises(SystemExit, match=r"error: .*missing\.jpg"):
        example("own_reward")(["missing.jpg", "make it warmer"])
    printed = capsys.readouterr().out
    assert printed.count("seed ") == printed.count("brightness_change") == 4
    values = [float(value) for value in re.findall(r"seed \d: (\S+)", printed)]
    assert min(values) > 0  # the embedded model makes it warmer
    shutil.copy(ROOT / "examples" / "own_reward.py", workplace)
    write_pairs(workplace / "store", 4)
    small = {"num_iterations": 1, "episodes_per_iteration": 4, "generations_per_sample": 2, "max_response_tokens": 64}
    small |= {"max_length": 128, "batch_size": 4}
    line = ["rl", "--model", str(tiny_model_dir), "--data", "store", "-o", "out", "--reward", "own_reward:warmth"]
    assert app.run([*line, "--device", "cpu", "--quiet", *options(**small, precision="float32")]) == 0
    assert (workplace / "out" / "log.jsonl").is_file()


@pytest.mark.slow
def test_a_benchmark_of_ones_own(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_this_process(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        assert command[:3] == [sys.executable, "-m", "earl_cli"]
        return subprocess.CompletedProcess(command, app.run(command[3:]))

    monkeypatch.setattr(subprocess, "run", in_this_process)
    samples = ROOT / "earl_cli" / "evaluation" / "embedded_set"
    assert example("own_benchmark")([str(samples), "out", "--limit", "2"]) == 0
    assert "My photos" in (workplace / "out" / "results" / "report.html").read_text(encoding="utf-8")
    assert "embedded" in capsys.readouterr().out
