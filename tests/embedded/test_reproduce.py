"""The miniature of the paper: its steps fit together, what is stopped goes on, the table says what was found."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reproduce
import table
from pairs import COMPLEX, SETS
from PIL import Image
from reproduce import Step, Trained, models, steps

from earl_cli.config.loader import resolve
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.evaluation.results import EditResult, EvalRun, ScoredResult

# -- the plan ----------------------------------------------------------------------------------------------------------


def test_every_step_comes_after_those_that_it_needs(tmp_path: Path) -> None:
    seen: set[str] = set()
    for step in steps(tmp_path):
        assert step.name not in seen
        assert seen.issuperset(step.needs), step
        seen.add(step.name)
    assert step.name == "table"
    assert {name for name, *_ in reproduce.PAIRS} <= set(SETS)


def test_the_table_has_the_rows_of_the_paper_and_three_seeds_of_the_headline() -> None:
    rows = [(model.sft, model.rl) for model in models()]
    assert {*rows} >= {(sft, rl) for sft in ("s", "sc", "think") for rl in ("", "s", "sc")}
    for headline in (("s", ""), ("s", "s"), ("s", "sc")):
        assert rows.count(headline) == 3


@pytest.mark.slow
def test_every_training_is_one_that_the_product_takes(tmp_path: Path) -> None:
    """Recipes, settings and flags go through the product's own reader of configs."""
    for step in steps(tmp_path):
        if step.command[3:4] not in [("sft",), ("rl",)]:
            continue
        words = iter(step.command[4:])
        given: dict[str, object] = {"data": [], "validation": []}
        sets, recipe = [], ""
        for flag in words:
            name, value = flag.removeprefix("--"), next(words)
            if name == "set":
                sets.append(value)
            elif name == "config":
                recipe = value
            elif name in ("data", "validation"):
                given[name].append(Path(value))
            else:
                given[{"model": "model"}.get(name, "output" if name == "-o" else name)] = value
        kind = SftConfig if step.command[3] == "sft" else RlConfig
        config = resolve(kind, recipe, sets, given).config
        assert config.output == reproduce.root_of(tmp_path) / "models" / step.name


# -- running -----------------------------------------------------------------------------------------------------------


def shell(name: str, script: str, *needs: str) -> Step:
    return Step(name, (sys.executable, "-c", script), needs)


def touch(path: Path, after: Path | None = None) -> str:
    check = f"assert p({str(after)!r}).exists(); " if after else ""
    return f"from pathlib import Path as p; {check}p({str(path)!r}).open('a').write('x')"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Step]:
    plan = [
        shell("one", touch(tmp_path / "1")),
        shell("two", touch(tmp_path / "2", tmp_path / "1"), "one"),
        shell("table", touch(tmp_path / "t", tmp_path / "2"), "two"),
    ]
    monkeypatch.setattr(reproduce, "steps", lambda _: plan)
    monkeypatch.setattr(reproduce, "LOOK", 0.01)
    return plan


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_done_is_not_done_again(planned: list[Step], tmp_path: Path, jobs: int) -> None:
    assert reproduce.run(tmp_path, jobs) == 0
    assert reproduce.run(tmp_path, jobs) == 0
    assert [(tmp_path / name).read_text() for name in ("1", "2", "t")] == ["x", "x", "xx"]  # the table is always new
    planned[0] = shell("one", touch(tmp_path / "1") + "  # other words")
    assert reproduce.run(tmp_path, jobs) == 0
    assert (tmp_path / "1").read_text() == "xx"


