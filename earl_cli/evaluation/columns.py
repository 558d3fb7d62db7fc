"""The figures that an edit gets, under the names that result files and tables have for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """``title`` heads tables; ``top`` is the best value there can be, None where there is no bound."""

    title: str
    higher_is_better: bool = True
    top: float | None = None
    digits: int = 2


COLUMNS: Mapping[str, Column] = {
    "vie_all": Column("VIEScore", top=10),
    "vie_sc": Column("SC", top=10),
    "vie_pq": Column("PQ", top=10),
    "edit_success": Column("edit success", top=10),
    "overedit": Column("no over-editing", top=10),
    "looks_natural": Column("natural", top=10),
    "no_artifact": Column("no artifacts", top=10),
    "ground_score": Column("ground score", top=10),
    "reference": Column("reference", top=1, digits=3),
    "l1": Column("L1", higher_is_better=False, top=0, digits=4),
    "l2": Column("L2", higher_is_better=False, top=0, digits=4),
    "psnr": Column("PSNR", digits=2),
    "ssim": Column("SSIM", top=1, digits=3),
    "lpips": Column("LPIPS", higher_is_better=False, top=0, digits=3),
}
"""Judged figures from 0 to 10 (``overedit``: 10 is none), then those that compare with the true edit."""

PUBLISHED = ("vie_sc", "vie_pq", "vie_all", "edit_success", "overedit", "looks_natural", "no_artifact")
"""The columns that the published scoring writes, in its order; its summaries spell them in capitals."""
