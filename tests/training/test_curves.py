"""Logs of runs read back, resumed and incomplete ones too, smoothed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import a_rl_run, write_log

from earl_cli.errors import InputError
from earl_cli.training.common.curves import LOG, RunCurves, read_run, read_runs, smooth, smoothing_window
from earl_cli.training.common.plots import RL


def points(run: RunCurves, key: str) -> dict[int, float]:
    series = run.metrics[key]
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
    assert (run.name, run.steps, run.last("loss"), run.best("eval_loss", "lowest")) == ("fit", 20, 4.0, (10, 5.5))
    assert run.best("eval_loss", "highest") == (20, 5.6)
    assert (run.last("reward"), run.best("reward", "highest")) == (None, None)
    assert points(run, "loss") == {1: 9.0, 10: 5.0, 20: 4.0}
    assert points(run, "learning_rate") == {1: 1e-5, 10: 2e-5}
    assert set(run.metrics) == {"loss", "learning_rate", "eval_loss", "eval_runtime"}
    assert read_runs([tmp_path / "fit" / LOG])[0].name == "fit"


def test_every_metric_of_an_old_log_has_its_present_name(tmp_path: Path) -> None:
    old = read_run(Path(__file__).parent / "old_logs" / "rl.jsonl", "old")
    assert old.command == "rl"
    present = read_run(a_rl_run(tmp_path, 50) / LOG, "present").metrics.keys() - {"rewards/perceptual_quality/mean"}
    assert old.metrics.keys() - present == {f"rewards/{part}/mean" for part in ("colour", "removed", "structure")}
    assert present <= old.metrics.keys()
    assert {panel.key for panel in RL.panels} <= present
    assert points(old, "validation/reward/mean").keys() == {0, 1, 2}


def test_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    first = [{"step": step, "loss": 1.0} for step in (10, 20, 30, 35, 40)] + [{"step": 40, "eval_loss": 1.0}]
    again = [{"step": step, "loss": 2.0} for step in (20, 30)] + [{"step": 30, "loss": 3.0}]
    (run,) = read_runs([write_log(tmp_path / "fit", [*first, *again])])
    assert points(run, "loss") == {10: 1.0, 20: 2.0, 30: 3.0}
    assert run.steps == 30
    assert run.best("eval_loss", "lowest") is None


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


def test_metrics_that_are_not_finite(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0, "eval_loss": float("nan")}, {"step": 2, "loss": float("inf"), "eval_loss": 3.0}]
    (run,) = read_runs([write_log(tmp_path, rows)])
    assert (run.last("loss"), run.best("eval_loss", "lowest")) == (float("inf"), (2, 3.0))
    assert run.best("loss", "highest") == (1, 1.0)
    (run,) = read_runs([write_log(tmp_path, rows[:1])])
    assert run.best("eval_loss", "lowest") is None


def test_runs_of_one_name_get_distinct_names(tmp_path: Path) -> None:
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
    assert [smoothing_window(count) for count in (1, 10, 200, 10_000)] == [1, 1, 10, 500]
