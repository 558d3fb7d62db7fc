"""EARL's own models as editors: a benchmark's instruction is understood as ``earl edit`` understands it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from evaluations import random_image

from earl_cli.evaluation.editors import EarlEditor, EditTask
from earl_cli.generation.editor import Editor, load_editor


def editor(folder: Path) -> EarlEditor:
    def load() -> Editor:
        return load_editor(str(folder), device="cpu", engine="transformers")

    return EarlEditor(folder.name, str(folder), "source", load)


def test_a_prompt_written_otherwise_is_the_trained_one(tiny_model_dir: Path) -> None:
    prompts = ["make it snowy", "Make it snowy.", "“MAKE  IT SNOWY”", "make it"]
    tasks = [EditTask(str(number), random_image(1), prompt, seed=4) for number, prompt in enumerate(prompts)]
    generated = [each.image for each in editor(tiny_model_dir).edit(tasks)]
    assert all(image is not None for image in generated)
    first, *same, other = [image.tobytes() for image in generated if image]
    assert same == [first, first]
    assert other != first


def test_edits_of_a_model_that_understands_otherwise_are_never_mixed(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / tiny_model_dir.name)
    before = editor(tiny_model_dir).describe()
    assert editor(folder).describe() == before
    description = json.loads((folder / "earl.json").read_text())
    abilities = description["abilities"]
    abilities["kinds"]["snow"]["phrases"].append("snow")
    (folder / "earl.json").write_text(json.dumps(description))
    assert {**editor(folder).describe(), "abilities": before["abilities"]} == before != editor(folder).describe()
    del description["abilities"]
    (folder / "earl.json").write_text(json.dumps(description))
    assert "abilities" not in editor(folder).describe()
