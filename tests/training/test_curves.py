"""Logs of runs read back, resumed and torn ones too, and what is drawn of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from earl_cli.errors import InputError, UsageError
from earl_cli.training.curves import (
    COLORS,
    DASHES,
    LOG,
    Run,
    Series,
    choose_panels,
    draw,
    number,
    read_run,
    read_runs,
    smooth,
    thin,
    window,
    write_curves,
)


def write_log(folder: Path, rows: Sequence[Mapping[str, Any]], end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows) + end, encoding="utf-8")
    return folder


def a_run(folder: Path, steps: int = 400, floor: float = 2.0) -> Path:
    noise = np.random.default_rng(steps).normal(0, 0.1, steps + 1)
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        loss = floor + 8 * np.exp(-step / 60)
        figures = {"loss": loss + noise[step], "grad_norm": 1 + abs(noise[step]), "learning_rate": 1e-4 / step}
        rows.append({"step": step, **figures, "epoch": step / 100})
        if step % 50 == 0:
            rows.append({"step": step, "eval_loss": loss + 0.1, "eval_runtime": 3.0})
    return write_log(folder, rows)


def points(run: Run, key: str) -> dict[int, float]:
    series = run.figures[key]
    return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_log_is_read(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 9.0, "learning_rate": 1e-5, "note": "text", "flag": True, "nothing": None},
        {"step": 10, "loss": 5.0, "learning_rate": 2e-5},
        {"step": 10, "eval_loss": 5.5, "eval_runtime": 1.0},
        {"step": 20, "loss": 4.0},
        {"step": 20, "eval_loss": 5.6},
    ]
    (run,) = read_runs([write_log(tmp_path / "fit", rows)])
    assert (run.name, run.steps, run.loss, run.best) == ("fit", 20, 4.0, (10, 5.5))
    assert points(run, "loss") == {1: 9.0, 10: 5.0, 20: 4.0}
    assert points(run, "learning_rate") == {1: 1e-5, 10: 2e-5}
    assert set(run.figures) == {"loss", "learning_rate", "eval_loss", "eval_runtime"}
    assert read_runs([tmp_path / "fit" / LOG])[0].name == "fit"


def test_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    first = [{"step": step, "loss": 1.0} for step in (10, 20, 30, 35, 40)] + [{"step": 40, "eval_loss": 1.0}]
    again = [{"step": step, "loss": 2.0} for step in (20, 30)] + [{"step": 30, "loss": 3.0}]
    (run,) = read_runs([write_log(tmp_path / "fit", [*first, *again])])
    assert points(run, "loss") == {10: 1.0, 20: 2.0, 30: 3.0}
    assert run.steps == 30
    assert run.best is None


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), max_size=4))
def test_however_often_it_stopped_the_last_word_counts(first: int, resumes: list[tuple[int, int]]) -> None:
    import tempfile

    attempts = [(0, first), *resumes]
    rows, expected = [], {}
    for attempt, (checkpoint, more) in enumerate(attempts):
        start = min(checkpoint, max(expected, default=0))
        expected = {step: value for step, value in expected.items() if step <= start}
        for step in range(start + 1, start + more + 1):
            rows.append({"step": step, "loss": float(attempt)})
            expected[step] = float(attempt)
    with tempfile.TemporaryDirectory() as folder:
        run = read_run(write_log(Path(folder), rows) / LOG, "fit")
    assert points(run, "loss") == expected


@pytest.mark.parametrize("torn", ["{", '{"step": 3, "lo', '{"step": 3', '{"ste', "3", '{"step": 3, "loss": "\u00e9'])
def test_a_torn_last_line_is_one_that_is_being_written(tmp_path: Path, torn: str) -> None:
    (run,) = read_runs([write_log(tmp_path / "fit", [{"step": 1, "loss": 2.0}], end=torn)])
    assert points(run, "loss") == {1: 2.0}


@pytest.mark.parametrize(
    "damage",
    [
        '{"step": 2, "lo',
        "[1, 2]",
        "7",
        "{}",
        '{"step": 2.5, "loss": 1}',
        '{"step": -1, "loss": 1}',
        '{"step": 1000000000000000000000, "loss": 1}',
        '{"step": true, "loss": 1}',
        '{"step": 2, "loss": 1' + "0" * 400 + "}",
        "[" * 100_000,
        "\x00\x00",
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    folder = write_log(tmp_path / "fit", [{"step": 1, "loss": 2.0}], end=f'\n{damage}\n{{"step": 3, "loss": 1.0}}\n')
    with pytest.raises(InputError, match="line 3 is damaged") as found:
        read_runs([folder])
    assert found.value.where == str(folder / LOG)
    assert len(found.value.what) < 100


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b'{"step": 1, "loss": 2.0}\n\xff\xfe\n')
    with pytest.raises(InputError, match=r"line 2 is damaged: \\xff"):
        read_runs([tmp_path])


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such run"):
        read_runs([tmp_path / "missing"])
    with pytest.raises(InputError, match=f"there is no {LOG}"):
        read_runs([tmp_path])
    for content in ("", "\n\n", '{"step": 1, "lo', '{"step": 1}\n'):
        (tmp_path / LOG).write_text(content)
        with pytest.raises(InputError, match="nothing is logged yet"):
            read_runs([tmp_path])


def test_figures_that_are_no_numbers(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0, "eval_loss": float("nan")}, {"step": 2, "loss": float("inf"), "eval_loss": 3.0}]
    (run,) = read_runs([write_log(tmp_path, rows)])
    assert (run.loss, run.best) == (float("inf"), (2, 3.0))
    (run,) = read_runs([write_log(tmp_path, rows[:1])])
    assert run.best is None


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    places = ["a/x/fit", "b/x/fit", "b/y/fit", "other"]
    paths = [write_log(tmp_path / place, [{"step": 1, "loss": 1.0}]) for place in places]
    assert [run.name for run in read_runs(paths)] == ["a/x/fit", "b/x/fit", "y/fit", "other"]
    assert [run.name for run in read_runs([*paths[2:], paths[3]])] == ["fit", "other", "other (2)"]
    elsewhere = tmp_path / "kept.jsonl"
    elsewhere.write_bytes((paths[3] / LOG).read_bytes())
    assert read_runs([elsewhere])[0].name == "kept"


# -- smoothing ---------------------------------------------------------------------------------------------------------


@given(st.integers(2, 200), st.integers(1, 300), st.floats(-5, 5), st.floats(-5, 5))
def test_smoothing_leaves_a_straight_line(count: int, width: int, start: float, slope: float) -> None:
    values = start + slope * np.arange(count)
    np.testing.assert_allclose(smooth(values, width), values, atol=1e-6)


def test_smoothing_takes_noise_away_up_to_the_ends() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 1000)
    course = 10 * np.exp(-np.arange(1000) / 200)
    error = np.abs(smooth(course + noise, 50) - course)
    assert error.mean() < 0.2
    assert error[[0, -1]].max() < 1
    assert np.array_equal(smooth(noise, 1), noise)


def test_smoothing_keeps_gaps_as_gaps() -> None:
    values = np.array([1.0, 1.0, np.nan, 1.0, np.inf, 1.0])
    found = smooth(values, 3)
    assert np.isnan(found[[2, 4]]).all()
    np.testing.assert_allclose(found[[0, 1, 3, 5]], 1.0)
    assert np.isnan(smooth(np.full(9, np.nan), 5)).all()


def test_the_window_grows_with_the_log() -> None:
    assert [window(count) for count in (1, 10, 200, 10_000)] == [1, 1, 10, 500]


def test_thinning_keeps_the_extremes() -> None:
    values = np.random.default_rng(0).normal(0, 1, 50_000)
    values[[7, 40_000]] = (100, -100)
    values[100:300] = np.nan
    found = thin(Series(np.arange(50_000), values))
    assert len(found.values) <= 2000
    assert (found.values.max(), found.values.min()) == (100, -100)
    assert (np.diff(found.steps) > 0).all()


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_panels_are_those_that_some_run_has(tmp_path: Path) -> None:
    full = read_runs([a_run(tmp_path / "a", 60)])
    assert [panel.key for panel in choose_panels(full, [])] == ["loss", "eval_loss", "learning_rate", "grad_norm"]
    assert [panel.key for panel in choose_panels(full, ["epoch", "loss", "loss"])] == ["epoch", "loss"]
    other = read_runs([write_log(tmp_path / "b", [{"step": 1, "mean_reward": 1.0}])])
    assert [panel.name for panel in choose_panels(other, [])] == ["mean reward"]
    with pytest.raises(UsageError, match="no run has the figure 'los'") as found:
        choose_panels(other, ["los"])
    assert "mean_reward" in str(found.value.hint)


def test_the_picture_has_a_size_that_can_be_sent(tmp_path: Path) -> None:
    runs = read_runs([a_run(tmp_path / str(i), 1500, 2 + i / 5) for i in range(3)])
    panels = choose_panels(runs, [])
    write_curves(tmp_path / "new" / "curves.PNG", runs, panels)
    path = tmp_path / "new" / "curves.PNG"
    assert path.stat().st_size <= 300_000
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width >= 1200
        colours = picture.convert("RGB").getcolors(1 << 20) or []
    seen = [np.array(colour) for _, colour in colours]
    for i in range(3):
        wanted = np.array([int(COLORS[i][j : j + 2], 16) for j in (1, 3, 5)])
        assert min(np.abs(colour - wanted).max() for colour in seen) <= 12
    assert list(path.parent.iterdir()) == [path]


def test_an_svg_says_what_it_shows_and_is_the_same_each_time(tmp_path: Path) -> None:
    runs = read_runs([a_run(tmp_path / name) for name in ("first", "se$c$ond", "_third<&>")])
    panels = choose_panels(runs, [])
    write_curves(tmp_path / "one.svg", runs, panels)
    write_curves(tmp_path / "two.svg", runs, panels)
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    written = re.findall(">([^<>]+)</text>", text)
    for wanted in ["first", "se$c$ond", "_third&lt;&amp;&gt;", "Training loss", "Validation loss", "Gradient norm"]:
        assert wanted in written
    assert written.count("optimizer step") == 4
    assert written.count("nats per token") == 2


def test_runs_differ_in_colour_and_in_dashes(tmp_path: Path) -> None:
    runs = read_runs([a_run(tmp_path / str(i), 20) for i in range(len(COLORS) * len(DASHES))])
    figure = draw(runs, choose_panels(runs, ["eval_loss", "loss"][1:]), smoothing=1)
    lines = figure.axes[0].get_lines()
    looks = {(line.get_color(), str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(looks) == len(runs)
    first, second = lines[:2]
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_panels_show_the_same_steps(tmp_path: Path) -> None:
    runs = read_runs([a_run(tmp_path / "a", 100), a_run(tmp_path / "b", 400)])
    axes = draw(runs, choose_panels(runs, []), None).axes
    assert len({place.get_xlim() for place in axes}) == 1
    assert axes[0].get_xlim()[1] >= 400
    assert axes[2].get_ylim()[0] == 0


def test_a_gradient_that_exploded_gets_a_logarithmic_axis(tmp_path: Path) -> None:
    rows = [{"step": step, "grad_norm": 1.0 if step != 50 else 1000.0, "loss": 5 - step / 100} for step in range(100)]
    runs = read_runs([write_log(tmp_path, rows)])
    loss, gradient = draw(runs, choose_panels(runs, []), None).axes
    assert (loss.get_yscale(), gradient.get_yscale()) == ("linear", "log")


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0, "loss": 1.0}],
        [{"step": 1, "loss": float("nan")}],
        [{"step": step, "loss": float("inf"), "grad_norm": 0.0} for step in range(3)],
        [{"step": 1, "loss": 1e300}, {"step": 2, "loss": -1e300}],
    ],
)
def test_any_log_can_be_drawn(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    runs = read_runs([write_log(tmp_path / "日本" / ("long" * 50), rows)])
    write_curves(tmp_path / "curves.png", runs, choose_panels(runs, []))
    Image.open(tmp_path / "curves.png").load()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1500, "1,500"), (0.25, "0.25"), (3e-4, "3e-4"), (2.5e-6, "2.5e-6"), (-2e-5, "-2e-5")]
)
def test_numbers_at_an_axis(value: float, text: str) -> None:
    assert number(value) == text
