"""The page about the architecture: every module that its tree names is there, and no module is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

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
