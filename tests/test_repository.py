"""What surrounds the package: the Makefile, what CI runs, the hooks before a commit, the files of a release."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M))


def document(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def targets_of(script: str) -> list[str]:
    """The Make targets that a script calls."""
    calls = re.findall(r"^(?:exec )?make((?: [a-z-]+)+)", script, flags=re.M)
    return [target for call in calls for target in call.split()]


def would_run(target: str) -> str:
    """What ``make`` would run for a target, on a machine with nothing set up."""
    command = ["make", "--dry-run", "VENV=/nowhere", "VLLM_VENV=/nowhere-vllm", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_tests_install_no_system_packages() -> None:
    for target in ("test", "check-fast"):
        assert "-m pytest" in would_run(target)
        assert "apt-get" not in would_run(target)
    for target in ("browser", "nginx"):
        assert "apt-get" in would_run(target)


def test_ci_brings_what_the_tests_may_skip_without_and_runs_every_test() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert targets_of(script) == ["browser", "nginx", "test"]
    for name in ("browser", "nginx"):
        variable = f"EARL_NEEDS_{name.upper()}"
        assert f"{variable}=1" in script
        assert variable in (ROOT / "tests" / f"{name}.py").read_text(encoding="utf-8")


def test_the_workflow_calls_what_there_is_on_every_python() -> None:
    workflow = document(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request", "workflow_dispatch"}  # YAML reads "on" as true
    job = workflow["jobs"]["make"]
    matrix = job["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    assert set(matrix) - {"include"} == set(re.findall(r"matrix\.(\w+)", str(job)))
    assert all(set(more) == set(matrix) - {"include"} for more in matrix["include"])
    torch = {f"torch=={PINNED['torch']}"}
    assert {name.split()[0] for name in [*matrix["torch"], *(more["torch"] for more in matrix["include"])]} == torch
    runs = [*matrix["run"], *(more["run"] for more in matrix["include"])]
    assert runs == [".ci/run", "make demo"]
    assert set(targets_of("\n".join(runs))) == {"demo"} <= TARGETS
    cached = job["steps"][1]["with"]["cache-dependency-path"].split()
    assert cached
    assert all((ROOT / name).is_file() for name in cached)
