"""Tables say what was measured, and mark what can't be compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from earl_cli.evaluation import statistics
from earl_cli.evaluation.comparing import comparability
from earl_cli.evaluation.results import EditResult, EvalRun, ScoredResult
from earl_cli.evaluation.tables import latex, markdown, tables_of

SCORING: Mapping[str, Any] = {
    "judge": {"model": "judge-7b"},
    "rubrics": "4c1d",
    "area": 1024,
    "metrics": {"lpips": {"net": "alex"}},
    "versions": {"torchmetrics": "1.9"},
    "seconds": 12.5,
}


def run(
    editor: str,
    scores: Sequence[Mapping[str, float]],
    *,
    benchmark: str = "edits",
    seeds: Sequence[int] = (0,),
    scoring: Mapping[str, Any] = SCORING,
    fingerprint: str = "f00d",
    tasks: Sequence[str] = ("color",),
    sources: Sequence[str] = ("photos",),
    lines: Sequence[ScoredResult] | None = None,
) -> EvalRun:
    """Line n has ``scores[n]``, and a source image of its own."""
    made = [
        ScoredResult(
            EditResult(
                number=n,
                seed=seed,
                id=f"e{n}",
                edit_instruction=f"edit {n}",
                original_image="a.png",
                edited_image="b.png",
                task=tasks[n % len(tasks)],
                source=sources[n % len(sources)],
                picture=f"p{n}",
            ),
            metrics,
        )
        for n, metrics in enumerate(scores)
        for seed in seeds
    ]
    about = {"benchmark": {"name": benchmark, "title": f"The {benchmark}", "fingerprint": fingerprint}}
    return EvalRun(Path(), benchmark, editor, about, scoring, tuple(made if lines is None else lines))


def vie(*values: float) -> list[dict[str, float]]:
    return [{"vie_all": value} for value in values]


def rows_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_row_an_editor_with_means_intervals_and_the_floor_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MIN_IMAGES", 2)
    runs = [run("copy", vie(0, 1)), run("a", vie(4, 6)), run("b", vie(8, 10))]
    text = markdown(runs)
    head, marks, *rows = rows_of(text)
    assert head == ["editor", "VIEScore ↑ (of 10)", "samples", "source images"]
    assert marks == ["---", "---:", "---:", "---:"]
    assert [row[0] for row in rows] == ["a", "b", r"_copy_ (floor)"]
    assert [row[1] for row in rows] == ["5.00 ± 1.00", "**9.00 ± 1.00**", "0.50 ± 0.50"]
    assert {tuple(row[2:]) for row in rows} == {("2", "2")}
    assert text.startswith("## The edits\n")
    assert "judge model: judge-7b; rubrics: 4c1d; area: 1024; metrics lpips net: alex" in text
    assert "12.5" not in text


def test_the_best_mean_is_bold_by_the_direction_of_its_column_and_never_the_floor_nor_a_lone_editor() -> None:
    runs = [run("a", [{"l1": 0.2}]), run("b", [{"l1": 0.10004}]), run("c", [{"l1": 0.1}]), run("copy", [{"l1": 0.0}])]
    assert [row[1] for row in rows_of(markdown(runs))[2:]] == ["0.2000", "**0.1000**", "**0.1000**", "0.0000"]
    assert "**" not in markdown([runs[0], runs[3]])


def test_missing_and_invalid_edits_are_counted_only_if_there_are_any() -> None:
    result = EditResult(0, 0, "e", "edit", "a.png", None, problem="cut off")
    lines = [
        ScoredResult(result, {"vie_all": 0.0, "vie_sc": 0.0}),
        ScoredResult(EditResult(1, 0, "f", "edit", "a.png", "b.png"), {"vie_sc": 1.0}, {"vie_all": "no reply"}),
    ]
    text = markdown([run("a", [], lines=lines), run("b", [{"vie_all": 1, "vie_sc": 1}] * 2)])
    head, _, first, second = rows_of(text)
    assert head[-2:] == ["missing", "invalid"]
    assert first[-2:] == ["1 in VIEScore", "1"]
    assert second[-2:] == ["0", "0"]
    assert first[1] == "0.00"
    assert "Missing values are in no mean" in text


def test_tables_by_source_task_both_and_seed_follow_where_there_are_several() -> None:
    several = run("a", vie(*range(8)), seeds=(0, 1), tasks=("color", "add"), sources=("x", "x", "y", "y"))
    tables = tables_of([several])
    assert [table.by for table in tables] == ["all", "source", "task", "source x task", "seed"]
    assert [[row.group.key for row in table.rows] for table in tables[1:3]] == [["x", "y"], ["add", "color"]]
    assert [table.extra for table in tables[:2]] == [["samples", "source images", "edits"], ["edits"]]
    assert (tables[0].rows[0].samples, tables[0].rows[0].group.samples) == (8, 16)
    assert "### The edits, by source and task" in markdown([several])
    assert [table.by for table in tables_of([run("a", vie(1, 2))])] == ["all"]


def test_each_benchmark_has_its_own_tables() -> None:
    runs = [run("a", vie(1)), run("a", [{"psnr": 20}], benchmark="other"), run("b", vie(2))]
    assert [(table.benchmark, [row.editor for row in table.rows]) for table in tables_of(runs)] == [
        ("edits", ["a", "b"]),
        ("other", ["a"]),
    ]
    assert comparability(runs) == []


HOSTILE = "a|b\n<b>&_*`[x](y) 50% $x^2~#{1}\\"


def test_no_text_breaks_a_markdown_table() -> None:
    text = markdown([run(HOSTILE, vie(1)), run("b", vie(2))])
    (line,) = [line for line in text.splitlines() if "50%" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 5
    assert "<" not in line
    assert r"a\|b &lt;b&gt;&amp;\_\*\`\[x\](y) 50% $x^2\~\#{1}\\" in line


def test_no_text_breaks_a_latex_table() -> None:
    text = latex([run(HOSTILE, vie(1)), run("b", vie(2))])
    (line,) = [line for line in text.splitlines() if r"50\%" in line]
    assert line.startswith(r"a\textbar{}b \textless{}b\textgreater{}\&\_*`[x](y) 50\% \$x\textasciicircum{}2")
    assert line.count(" & ") == 3
    assert line.endswith(r"\\")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{2.00}", r"VIEScore $\uparrow$ (of 10)"):
        assert rule in text


def test_runs_of_one_kind_can_be_compared() -> None:
    later = {**SCORING, "seconds": 99.0}
    assert comparability([run("a", vie(1, 2)), run("b", vie(3, 4), scoring=later)]) == []
    assert comparability([]) == comparability([run("a", vie(1))]) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"fingerprint": "beef"}, "The edits: the benchmark's fingerprint differs: f00d (a), beef (b)."),
        ({"seeds": (0, 1)}, "The edits: the set of seeds differs: seed 0 (a), seeds 0 and 1 (b)."),
        ({"scoring": SCORING | {"judge": {"model": "gpt"}}}, "the judge's model differs: judge-7b (a), gpt (b)."),
        ({"scoring": SCORING | {"judge": None}}, "the judge's model differs: judge-7b (a), none (b)."),
        ({"scoring": SCORING | {"rubrics": "0000"}}, "the rubrics' digest differs: 4c1d (a), 0000 (b)."),
        ({"scoring": SCORING | {"area": 99}}, "the area in pixels that the judge sees differs: 1024 (a), 99 (b)."),
        (
            {"scoring": SCORING | {"metrics": {"lpips": {"net": "vgg"}}}},
            "the scoring's metrics lpips net differs: alex (a), vgg (b).",
        ),
        (
            {"scoring": SCORING | {"versions": {"torchmetrics": "2.0"}}},
            "the scoring's versions torchmetrics differs: 1.9 (a), 2.0 (b).",
        ),
        ({"scoring": {"published": "x.jsonl"}}, "it isn't known how b was scored."),
    ],
)
def test_each_reason_not_to_compare_is_shown_once(other: dict[str, Any], expected: str) -> None:
    runs = [run("a", vie(1, 2)), run("b", vie(1, 2), **other)]
    (reason,) = comparability(runs)
    assert expected in reason
    assert "Not comparable" in markdown(runs)
    assert f"% Not comparable: {reason}" in latex(runs)


def test_other_samples_or_instructions_are_other_samples() -> None:
    a, b = run("a", vie(1, 2, 3)), run("b", vie(1, 2))
    (reason,) = comparability([a, b])
    assert "not the same samples were edited: 3 samples (a), 2 samples (b); 2 are in all." in reason
    other = run(
        "c", [], lines=[ScoredResult(EditResult(0, 0, "e0", "something else", "a.png", "b.png"), {"vie_all": 1.0})]
    )
    assert "the instruction of 1 of 1 shared samples isn't the same for a and c." in " ".join(comparability([a, other]))


def test_published_results_that_say_nothing_of_themselves_have_tables_too() -> None:
    lines = [ScoredResult(EditResult(0, 0, "0", "edit", "a.png", "b.png"), {"vie_all": 1.0})]
    bare = [EvalRun(Path(), "folder", name, {}, {}, tuple(lines)) for name in ("x", "x")]
    assert [row[0] for row in rows_of(markdown(bare))[2:]] == ["x", "x (2)"]
    assert comparability(bare) == []


def test_results_that_were_not_scored_yet_say_so() -> None:
    text = markdown([run("a", [{}, {}], scoring={})])
    assert rows_of(text)[0] == ["editor", "samples", "source images"]
    assert "Nothing was scored." in text
