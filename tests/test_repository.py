"""What surrounds the package: the Makefile, what CI runs, the hooks before a commit, the files of a release."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from setuptools import Distribution

from earl_cli.app import COMMANDS, OPTION_ALIASES
from earl_cli.config.keys import aliases_of
from earl_cli.config.loader import training_configs
from earl_cli.training.common.curves import RENAMED

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M))


def document(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def would_run(target: str) -> str:
    """What ``make`` would run for a target, on a machine with nothing set up."""
    command = ["make", "--dry-run", "VENV=/nowhere", "VLLM_VENV=/nowhere-vllm", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_tests_install_no_system_packages() -> None:
    for target in ("test", "test-full", "check-fast"):
        assert "-m pytest" in would_run(target)
        assert "apt-get" not in would_run(target)
    for target in ("browser", "nginx"):
        assert "apt-get" in would_run(target)


def test_ci_brings_what_the_tests_may_skip_without_and_runs_every_test() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "\nmake browser nginx\n" in script
    assert script.endswith('exec make "${1:-test}"\n')
    for name in ("browser", "nginx"):
        variable = f"EARL_NEEDS_{name.upper()}"
        assert f"{variable}=1" in script
        assert variable in (ROOT / "tests" / f"{name}.py").read_text(encoding="utf-8")


def test_the_workflow_calls_what_there_is_on_every_python() -> None:
    workflow = document(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request", "schedule", "workflow_dispatch"}  # YAML reads "on" as true
    job = workflow["jobs"]["make"]
    matrix = job["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    python = "Programming Language :: Python :: "
    assert [name.removeprefix(python) for name in PROJECT["classifiers"] if python in name] == matrix["python"]
    assert set(matrix) - {"include"} == set(re.findall(r"matrix\.(\w+)", str(job)))
    assert all(set(more) == set(matrix) - {"include"} for more in matrix["include"])
    torch = {f"torch=={PINNED['torch']}"}
    assert {name.split()[0] for name in [*matrix["torch"], *(more["torch"] for more in matrix["include"])]} == torch
    runs = str([*matrix["run"], *(more["run"] for more in matrix["include"])])
    assert set(re.findall(r"(?:\.ci/run|make) ([a-z-]+)", runs)) == {"test", "test-full", "demo"} <= TARGETS
    cached = job["steps"][1]["with"]["cache-dependency-path"].split()
    assert cached
    assert all((ROOT / name).is_file() for name in cached)


def test_hooks_before_a_commit_are_the_checks_of_make_with_the_pinned_tools() -> None:
    (repo,) = document(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"  # another repository would bring versions of its own
    program = r"ruff \w+|lint-imports|mypy"
    hooks = [re.match(rf"\.venv/bin/({program})", hook["entry"]) for hook in repo["hooks"]]
    checks = re.findall(rf"^/nowhere/bin/({program})", would_run("lint") + would_run("types"), flags=re.M)
    assert [hook and hook[1] for hook in hooks] == checks
    developing = {re.split(r"[<>=]", need)[0] for need in PROJECT["optional-dependencies"]["dev"]}
    assert {"ruff", "mypy", "import-linter"} <= developing & set(PINNED)


def test_version_changelog_and_citation_agree() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, flags=re.M)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    versions = [(tuple(map(int, match[1].split("."))), match[2]) for match in released if match]
    assert len(versions) == len(released)
    assert versions == sorted(versions, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", text, flags=re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    citation = document("CITATION.cff")
    assert PROJECT["version"] == citation["version"] == ".".join(map(str, versions[0][0]))
    assert str(citation["date-released"]) == versions[0][1]
    assert citation["license"] == PROJECT["license"]
    assert "2508.01119" in citation["preferred-citation"]["doi"]


def test_the_changelog_has_old_and_new_names_side_by_side() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    aliases = {old: new for table in OPTION_ALIASES.values() for old, new in table.items()}
    old_configs = (ROOT / "tests/config/old_configs").glob("*.json")
    old_keys = {key for path in old_configs for key in json.loads(path.read_text(encoding="utf-8"))}
    keys = {old: new for kind in training_configs().values() for old, new in aliases_of(kind).items()}
    names = aliases | {old: keys[old] for old in old_keys & keys.keys()} | RENAMED
    assert len(names) > 30
    assert [f"`{old}` → `{new}`" for old, new in names.items() if f"`{old}` → `{new}`" not in text] == []


def test_what_the_pages_for_contributors_name_exists() -> None:
    """Make targets, files that are linked or named, and commands of earl."""
    forms = sorted((ROOT / ".github").rglob("*.*"))
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/RELEASING.md")]
    assert len(forms) > 3
    for page in [*forms, *pages]:
        text = page.read_text(encoding="utf-8")
        made = re.findall(r"(?:`|^ *)make ([a-z-]+)", text, flags=re.M)
        assert set(made) <= TARGETS, page
        assert set(re.findall(r"torch==([\d.]+)", text)) <= {PINNED["torch"]}, page
        links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
        named = re.findall(r"\b(?:docs|embedded)/\w+\.md", text) if page in forms else []
        assert all((page.parent / link).exists() for link in links), page
        assert all((ROOT / name).exists() for name in named), page
        assert set(re.findall(r"`earl ([a-z]+)", text)) <= {name.split()[0] for name in COMMANDS}, page


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_an_issue_form_has_what_github_wants(path: Path) -> None:
    form = document(str(path.relative_to(ROOT)))
    assert {"name", "description", "body"} <= set(form)
    questions = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in questions]
    assert len(names) == len(set(names)) > 0
    assert all(field["attributes"]["label"] for field in questions)
    assert {field["type"] for field in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert any(field.get("validations", {}).get("required") for field in questions)


def test_the_wheel_holds_every_file_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """By setuptools' own reading of pyproject.toml, without a build: recipes, tables, pages, weights."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files(["pyproject.toml"])
    distribution.include_package_data = False  # it would write an egg-info, and adds nothing that isn't declared
    command = distribution.get_command_obj("build_py")
    command.build_lib = "lib"
    command.ensure_finalized()
    built = {str(Path(path).relative_to("lib")) for path in command.get_outputs(include_bytecode=False)}
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "earl_cli").rglob("*") if path.is_file()}
    assert {Path(path).suffix for path in built} >= {".py", ".toml", ".css", ".jsonnet", ".safetensors"}
    assert built == {path for path in files if "__pycache__" not in path}