def test_a_step_that_fails_is_named_with_its_log(
    planned: list[Step], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned[1] = shell("two", "import sys; sys.exit('no more disk')", "one")
    assert reproduce.run(tmp_path, 2) == 1
    result = capsys.readouterr().out
    assert "two ended with 1" in result
    assert "no more disk" in result
    assert str(reproduce.root_of(tmp_path) / "logs/two.log") in result
    assert not (tmp_path / "t").exists()


def test_other_settings_have_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = reproduce.root_of(tmp_path)
    assert first == reproduce.root_of(tmp_path)
    monkeypatch.setattr(reproduce, "read_config", lambda name, _: {"name": name, "learning_rate": 1})
    second = reproduce.root_of(tmp_path)
    monkeypatch.setattr(reproduce, "PAIRS", (("simple", 2, 1),))
    third = reproduce.root_of(tmp_path)
    (tmp_path / "weights").write_text("others")
    monkeypatch.setattr(reproduce, "START", tmp_path / "weights")
    assert len({first, second, third, reproduce.root_of(tmp_path)}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_stops_what_runs(tmp_path: Path, sent: signal.Signals) -> None:
    pid = tmp_path / "pid"
    step = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = (
        "import sys; from pathlib import Path; import reproduce; "
        f"reproduce.steps = lambda _: [reproduce.Step('long', (sys.executable, '-c', {step!r}))]; "
        f"sys.exit(reproduce.run(Path({str(tmp_path)!r}), 1))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(reproduce.__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    result, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "goes on" in result
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_the_makefile_runs_it() -> None:
    makefile = (Path(reproduce.__file__).parents[1] / "Makefile").read_text()
    line = next(line for line in makefile.splitlines() if "embedded/reproduce.py" in line)
    assert shlex.split(line.strip().removeprefix("@"))[1:] == ["embedded/reproduce.py", "$(WORK)"]


# -- the table ---------------------------------------------------------------------------------------------------------


def evaluated(editor: str, gains: Mapping[str, float], images: int = 12) -> EvalRun:
    """A run with an edit of each kind of every image; images differ, and ``gains`` come on top by kind."""
    lines = []
    for number in range(images * len(table.KINDS)):
        kind = table.KINDS[number % len(table.KINDS)]
        place = number // len(table.KINDS)
        base = np.random.default_rng(place).normal(0.5, 0.1) + gains.get(kind, 0.0)
        found = EditResult(number, 0, str(number), "", "o.png", "e.png", task=kind, picture=f"picture {place}")
        lines.append(ScoredResult(found, {"reference": base, "l1": 0.1, "psnr": 20.0, "ssim": 0.9}))
    return EvalRun(Path(), "test", editor, {}, {}, tuple(lines), ())


def samples_of(runs: Mapping[Trained, EvalRun]) -> table.Samples:
    results = [line.result for line in next(iter(runs.values())).lines]
    return table.Samples({each.number: each.task for each in results}, {each.number: each.picture for each in results})


def gains_of(model: Trained) -> dict[str, float]:
    """A world in which RL helps complex edits and harms simple ones, and reasoning changes nothing."""
    gains = dict.fromkeys(table.KINDS, 0.0)
    if model.rl:
        gains |= dict.fromkeys(table.SIMPLE, -0.1 if model.rl in ("s", "sc") else -0.2)
    if model.rl == "sc":
        gains |= dict.fromkeys(COMPLEX, 0.3)
    return gains


def test_the_findings_follow_from_the_metrics() -> None:
    runs = {model: evaluated(model.name, gains_of(model)) for model in models()}
    samples = samples_of(runs)
    text = table.tables(samples, runs, dict.fromkeys(samples.kinds, 0.9))
    answers = {row.split(" | ")[0].strip("| "): row.split(" | ")[-1].strip("| ") for row in text.splitlines()}
    assert answers["RL after SFT helps simple edits"] == "no: it harms"
    assert answers["RL after SFT helps complex edits"] == "yes"
    assert answers["complex edits help when they come in RL"] == "yes"
    assert answers["complex edits help when they come in SFT"] == "not decided"
    assert answers["reasoning before the edit helps after SFT"] == "not decided"
    assert answers["a better verifier gives a better policy"] == "yes"
    assert "| the target's own codes | | 0.900 (0.900 to 0.900) |" in text
    for part in text.split("\n\n"):
        assert len({row.count("|") for row in part.splitlines()}) == 1
    headline = next(row for row in text.splitlines() if row.startswith("| SFT (S) + RL (SC) | 3 |"))
    simple = table.mean(samples, table.values(runs, ("s", "sc"), "reference", (1, 2, 3)), table.SIMPLE)
    assert f"{simple.mean:.3f} ({simple.low:.3f} to {simple.high:.3f})" in headline


def test_a_claim_compares_models_of_the_same_seeds() -> None:
    """Where seed 1 was trained better than the others, its sequel isn't held against theirs."""
    world = {1: 0.5, 2: 0.0, 3: 0.0}
    runs = {}
    for model in models():
        gain = world[model.seed] + (0.1 if model.rl == "s" else 0.0)
        runs[model] = evaluated(model.name, dict.fromkeys(table.KINDS, gain))
    samples = samples_of(runs)
    rows = [row.split(" | ") for row in table.tables(samples, runs, dict.fromkeys(samples.kinds, 0.9)).splitlines()]
    found = {row[0].strip("| "): row[2:4] for row in rows if len(row) == 5}
    assert found["a better verifier gives a better policy"] == ["+0.100 (+0.100 to +0.100)", "+0.100"]
    assert found["RL after SFT helps simple edits"] == ["+0.100 (+0.100 to +0.100)", "+0.100, +0.100, +0.100"]


def test_a_row_is_the_mean_of_its_seeds() -> None:
    runs = {Trained("s", "s", seed): evaluated(str(seed), {"global": seed / 10}) for seed in (1, 2, 3)}
    found = table.values(runs, ("s", "s"), "reference", (1, 2, 3))
    first = {line.result.number: line.scores["reference"] for line in runs[Trained("s", "s", 1)].lines}
    assert found[0] == pytest.approx(first[0] + 0.1)  # kind global: 0.1, 0.2 and 0.3 on top
    assert found[1] == pytest.approx(first[1])


def test_the_ceiling_is_what_codes_can_show(tmp_path: Path) -> None:
    """A strong edit survives as codes, an edit of a few pixels doesn't."""
    ramp = np.repeat(np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None], 96, axis=0).repeat(3, axis=2)
    spot = ramp.copy()
    spot[40:42, 40:42] = 255
    rows = []
    for name, image in (("source", ramp), ("negative", 255 - ramp), ("spot", spot)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        rows.append({"id": name, "source": "source.png", "edited": f"{name}.png", "instruction": name})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    negative, small = table.ceiling(tmp_path).values()
    assert negative > 0.8
    assert small < 0.3


def test_of_an_invalid_edit_only_the_reference_counts() -> None:
    """As scoring leaves it: the worst reward, and no distance of an image that isn't there."""
    runs = {model: evaluated(model.name, {}) for model in models()}
    thinking = Trained("think", "", 1)
    first, *others = runs[thinking].lines
    lost = ScoredResult(
        replace(first.result, edited_image=None), {"reference": -1.0}, dict.fromkeys(table.METRICS, "none")
    )
    runs[thinking] = replace(runs[thinking], lines=(lost, *others))
    samples = samples_of(runs)
    assert table.values(runs, ("think", ""), "reference", (1,))[0] == -1.0
    assert 0 not in table.values(runs, ("think", ""), "l1", (1,))
    text = table.tables(samples, runs, dict.fromkeys(samples.kinds, 0.9))
    assert "| SFT (think) |" in text.split("\n\n")[1]
    assert text.split("\n\n")[1].splitlines()[8].endswith("| 0.1000 | 20.00 | 0.900 | 1% |")


def test_smooth_is_a_mean_of_the_last_values() -> None:
    np.testing.assert_allclose(table.smooth(np.array([1.0, 3.0, 5.0, 7.0]), 2), [1, 2, 4, 6])


def test_a_model_without_all_of_its_scores_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = {name: evaluated(name, {}) for name in (model.name for model in models())}
    for name in runs:
        folder = tmp_path / name
        folder.mkdir()
        (folder / table.RUN).touch()
    lost = runs["sft-s.2"]
    first, *others = lost.lines
    runs["sft-s.2"] = replace(lost, lines=(replace(first, scores={}), *others))
    monkeypatch.setattr(table, "find_results", lambda _: [tmp_path / name for name in runs])
    monkeypatch.setattr(table, "load_run", lambda folder: runs[folder.name])
    with pytest.raises(SystemExit, match=r"gone.*: sft-s\.2$"):
        table.read(tmp_path)


def test_what_is_not_evaluated_yet_is_reported(tmp_path: Path) -> None:
    from earl_cli.evaluation.results import write_object

    folder = reproduce.root_of(tmp_path) / "results/test/x"
    folder.mkdir(parents=True)
    write_object(folder / "run.json", {"editor": {"name": "x"}, "benchmark": {"name": "b"}})
    with pytest.raises(SystemExit, match="not evaluated yet"):
        table.read(tmp_path)
