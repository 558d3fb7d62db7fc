"""What `make reproduce` found: the table, the curves, and the paper's findings with their intervals.

``python embedded/table.py WORK`` reads the results of embedded/reproduce.py and writes table.md and curves.png beside.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edits import to_bytes
from numpy.typing import NDArray
from pairs import COMPLEX
from reproduce import Trained, models, root_of

from earl_cli.evaluation.results import RUN, EvalRun, find_results, load_run
from earl_cli.evaluation.statistics import Estimate, cluster, estimate
from earl_cli.generation.editing import decode_image, encode_image
from earl_cli.images.image_file import open_image
from earl_cli.models.bundle import load_model
from earl_cli.rewards.reference import reference_reward
from earl_cli.rewards.reward import Edit
from earl_cli.training.common.curves import read_run

SIMPLE = ("global", "object")
KINDS = (*SIMPLE, *COMPLEX)
METRICS = ("l1", "psnr", "ssim")
SFT = {"s": "SFT (S)", "sc": "SFT (SC)", "think": "SFT (think)"}
RL = {"": "", "s": " + RL (S)", "sc": " + RL (SC)", "noisy": " + RL (S), noisy verifier"}
CEILING = "the target's own codes"
Row = tuple[str, str]
Values = Mapping[int, float]


@dataclass(frozen=True)
class Samples:
    """The test set: by a sample's number its kind, and the image that it shares with others."""

    kinds: Mapping[int, str]
    pictures: Mapping[int, str]

    def among(self, kinds: Sequence[str]) -> list[int]:
        return [number for number, kind in sorted(self.kinds.items()) if kind in kinds]


@dataclass(frozen=True)
class Finding:
    """A claim about rows: that ``better`` minus ``worse`` is more than nothing, on edits of these kinds."""

    claim: str
    better: Row
    worse: Row
    kinds: tuple[str, ...]


FINDINGS = (
    Finding("RL after SFT helps simple edits", ("s", "s"), ("s", ""), SIMPLE),
    Finding("RL after SFT helps complex edits", ("s", "sc"), ("s", ""), COMPLEX),
    Finding("complex edits help when they come in RL", ("s", "sc"), ("s", "s"), KINDS),
    Finding("complex edits help when they come in SFT", ("sc", ""), ("s", ""), KINDS),
    Finding("… on simple edits", ("sc", ""), ("s", ""), SIMPLE),
    Finding("… on complex edits", ("sc", ""), ("s", ""), COMPLEX),
    Finding("reasoning before the edit helps after SFT", ("think", ""), ("s", ""), SIMPLE),
    Finding("reasoning before the edit helps after RL (SC)", ("think", "sc"), ("s", "sc"), KINDS),
    Finding("a better verifier gives a better policy", ("s", "s"), ("s", "noisy"), SIMPLE),
)


def read(work: Path) -> tuple[Samples, dict[Trained, EvalRun]]:
    """All that was evaluated, by what was trained."""
    named = {model.name: model for model in models()}
    found = {}
    folders = find_results([root_of(work) / "results"])
    for folder in sorted(folders, key=lambda each: (each / RUN).stat().st_mtime):  # of a model trained again the last
        run = load_run(folder)
        if run.editor in named:
            found[named[run.editor]] = run
    missing = set(named.values()) - set(found)
    if missing:
        raise SystemExit(f"not evaluated yet: {', '.join(sorted(model.name for model in missing))}")
    unscored = [run.editor for run in found.values() if any("reference" not in line.scores for line in run.lines)]
    if unscored:
        raise SystemExit(f"pictures are gone, or not all are scored: {', '.join(unscored)}")
    lines = next(iter(found.values())).lines
    kinds = {line.result.number: line.result.task for line in lines}
    return Samples(kinds, {line.result.number: cluster(line) for line in lines}), found


def seeds_of(runs: Mapping[Trained, EvalRun], row: Row) -> set[int]:
    return {model.seed for model in runs if (model.sft, model.rl) == row}


def values(runs: Mapping[Trained, EvalRun], row: Row, column: str, seeds: Collection[int]) -> dict[int, float]:
    """The column of each sample, averaged over these training seeds.

    Where no image came, the reference is the worst there is; other metrics are of the valid edits alone.
    """
    found: dict[int, list[float]] = {}
    for seed in seeds:
        for line in runs[Trained(*row, seed)].lines:
            if column in line.scores:
                found.setdefault(line.result.number, []).append(line.scores[column])
    return {number: sum(each) / len(each) for number, each in found.items()}


def mean(samples: Samples, of: Values, kinds: Sequence[str]) -> Estimate:
    numbers = [number for number in samples.among(kinds) if number in of]
    return estimate([of[number] for number in numbers], [samples.pictures[number] for number in numbers])


def change(samples: Samples, runs: Mapping[Trained, EvalRun], claim: Finding, seeds: Collection[int]) -> Estimate:
    """What ``better`` has more than ``worse``, of the same training seeds: edit by edit, whole images resampled."""
    better, worse = (values(runs, row, "reference", seeds) for row in (claim.better, claim.worse))
    return mean(samples, {number: better[number] - worse[number] for number in better}, claim.kinds)


