"""Whether the metrics of several editors may be compared, and the reasons why not."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from earl_cli.evaluation.results import EvalRun

TIMES = frozenset({"seconds", "time", "times", "date", "started", "finished", "when", "took"})
"""Entries of these names are times; they never make two runs different."""
FLOOR = "copy"
"""The editor that returns every source unchanged."""
UNKNOWN, NONE = "unknown", "none"
SETTINGS = {
    "judge.model": "the judge's model",
    "rubrics": "the rubrics' digest",
    "area": "the area in pixels that the judge sees",
    "judge.declaration": "the judge's declaration",
}


def by_benchmark(runs: Sequence[EvalRun]) -> dict[str, list[EvalRun]]:
    """The runs of each benchmark, both in the order given."""
    found: dict[str, list[EvalRun]] = {}
    for run in runs:
        found.setdefault(run.benchmark, []).append(run)
    return found


def benchmark_title(runs: Sequence[EvalRun]) -> str:
    """The title of these runs' benchmark, or its name where no run has a title."""
    titles = (str(_benchmark(run).get("title") or "") for run in runs)
    return next(filter(None, titles), runs[0].benchmark or "benchmark")


def editor_names(runs: Sequence[EvalRun]) -> list[str]:
    """A name for each of a benchmark's runs that no other has: a second ``x`` is called ``x (2)``."""
    names: list[str] = []
    for run in runs:
        name, again = run.editor or "editor", 2
        while name in names:
            name, again = f"{run.editor or 'editor'} ({again})", again + 1
        names.append(name)
    return names


def flat(settings: Mapping[str, Any], without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Nested settings as texts by dotted names, in their order; names in ``without`` are left out at any depth."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if name in without:
            continue
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{below}": text for below, text in flat(value, without).items()}
        elif value is None or value in ({}, []):
            found[name] = NONE
        elif isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
            found[name] = ", ".join(value)
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return found


def comparability(runs: Sequence[EvalRun]) -> list[str]:
    """A sentence for each reason not to compare runs of one benchmark.

    Compared are the benchmark's fingerprint, samples, instructions and seeds, and all that the scoring depends on.
    Runs of different benchmarks are never in one table, so they are not compared.
    """
    sentences = []
    for some in by_benchmark(runs).values():
        title, names = benchmark_title(some), editor_names(some)
        if len(some) > 1:
            reasons = [*_differing_samples(some, names), *_differing_scoring(some, names)]
            sentences += [f"{title}: {reason}" for reason in reasons]
    return sentences


def is_floor(run: EvalRun) -> bool:
    """Whether this editor returns every source unchanged, whatever the seed."""
    editor = run.about.get("editor")
    return run.editor == FLOOR or (isinstance(editor, Mapping) and editor.get("kind") == FLOOR)


def seeds_of(run: EvalRun) -> list[int]:
    return sorted({line.result.seed for line in run.lines})


def joined(parts: Sequence[str]) -> str:
    """As prose: a, b and c."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _benchmark(run: EvalRun) -> Mapping[str, Any]:
    about = run.about.get("benchmark")
    return about if isinstance(about, Mapping) else {}


def _differing_samples(runs: Sequence[EvalRun], names: Sequence[str]) -> list[str]:
    prints = [str(_benchmark(run).get("fingerprint") or UNKNOWN) for run in runs]
    reasons = _differing("the benchmark's fingerprint", names, prints, prints)
    numbers = [frozenset(line.result.number for line in run.lines) for run in runs]
    if len(set(numbers)) > 1:
        shared = len(frozenset.intersection(*numbers))
        counts = [f"{len(each)} samples" for each in numbers]
        reasons.append(f"not the same samples were edited: {_parts(names, counts)}; {shared} are in all.")
    random = [(name, run) for run, name in zip(runs, names, strict=True) if not is_floor(run)]
    theirs = [name for name, _ in random]
    seeds = [seeds_of(run) for _, run in random]
    texts = [f"seed{'s' * (len(each) != 1)} {joined([str(seed) for seed in each])}" for each in seeds]
    reasons += _differing("the set of seeds", theirs, list(map(tuple, seeds)), texts)
    if not reasons:
        keys = [frozenset(line.result.key for line in run.lines) for _, run in random]
        reasons += _differing("the set of samples and seeds", theirs, keys, [f"{len(each)} edits" for each in keys])
    first = {line.result.number: line.result.edit_instruction for line in runs[0].lines}
    for run, name in zip(runs[1:], names[1:], strict=True):
        other_words = {line.result.number: line.result.edit_instruction for line in run.lines}
        both = first.keys() & other_words.keys()
        other = sum(first[number] != other_words[number] for number in both)
        if other:
            of_all = f"{other} of {len(both)} shared samples"
            reasons.append(f"the instruction of {of_all} isn't the same for {names[0]} and {name}.")
    return reasons


def _differing_scoring(runs: Sequence[EvalRun], names: Sequence[str]) -> list[str]:
    known = [(name, flat(run.scoring, TIMES)) for run, name in zip(runs, names, strict=True) if _is_known(run)]
    unknown = [name for run, name in zip(runs, names, strict=True) if not _is_known(run)]
    reasons = [f"it isn't known how {joined(unknown)} was scored."] if known and unknown else []
    every = dict.fromkeys(key for _, settings in known for key in settings)
    for key in every:
        if not any(other.startswith(f"{key}.") for other in every):
            values = [settings.get(key, NONE) for _, settings in known]
            what = SETTINGS.get(key, f"the scoring's {key.replace('.', ' ').replace('_', ' ')}")
            reasons += _differing(what, [name for name, _ in known], values, values)
    return reasons


def _is_known(run: EvalRun) -> bool:
    return bool(run.scoring) and "published" not in run.scoring


def _differing(what: str, names: Sequence[str], values: Sequence[Hashable], texts: Sequence[str]) -> list[str]:
    return [f"{what} differs: {_parts(names, texts)}."] if len(set(values)) > 1 else []


def _parts(names: Sequence[str], texts: Sequence[str]) -> str:
    groups: dict[str, list[str]] = {}
    for name, text in zip(names, texts, strict=True):
        groups.setdefault(text, []).append(name)
    return ", ".join(f"{text} ({joined(some)})" for text, some in groups.items())
