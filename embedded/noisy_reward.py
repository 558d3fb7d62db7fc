"""A verifier that is often wrong: the reference reward with noise on it, several times as large as what tells the edits
of one prompt apart. ``earl rl --reward noisy_reward:noisy_reward`` with this folder in PYTHONPATH.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from earl_cli.rewards.reference import reference_reward
from earl_cli.rewards.reward import Edit, Score

NOISE = 0.4
NOISE_AT_A_PLACE = 1.0


def noisy_reward(edits: Sequence[Edit], /) -> list[Score]:
    """The reference reward plus normal noise, on the whole and at every place; equal images have equal noise."""
    return [noisy(score, generator(edit)) for edit, score in zip(edits, reference_reward(edits), strict=True)]


def noisy(score: Score, rng: np.random.Generator) -> Score:
    if score.value is None or score.places is None:
        return score
    places = score.places + NOISE_AT_A_PLACE * rng.standard_normal(score.places.shape)
    return replace(score, value=score.value + NOISE * float(rng.standard_normal()), places=places)


def generator(edit: Edit) -> np.random.Generator:
    content = b"" if edit.edited is None else edit.edited.tobytes()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:8], "big"))
