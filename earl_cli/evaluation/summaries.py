"""A run's figures as JSON: the published names, and beside mean and deviation what makes them trustworthy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from earl_cli.evaluation.columns import PUBLISHED
from earl_cli.evaluation.results import Run
from earl_cli.evaluation.statistics import DIMENSIONS, Group, summarize


def summary_document(run: Run) -> dict[str, Any]:
    """What summary.json holds: all that figures depend on, then groups of lines by dimension.

    Each figure has mean and std as published, the 95 % interval, and how many values are in it and missing.
    """
    groups = summarize(run)
    return {
        **run.about,
        "scoring": dict(run.scoring),
        "unreadable": len(run.unreadable),
        "overall": group_document(groups[0]),
        **{
            f"by {dimension}": {group.key: group_document(group) for group in groups if group.by == dimension}
            for dimension in DIMENSIONS[1:]
            if any(group.by == dimension for group in groups)
        },
    }


def group_document(group: Group) -> dict[str, Any]:
    """A group of lines: its size, and its figures under the published names (VIE_SC, …) where they have one."""
    figures = {
        name.upper() if name in PUBLISHED else name: finite(asdict(each)) for name, each in group.columns.items()
    }
    return {"edits": group.samples, "not_drawn": group.undrawn, "figures": figures}


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures for JSON, which knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
