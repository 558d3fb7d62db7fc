"""``import earl_cli``: the names that are promised, what importing them loads, docs/API.md and the examples."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import metadata, resources

import pytest

import earl_cli

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


def test_a_name_that_is_none_is_said_to_be_none() -> None:
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


def test_type_checkers_are_told_that_the_package_has_types() -> None:
    assert (resources.files("earl_cli") / "py.typed").is_file()
