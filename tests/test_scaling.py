"""docs/SCALING.md says what its program computes, what docs/RESULTS.md measured, and commands that can be given."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from earl_cli import app
from earl_cli.config.loader import load_config
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig

ROOT = Path(app.__file__).parents[1]
TEXT = (ROOT / "docs" / "SCALING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "scaling", module)  # dataclasses look for their module there
        spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def published_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APP__DATA_DIR", "APP__BASE_EXP_DIR", "APP__REWARD_FUNCTION_API_BASE", "APP__RUN_NAME"):
        monkeypatch.setenv(name, "here")


def sections() -> dict[str, str]:
    """The document's sections of the third level, by heading."""
    parts = re.split(r"^(?=#{1,3} )", TEXT, flags=re.MULTILINE)
    return {part.splitlines()[0]: part.strip() for part in parts if part.startswith("### ")}


def commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """The command, the recipe and what is set in every line with a recipe in the document's blocks."""
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    found = []
    for line in filter(None, blocks.splitlines()):
        words = shlex.split(line)
        recipe = words.index("--config") + 1
        sets = tuple(after for word, after in pairwise(words) if word == "--set")
        found.append((words[recipe - 2], words[recipe], sets))
    return found


def test_the_computed_tables_are_those_of_the_program(scaling: ModuleType) -> None:
    computed = {text.splitlines()[0]: text for text in scaling.tables()}
    written = {head: text for head, text in sections().items() if not head.startswith("### Measured")}
    assert written.keys() == computed.keys()
    for head, table in computed.items():
        assert written[head].startswith(table), f"{head}: python benchmarks/scaling.py prints another table"


def test_measured_results_are_in_the_results() -> None:
    results = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    tables = [text for head, text in sections().items() if head.startswith("### Measured")]
    rows = [line.strip("| ").split(" | ") for text in tables for line in text.splitlines() if line.startswith("| ")]
    measured = [row[-1] for row in rows if row[-1] not in ("result", "---")]
    assert len(measured) >= 4
    for result in measured:
        assert result in results.replace("\n", " ")


def test_every_plan_has_its_command(scaling: ModuleType) -> None:
    plans = {("sft", plan.recipe, plan.sets) for plan in scaling.SFT}
    plans |= {("rl", plan.recipe, plan.sets) for plan in scaling.RL}
    assert plans == set(commands())


@pytest.mark.parametrize(("command", "recipe", "sets"), commands())
def test_every_command_has_a_config_that_can_be_used(command: str, recipe: str, sets: tuple[str, ...]) -> None:
    given = {"output": Path("run"), "data": (Path("store"),)}
    if command == "sft":
        load_config(SftConfig, recipe, sets, given)
    else:
        load_config(RlConfig, recipe, sets, {**given, "coefficients": (1.0,)})


def test_what_is_proposed_fits(scaling: ModuleType) -> None:
    for plan in scaling.SFT:
        assert scaling.sft_memory(plan).device < plan.machine.memory
    for plan in scaling.RL:
        needed, config = scaling.rl_memory(plan), plan.rl
        assert needed.device < plan.machine.memory
        if config.engine == "auto" and plan.machine is not scaling.LAPTOP and not config.engine_gpus:
            vllm = config.vllm_gpu_memory_utilization * plan.machine.memory
            assert needed.weights + needed.optimizer + vllm < plan.machine.memory
        assert scaling.Sampler.of(plan).room > config.generations_per_sample
