"""The flags for the data sets that EARL was trained on, by the names of their published tokenized folders."""

from __future__ import annotations

from dataclasses import dataclass

from earl_cli.data.columns import Columns
from earl_cli.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """What a preset sets: where the data are and which columns hold what; every flag that is given wins over it.

    ``place`` None: the set isn't on the Hub as pairs; a copy of one's own has to be named.
    """

    place: str | None
    columns: Columns
    split: str | None = "train"


_PAIRS = Columns("source_image", "edited_image", "edit_instruction")  # as the paper's own copies name them

PRESETS = {
    "omniedit": Preset(
        "TIGER-Lab/OmniEdit-Filtered-1.2M", Columns("src_img", "edited_img", "edited_prompt_list", "omni_edit_id")
    ),
    "magic_brush": Preset("osunlp/MagicBrush", Columns("source_img", "target_img", "instruction")),
    "human-edit": Preset("BryanW/HumanEdit", Columns("INPUT_IMG", "OUTPUT_IMG", "EDITING_INSTRUCTION")),
    "aurora_ag": Preset(None, _PAIRS, split=None),
    "aurora_kubric": Preset(None, _PAIRS, split=None),
    "ss2": Preset(None, _PAIRS, split=None),
    "vismin": Preset(None, _PAIRS, split=None),
}


def find_preset(name: str) -> Preset:
    """Raises UsageError, listing the presets, for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}", where="--preset", hint=f"there are {', '.join(PRESETS)}")
    return PRESETS[name]
