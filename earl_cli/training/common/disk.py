"""How much disk a training needs, by calculation, so that a run that would fill it says so before it starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.errors import OutputError
from earl_cli.models.bundle import Base
from earl_cli.training.common.checkpoints import CHECKPOINTS
from earl_cli.training.common.memory import ADAM, Shape
from earl_cli.training.common.precision import uses_bfloat16


@dataclass(frozen=True)
class Disk:
    """The most that lies there at a time: ``whole`` checkpoints and ``models`` alone, each of so many bytes.

    ``keep`` is how many of the whole ones the run keeps; one more is there while it is written.
    """

    checkpoint: int
    whole: int
    model: int
    models: int
    keep: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.checkpoint * self.whole + self.model * self.models

    def __str__(self) -> str:
        whole = f"{self.whole} whole checkpoint{'s' * (self.whole != 1)} of {_size(self.checkpoint)}"
        return (
            f"up to {_size(self.total)}: {whole}, {self.models} model{'s' * (self.models != 1)} of {_size(self.model)}"
        )


def sft_disk(config: SftConfig, base: Base, steps: int) -> Disk:
    """Of a run of so many steps: checkpoints, the best model, and that of the end."""
    state = _state(config, base)
    written = -(-steps // config.checkpoint_every)
    if config.validation:
        written += steps // config.validate_every
    model = _model(config, base)
    models = 2 if config.validation and written > config.keep else 1
    return Disk(model + state, min(written, config.keep + 1), model, models, config.keep)


def rl_disk(config: RlConfig, base: Base) -> Disk:
    """Of a run: checkpoints, the models of old ones that are kept, the best of them, and that of the end."""
    iterations = config.num_iterations
    written = -(-iterations // config.save_checkpoints_every_n_iterations)
    validates = bool(config.validation or config.val_paths_file)
    if validates:
        written += iterations // config.validate_every
    kept = iterations // config.keep_checkpoints_every_n_iterations
    model = _model(config, base)
    state = _state(config, base)
    if config.sharding == "none":  # beside the model, which is in the layout that was asked for
        state += 4 * _trained(config, base)
    alone = max(0, kept - config.keep) + (validates and written > config.keep)
    return Disk(model + state, min(written, config.keep + 1), model, 1 + alone, config.keep)


def check_room(output: Path, needed: Disk) -> int:
    """Bytes that are free for the run, what it has written before included. Raises OutputError if they are too few."""
    place = output.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free + sum(
        path.stat().st_size for path in (output / CHECKPOINTS).rglob("*") if path.is_file()
    )
    if needed.total <= free:
        return free
    room = (free - needed.model * needed.models) // needed.checkpoint - 1
    hint = f"--set keep={room} fits" if 0 < room < needed.keep else "make room, or choose another --output"
    raise OutputError(f"the run needs {needed}; {_size(free)} are free", where=str(output), hint=hint)


def _model(config: SftConfig | RlConfig, base: Base) -> int:
    """A model folder: weights as they are trained, and the vision tokenizer if it isn't one of the Hub's."""
    vision = base.description.vision
    beside = sum(path.stat().st_size for path in vision.rglob("*.safetensors")) if isinstance(vision, Path) else 0
    return base.parameters * (2 if _narrow(config) else 4) + beside


def _state(config: SftConfig | RlConfig, base: Base) -> int:
    """What a checkpoint has beside the model: the optimizer's moments, and of DeepSpeed also its weights."""
    trained = _trained(config, base)
    if config.sharding == "none":
        return trained * ADAM
    number = 2 if uses_bfloat16(config) else 4
    return trained * (ADAM + (4 if number == 2 else 0) + (number if config.sharding == "zero2" else 0))


def _trained(config: SftConfig | RlConfig, base: Base) -> int:
    shape = Shape.of(base.parameters, base.config)
    return shape.adapters(config.lora_rank) if config.lora_rank else shape.parameters


def _narrow(config: SftConfig | RlConfig) -> bool:
    return uses_bfloat16(config) and (config.sharding != "none" or config.lora_rank is not None)


def _size(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MB"
