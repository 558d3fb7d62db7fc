"""The page about the architecture: every module that its tree names is there, and no module is missing from it."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
DECISIONS = (ROOT / "docs" / "DECISIONS.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "earl_cli"


def tree() -> dict[str, str]:
    """What the tree says of each folder of the package, by its name; "" is the package itself."""
    block = PAGE.split("```")[1].partition("earl_cli/\n")[2]
    own = re.split(r"^(?=\S)", block, maxsplit=1, flags=re.M)[0]
    parts = re.split(r"^  ([\w/]+)/(?=\s)", own, flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_every_module_that_is_named_exists() -> None:
    named = [
        PACKAGE / folder / name for folder, text in tree().items() for name in re.findall(r"\b[a-z_]\w*\.\w+\b", text)
    ]
    assert len(named) > 100
    assert [path.name for path in named if path.suffix in (".py", ".toml") and not path.is_file()] == []
    assert [folder for folder in tree() if not (PACKAGE / folder).is_dir()] == []
    mentioned = [each.split(".") for each in re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_.]+)`", PAGE + DECISIONS)]
    rooms = [each for each in mentioned if (PACKAGE / each[0]).is_dir()]
    assert rooms
    for folder, module, *function in rooms:
        code = (PACKAGE / folder / f"{module}.py").read_text(encoding="utf-8")
        assert all(re.search(rf"\b(def|class) {name}\b", code) for name in function), f"{folder}.{module}.{function}"


def test_every_module_is_named() -> None:
    missing = []
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).parent.as_posix().removeprefix(".")
        if not path.stem.startswith("__") and not re.search(rf"\b{path.name}\b", tree().get(folder, "")):
            missing.append(str(path.relative_to(PACKAGE)))
    assert missing == []
    rooms = {path.parent.relative_to(PACKAGE).as_posix().removeprefix(".") for path in PACKAGE.rglob("__init__.py")}
    assert rooms - set(tree()) - {"models/embedded"} == set()


def test_a_class_name_has_one_meaning() -> None:
    defined: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(encoding="utf-8"), re.M):
            defined.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert len(defined) > 200
    assert {name: paths for name, paths in defined.items() if len(paths) > 1} == {}


# -- from a command to its work ----------------------------------------------------------------------------------------


def source(module: str) -> ast.Module:
    path = PACKAGE / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> dict[str, set[str]]:
    """The modules of the package that are imported anywhere in a module, with the names from each."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("earl_cli."):
            names = {name.asname or name.name for name in node.names}
            found.setdefault(str(node.module).removeprefix("earl_cli."), set()).update(names)
    return found


def called(tree: ast.AST) -> set[str]:
    """The names of the functions and methods that a module calls."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {each.id if isinstance(each, ast.Name) else getattr(each, "attr", "") for each in calls}


def chains() -> dict[str, tuple[list[str], list[str], int]]:
    """The path of each command, what is beside it, and the number of modules, as the page has them."""
    rows = re.findall(r"^\| `earl (\w+)` \| (.+?) \| (.+?) \| (\d+) \|$", PAGE, re.M)
    return {name: (path.split(" → "), beside.split(", "), int(count)) for name, path, beside, count in rows}


@pytest.mark.parametrize("command", ["edit", "tokenize", "sft", "rl", "eval"])
def test_the_way_from_a_command_to_its_work_is_short_and_as_the_page_says(command: str) -> None:
    path, beside, count = chains()[command]
    assert path[0] == f"commands.{command}"
    assert count == len({*path, *beside}) <= 12
    for module, following in itertools.pairwise(path):
        names = imported(source(module)).get(following)
        assert names, f"{module} doesn't import {following}"
        used = {node.id for node in ast.walk(source(module)) if isinstance(node, ast.Name)}
        annotations = {node.value for node in ast.walk(source(module)) if isinstance(node, ast.Constant)}
        assert names & (used | annotations), f"{module} doesn't use {following}"
    reached = {name for module in (*path, *beside) for name in imported(source(module))}
    assert set(beside) <= reached


def test_the_path_of_reinforcement_learning_ends_at_the_gradient_and_leaves_nothing_out() -> None:
    path, beside, _ = chains()["rl"]
    calls = {ast.unparse(node) for node in ast.walk(source(path[-1])) if isinstance(node, ast.Call)}
    assert {"loss.backward()", "self.optimizer.step()"} <= calls
    assert {"forward", "backward", "step", "token_losses"} <= called(source(path[-2]))
    todo, reached = [path[2]], set()
    while todo:
        module = todo.pop()
        reached.add(module)
        inner = {name for name in imported(source(module)) if name.startswith("training.")}
        todo += [name for name in inner - reached if not name.startswith("training.common.")]
    assert reached - {*path, *beside} == {"training.sft.model"}


def test_the_path_of_supervised_training_ends_at_the_loss_that_the_trainer_differentiates() -> None:
    path, _, _ = chains()["sft"]
    bases = {
        node.name: node.bases for node in ast.walk(source("training.sft.trainer")) if isinstance(node, ast.ClassDef)
    }
    assert [ast.unparse(base) for base in bases["SftTrainer"]] == ["Trainer"]
    assert "summed_loss" in called(source("training.sft.model"))
    assert path[-1] == "training.sft.loss"
