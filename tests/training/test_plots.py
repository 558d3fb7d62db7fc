"""Plots of the logs of runs, of supervised training and of reinforcement learning."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from logs import a_rl_run, a_run, write_log
from PIL import Image

from earl_cli.errors import UsageError
from earl_cli.training.common.curves import read_runs
from earl_cli.training.common.plots import (
    COLORS,
    DASHES,
    RL,
    SFT,
    PlotSheet,
    choose_panels,
    render,
    write_curves,
)


def keys(sheet: PlotSheet) -> list[str]:
    return [panel.key for panel in sheet.panels]


def test_panels_are_those_that_some_run_has(tmp_path: Path) -> None:
    full = read_runs([a_run(tmp_path / "a", 60)])
    assert keys(choose_panels(SFT, full, [])) == ["loss", "eval_loss", "learning_rate", "grad_norm"]
    assert keys(choose_panels(SFT, full, ["epoch", "loss", "loss"])) == ["epoch", "loss"]
    other = read_runs([write_log(tmp_path / "b", [{"step": 1, "mean_reward": 1.0}])])
    assert [panel.name for panel in choose_panels(SFT, other, []).panels] == ["mean reward"]
    with pytest.raises(UsageError, match="no run has the metric 'los'") as found:
        choose_panels(SFT, other, ["los"])
    assert "mean_reward" in str(found.value.hint)


def test_the_image_has_a_size_that_can_be_sent(tmp_path: Path) -> None:
    runs = read_runs([a_run(tmp_path / str(i), 1500, 2 + i / 5) for i in range(3)])
    sheet = choose_panels(SFT, runs, [])
    write_curves(tmp_path / "new" / "curves.PNG", runs, sheet)
    path = tmp_path / "new" / "curves.PNG"
    assert path.stat().st_size <= 300_000
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1200
        colours = image.convert("RGB").getcolors(1 << 20) or []
    seen = [np.array(colour) for _, colour in colours]
    for i in range(3):
        wanted = np.array([int(COLORS[i][j : j + 2], 16) for j in (1, 3, 5)])
        assert min(np.abs(colour - wanted).max() for colour in seen) <= 12
    assert list(path.parent.iterdir()) == [path]


def test_an_svg_names_its_metrics_and_is_reproducible(tmp_path: Path) -> None:
    runs = read_runs([a_run(tmp_path / name) for name in ("first", "se$c$ond", "_third<&>")])
    sheet = choose_panels(SFT, runs, [])
    write_curves(tmp_path / "one.svg", runs, sheet)
    write_curves(tmp_path / "two.svg", runs, sheet)
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    written = re.findall(">([^<>]+)</text>", text)
    for wanted in ["first", "se$c$ond", "_third&lt;&amp;&gt;", "Training loss", "Validation loss", "Gradient norm"]:
        assert wanted in written
    assert written.count("optimizer step") == 4
    assert written.count("nats per token") == 2


def test_runs_differ_in_colour_and_in_dashes(tmp_path: Path) -> None:
    runs = read_runs([a_run(tmp_path / str(i), 20) for i in range(len(COLORS) * len(DASHES))])
    figure = render(runs, choose_panels(SFT, runs, ["eval_loss", "loss"][1:]), smoothing=1)
    lines = figure.axes[0].get_lines()
    looks = {(line.get_color(), str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(looks) == len(runs)
    first, second = lines[:2]
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_panels_show_the_same_steps(tmp_path: Path) -> None:
    runs = read_runs([a_run(tmp_path / "a", 100), a_run(tmp_path / "b", 400)])
    axes = render(runs, choose_panels(SFT, runs, []), None).axes
    assert len({place.get_xlim() for place in axes}) == 1
    assert axes[0].get_xlim()[1] >= 400
    assert axes[2].get_ylim()[0] == 0


def test_a_gradient_that_exploded_gets_a_logarithmic_axis(tmp_path: Path) -> None:
    rows = [{"step": step, "grad_norm": 1.0 if step != 50 else 1000.0, "loss": 5 - step / 100} for step in range(100)]
    runs = read_runs([write_log(tmp_path, rows)])
    loss, gradient = render(runs, choose_panels(SFT, runs, []), None).axes
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
def test_any_log_can_be_plotted(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    runs = read_runs([write_log(tmp_path / "日本" / ("long" * 50), rows)])
    panels = choose_panels(SFT, runs, [])
    assert len(render(runs, panels, None).axes) == len(rows[0]) - 1
    write_curves(tmp_path / "curves.png", runs, panels)
    Image.open(tmp_path / "curves.png").load()


# -- reinforcement learning --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sheet_of_reinforcement_learning(tmp_path: Path) -> None:
    runs = read_runs([a_rl_run(tmp_path / "a"), a_rl_run(tmp_path / "b", 150, seed=1)])
    sheet = choose_panels(RL, runs, [])
    assert keys(sheet)[:5] == ["reward/mean", "validation/reward/mean", "reward/group_std", "kl", "entropy"]
    assert "loss" not in keys(sheet)
    write_curves(tmp_path / "curves.svg", runs, sheet)
    written = re.findall(">([^<>]+)</text>", (tmp_path / "curves.svg").read_text(encoding="utf-8"))
    assert written.count("iteration") == len(sheet.panels) == 12
    assert "optimizer step" not in written
    assert "line: mean, band: 10 % to 90 %" in written


def test_any_metric_of_the_log_can_be_plotted(tmp_path: Path) -> None:
    runs = read_runs([a_rl_run(tmp_path)])
    sheet = choose_panels(RL, runs, list(runs[0].metrics))
    assert len(sheet.panels) == len(runs[0].metrics) > 20
    assert len({panel.name for panel in sheet.panels}) == len(sheet.panels)
    assert choose_panels(RL, runs, ["reward/p10"]).panels[0].name == "reward p10"


def test_the_band_lies_between_its_metrics(tmp_path: Path) -> None:
    rows = [{"step": step, "reward/mean": 5.0, "reward/p10": 2.0, "reward/p90": 7.5} for step in range(1, 101)]
    runs = read_runs([write_log(tmp_path / "a", rows), write_log(tmp_path / "b", [{"step": 1, "reward/mean": 1.0}])])
    (axes,) = render(runs, choose_panels(RL, runs, ["reward/mean"]), None).axes
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]  # type: ignore[index]
    assert (heights.min(), heights.max()) == pytest.approx((2.0, 7.5))
    assert len(axes.get_lines()) == 2


def test_few_panels_stand_in_two_columns_and_many_in_three(tmp_path: Path) -> None:
    runs = read_runs([a_rl_run(tmp_path)])
    sheets = [choose_panels(RL, runs, keys) for keys in (["kl", "loss", "memory"], [])]
    places = [[axes.get_subplotspec() for axes in render(runs, sheet, None).axes] for sheet in sheets]
    widths = [len({place.colspan.start for place in row if place}) for row in places]
    assert widths == [2, 3]
