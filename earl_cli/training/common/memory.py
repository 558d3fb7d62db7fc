"""The memory and disk space that a training needs, by calculation, so that a run that can't fit is refused early.

Weights, gradients and the optimizer are exact. Activations follow Korthikanti et al. (arXiv 2205.05198, equation 2)
without the attention matrix, which fused attention doesn't keep; the estimate is right to about a fifth.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.errors import OutputError
from earl_cli.models.bundle import Base
from earl_cli.training.common.checkpoints import CHECKPOINTS
from earl_cli.training.common.distributed import uses_bfloat16
from earl_cli.training.sft.loss import MAX_LOGITS

ADAM = 8
"""Bytes per weight: two moments in float32."""


class MemorySettings(Protocol):
    """The settings of a training that affect its memory."""

    @property
    def batch_size(self) -> int: ...
    @property
    def gradient_checkpointing(self) -> bool: ...
    @property
    def lora_rank(self) -> int | None: ...
    @property
    def quantize(self) -> str: ...
    @property
    def sharding(self) -> str: ...


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder, as in its config."""

    parameters: int
    hidden: int
    layers: int
    mlp: int
    kv_width: int
    vocabulary: int

    @staticmethod
    def of(parameters: int, config: Mapping[str, int]) -> ModelShape:
        """From a language model's config.json and its number of weights."""
        heads = config["num_attention_heads"]
        width = config["hidden_size"] // heads * config.get("num_key_value_heads", heads)
        return ModelShape(
            parameters,
            config["hidden_size"],
            config["num_hidden_layers"],
            config["intermediate_size"],
            width,
            config["vocab_size"],
        )

    @property
    def linear(self) -> int:
        """The weights of the linear layers of the blocks."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    def adapters(self, rank: int) -> int:
        """The weights of low-rank adapters beside every linear layer of the blocks: rank · (inputs + outputs) each."""
        attention = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + self.kv_width)
        return self.layers * rank * (attention + 3 * (self.hidden + self.mlp))


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, by purpose, and ``host`` bytes in CPU memory."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    host: int
    reference: int = 0

    @property
    def device(self) -> int:
        """The sum of all that must fit on the device."""
        return sum(getattr(self, each.name) for each in fields(self) if each.name != "host")


@dataclass(frozen=True)
class SamplerMemory:
    """The memory that vLLM takes of each device while it samples: the share ``share`` of the ``gpu`` bytes of a GPU.

    ``gpu`` is None if no GPU is known. ``weights`` are the bytes of its weights, included in the share. During
    an update vLLM frees all of it.
    """

    share: float
    gpu: int | None
    weights: int

    @property
    def bytes(self) -> int:
        """All that it takes; a lower bound if no GPU is known."""
        return self.weights if self.gpu is None else int(self.share * self.gpu)


def estimate(shape: ModelShape, config: MemorySettings, *, processes: int, bfloat16: bool, longest: int) -> Memory:
    """The memory of a step on each of ``processes`` devices, with sequences of ``longest`` tokens."""
    trained = shape.adapters(config.lora_rank) if config.lora_rank else shape.parameters
    frozen = shape.parameters if config.lora_rank else 0
    number = 2 if bfloat16 else 4
    sharded = config.sharding != "none"
    part = processes if config.sharding.startswith("zero3") else 1
    shared = processes if sharded else 1
    kept = number if sharded else 4
    frozen_bytes = frozen * number
    if config.quantize == "4bit":  # embedding and head are not quantized
        frozen_bytes = (frozen - shape.linear) * number + shape.linear // 2
    weights = (trained * kept + frozen_bytes) // part
    if not sharded and bfloat16:
        weights += 2 * trained  # autocast's copy
    gradients = trained * kept // shared
    master = 4 if sharded and bfloat16 else 0
    optimizer = trained * (ADAM + master) // shared
    host = 0
    if config.sharding == "zero3-offload":
        host = weights + gradients + optimizer
        live = 2 * number * (12 * shape.hidden**2 + shape.vocabulary * shape.hidden)
        weights, gradients, optimizer = min(weights, live), 0, 0
    elif part > 1:
        weights += number * min(1_000_000_000, shape.parameters)  # the weights that are gathered at a time
    tokens = config.batch_size * longest
    layer = tokens * (13 * shape.hidden + 4 * shape.mlp + 2 * shape.kv_width) * number
    if config.gradient_checkpointing:
        activations = shape.layers * tokens * shape.hidden * number + layer
    else:
        activations = shape.layers * layer
    rows = shape.vocabulary
    logits = 3 * 4 * min(MAX_LOGITS, tokens * rows) + (4 * rows * shape.hidden if not config.lora_rank else 0)
    return Memory(weights, gradients, optimizer, activations, logits, host)


def rl_memory(config: RlConfig, base: Base, processes: int, longest: int) -> Memory:
    """The memory of a step of reinforcement learning on each device: as `estimate`, and the reference model."""
    shape, bfloat16 = ModelShape.of(base.parameters, base.config), uses_bfloat16(config)
    needed = estimate(shape, config, processes=processes, bfloat16=bfloat16, longest=longest)
    if config.kl_coeff == 0 or config.lora_rank is not None:
        return needed
    return replace(needed, reference=base.parameters * (2 if bfloat16 else 4))


@dataclass(frozen=True)
class Disk:
    """The peak disk usage: ``complete`` complete checkpoints and ``models`` checkpoints reduced to their model.

    ``checkpoint`` and ``model`` are their bytes. The run keeps ``keep`` complete checkpoints, and has one more while it
    writes it.
    """

    checkpoint: int
    complete: int
    model: int
    models: int
    keep: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.checkpoint * self.complete + self.model * self.models

    def __str__(self) -> str:
        parts = ((self.complete, "complete checkpoint", self.checkpoint), (self.models, "model", self.model))
        described = (f"{count} {name}{'s' * (count != 1)} of {_size(size)}" for count, name, size in parts)
        return f"up to {_size(self.total)}: {', '.join(described)}"


def sft_disk(config: SftConfig, base: Base, steps: int) -> Disk:
    """The disk usage of a run of ``steps`` steps: checkpoints, the best model, and the final one."""
    state = _state(config, base)
    written = -(-steps // config.checkpoint_every)
    if config.validation:
        written += steps // config.validate_every
    model = _model(config, base)
    models = 2 if config.validation and written > config.keep_checkpoints else 1
    return Disk(model + state, min(written, config.keep_checkpoints + 1), model, models, config.keep_checkpoints)


def rl_disk(config: RlConfig, base: Base) -> Disk:
    """The disk usage of a run: checkpoints, the kept models of old ones, the best one, and the final one."""
    iterations = config.num_iterations
    written = -(-iterations // config.checkpoint_every)
    validates = bool(config.validation or config.val_paths_file)
    if validates:
        written += iterations // config.validate_every
    kept = iterations // config.keep_model_every
    model = _model(config, base)
    state = _state(config, base)
    if config.sharding == "none":  # beside the model, which is in the configured format
        state += 4 * _trained(config, base)
    alone = max(0, kept - config.keep_checkpoints) + (validates and written > config.keep_checkpoints)
    return Disk(model + state, min(written, config.keep_checkpoints + 1), model, 1 + alone, config.keep_checkpoints)


def check_disk_space(output: Path, needed: Disk) -> int:
    """The bytes available to the run, including its existing checkpoints. Raises OutputError if they are too few."""
    folder = output.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free + sum(
        path.stat().st_size for path in (output / CHECKPOINTS).rglob("*") if path.is_file()
    )
    if needed.total <= free:
        return free
    room = (free - needed.model * needed.models) // needed.checkpoint - 1
    hint = (
        f"--set keep_checkpoints={room} fits"
        if 0 < room < needed.keep
        else "free some space, or choose another --output"
    )
    raise OutputError(f"the run needs {needed}; {_size(free)} are free", where=str(output), hint=hint)


def _model(config: SftConfig | RlConfig, base: Base) -> int:
    """The bytes of a model folder: weights in their trained precision, and the vision tokenizer unless from the Hub."""
    vision = base.description.vision
    beside = sum(path.stat().st_size for path in vision.rglob("*.safetensors")) if isinstance(vision, Path) else 0
    return base.parameters * (2 if _narrow(config) else 4) + beside


def _state(config: SftConfig | RlConfig, base: Base) -> int:
    """The bytes of a checkpoint beside the model: the optimizer's moments, and under DeepSpeed its weights."""
    trained = _trained(config, base)
    if config.sharding == "none":
        return trained * ADAM
    number = 2 if uses_bfloat16(config) else 4
    return trained * (ADAM + (4 if number == 2 else 0) + (number if config.sharding == "zero2" else 0))


def _trained(config: SftConfig | RlConfig, base: Base) -> int:
    shape = ModelShape.of(base.parameters, base.config)
    return shape.adapters(config.lora_rank) if config.lora_rank else shape.parameters


def _narrow(config: SftConfig | RlConfig) -> bool:
    return uses_bfloat16(config) and (config.sharding != "none" or config.lora_rank is not None)


def _size(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MB"
