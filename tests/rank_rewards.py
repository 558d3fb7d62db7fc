"""A reward for runs in several processes, which find this file beside the program that starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from earl_cli.rewards.reward import Edit


def alike(edits: Sequence[Edit]) -> list[float]:
    """Without signal in the groups of the last process, whose prompts come last."""
    if not edits:
        raise ValueError("there is nothing to be judged")
    if os.environ.get("RANK") == "1":
        return [0.5] * len(edits)
    return [edit.edited.mean() / 255 for edit in edits]