def answer(found: Estimate) -> str:
    if found.low > 0:
        return "yes"
    return "no: it harms" if found.high < 0 else "not decided"


def cell(found: Estimate, sign: str = "", digits: int = 3) -> str:
    return f"{found.mean:{sign}.{digits}f} ({found.low:{sign}.{digits}f} to {found.high:{sign}.{digits}f})"


def name_of(row: Row) -> str:
    return SFT[row[0]] + RL[row[1]]


def ceiling(pairs: Path) -> dict[int, float]:
    """The reference score of each target's own codes: the most that a model can reach."""
    model = load_model(device="cpu")
    found = {}
    for number, line in enumerate((pairs / "pairs.jsonl").read_text().splitlines()):
        row = json.loads(line)
        source, target = (open_image(pairs / row[part]).rgb for part in ("source", "edited"))
        generated = to_bytes(decode_image(model, encode_image(model, target)))
        edit = Edit(row["id"], row["instruction"], np.asarray(source), generated, np.asarray(target))
        value = reference_reward([edit])[0].value
        assert value is not None, edit.id
        found[number] = value
    return found


def tables(samples: Samples, runs: Mapping[Trained, EvalRun], most: Values) -> str:
    """The table, the same by kind of edit and with other metrics, and the findings; ``most`` is each edit's ceiling."""
    rows = list(dict.fromkeys((model.sft, model.rl) for model in models()))
    seeds = {row: seeds_of(runs, row) for row in rows}
    reference = {row: values(runs, row, "reference", seeds[row]) for row in rows}
    text = ["| training | seeds | simple | complex | all |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [cell(mean(samples, reference[row], kinds)) for kinds in (SIMPLE, COMPLEX, KINDS)]
        text.append(f"| {name_of(row)} | {len(seeds[row])} | {' | '.join(cells)} |")
    cells = [cell(mean(samples, most, kinds)) for kinds in (SIMPLE, COMPLEX, KINDS)]
    text.append(f"| {CEILING} | | {' | '.join(cells)} |")
    heads = [*KINDS, *(metric.upper() for metric in METRICS), "invalid"]
    text += ["", f"| training | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for row in rows:
        metrics = [f"{mean(samples, reference[row], (kind,)).mean:.3f}" for kind in KINDS]
        for metric, digits in zip(METRICS, (4, 2, 3), strict=True):
            metrics.append(f"{mean(samples, values(runs, row, metric, seeds[row]), KINDS).mean:.{digits}f}")
        lines = [line for seed in seeds[row] for line in runs[Trained(*row, seed)].lines]
        missing = sum(line.result.edited_image is None for line in lines) / len(lines)
        text.append(f"| {name_of(row)} | {' | '.join(metrics)} | {missing:.0%} |")
    metrics = [f"{mean(samples, most, (kind,)).mean:.3f}" for kind in KINDS]
    text.append(f"| {CEILING} | {' | '.join(metrics)} |{' |' * (len(METRICS) + 1)}")
    text += ["", "| finding | better − worse | difference | seed by seed | answer |", "| --- " * 5 + "|"]
    for finding in FINDINGS:
        shared = sorted(seeds[finding.better] & seeds[finding.worse])
        found = change(samples, runs, finding, shared)
        each = ", ".join(f"{change(samples, runs, finding, [seed]).mean:+.3f}" for seed in shared)
        compared = f"{name_of(finding.better)} − {name_of(finding.worse)}"
        text.append(f"| {finding.claim} | {compared} | {cell(found, '+')} | {each} | {answer(found)} |")
    return "\n".join(text) + "\n"


def curves(work: Path, target: Path) -> None:
    """The reward by iteration, as a running mean; of several seeds the mean, and a band from the least to the most."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    keys = (
        ("reward/mean", "reward of the edits it learns from"),
        ("validation/reward/mean", "held-out pictures and phrases"),
    )
    by_row: dict[Row, list[Path]] = {}
    for model in models():
        if model.rl:
            by_row.setdefault((model.sft, model.rl), []).append(root_of(work) / "models" / model.name / "log.jsonl")
    for (row, logs), colour in zip(by_row.items(), pyplot.colormaps["tab10"].colors, strict=False):
        found = [read_run(log, str(log)) for log in logs]
        for panel, (key, title) in zip(panels, keys, strict=True):
            steps = found[0].metrics[key].steps
            curves = np.array([smooth(run.metrics[key].values, 8 if key == "reward/mean" else 1) for run in found])
            panel.plot(steps, curves.mean(axis=0), label=name_of(row), color=colour)
            panel.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2, linewidth=0)
            panel.set(title=title, xlabel="iteration")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(target, dpi=110)


def smooth(given: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The mean of the last ``width`` values, fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], given]))
    ends = np.arange(1, len(given) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def main(work: Path) -> None:
    samples, runs = read(work)
    text = tables(samples, runs, ceiling(work / "pairs/test"))
    root = root_of(work)
    (root / "table.md").write_text(text)
    curves(work, root / "curves.png")
    print(text)
    print(f"{root / 'table.md'}, {root / 'curves.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
