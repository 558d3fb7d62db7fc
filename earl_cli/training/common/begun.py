"""How the run in a folder was begun, and whether today's settings can go on from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earl_cli.config.sft import SftConfig
from earl_cli.errors import UsageError
from earl_cli.files import whole_file
from earl_cli.models.bundle import DESCRIPTION
from earl_cli.training.common.checkpoints import CHECKPOINTS, newest, written

BEGUN = "begun.json"
ANOTHER = "choose another --output"


def beginning(command: str, model: str | None, data: Sequence[Path]) -> dict[str, Any]:
    """What a run is begun with: the command, the model that it starts from, and the data."""
    start = "embedded" if model is None else str(Path(model).resolve()) if Path(model).is_dir() else model
    return {"command": command, "model": start, "data": [str(place.resolve()) for place in data]}


def note_beginning(output: Path, now: dict[str, Any]) -> None:
    """Write that down where nothing is to be gone on from; what a run was begun with stays."""
    if newest(output / CHECKPOINTS) is None or not (output / BEGUN).is_file():
        with written("the run's beginning", output), whole_file(output / BEGUN) as aside:
            aside.write_text(json.dumps(now, indent=2), encoding="utf-8")


def check_beginning(output: Path, now: dict[str, Any]) -> None:
    """Raise UsageError if the folder holds a run of another command, or one that started from another model."""
    begun = _begun(output)
    if begun is None:
        return
    if begun["command"] != now["command"]:
        raise UsageError(f"this folder holds a run of earl {begun['command']}", where=str(output), hint=ANOTHER)
    if begun.get("model", now["model"]) != now["model"]:
        raise UsageError(
            f"this folder holds a run that started from {begun['model']}, not from {now['model']}",
            where=str(output),
            hint=f"{ANOTHER}; if that is the same model, moved, remove {BEGUN}",
        )


def other_data(output: Path, now: dict[str, Any]) -> str | None:
    """What is to be said of a run that goes on with other data than it was begun with; None if there is nothing."""
    begun = _begun(output)
    if begun is None or begun.get("data", now["data"]) == now["data"]:
        return None
    return f"{output}: this run was begun with other data, and goes on with today's"


def _begun(output: Path) -> dict[str, Any] | None:
    """What is known of the run in this folder; None if there is none to be gone on from."""
    checkpoint = newest(output / CHECKPOINTS)
    if checkpoint is None:
        return None
    known: dict[str, Any] = {"command": "sft" if checkpoint.name.startswith("checkpoint-") else "rl"}
    if (output / BEGUN).is_file():
        known |= json.loads((output / BEGUN).read_text(encoding="utf-8"))
    return known


def check_way(config: SftConfig, processes: int) -> None:
    """Raise UsageError if supervised training was begun in a way in which today's can't go on."""
    checkpoint = newest(config.output / CHECKPOINTS)
    if checkpoint is None:
        return
    adapters = any(checkpoint.glob("**/adapter_model.safetensors"))
    parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    partitioned = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    sharding = "none" if not parts else "zero3" if partitioned else "zero2"
    now = config.sharding.removesuffix("-offload")
    if (adapters, sharding, parts) != (config.lora_rank is not None, now, processes if now != "none" else 0):
        words = f"{'adapters' if adapters else 'every weight'} trained, sharding {sharding}"
        raise UsageError(
            f"this run was begun with {words}" + (f", {parts} processes" if parts else ""),
            where=str(checkpoint),
            hint=f"go on in the same way, or {ANOTHER}",
        )
    if parts and not adapters and not (checkpoint / DESCRIPTION).is_file():
        raise UsageError(
            "this sharded run was begun by an earl that let the weights of norms decay too; its optimizer's state "
            "doesn't fit the groups of today",
            where=str(checkpoint),
            hint=f"go on with the version that began it, or start from its weights: {ANOTHER}",
        )
