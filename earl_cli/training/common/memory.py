"""How much memory a training needs, by calculation: formulas, so that a run that can't fit says so before it starts.

Weights, gradients and the optimizer are exact. What a layer keeps for the way back follows Korthikanti et al. (arXiv
2205.05198, equation 2) without the attention matrix, which no fused attention keeps; it is right to about a fifth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from earl_cli.training.sft.loss import LOGITS_AT_ONCE

ADAM = 8
"""Bytes a weight: two moments in float32."""


class Settings(Protocol):
    """What a training's config says of memory."""

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
class Shape:
    """The sizes of a decoder, as in its config."""

    parameters: int
    hidden: int
    layers: int
    mlp: int
    kv_width: int
    vocabulary: int

    @staticmethod
    def of(parameters: int, config: Mapping[str, int]) -> Shape:
        """From a language model's config.json and its number of weights."""
        heads = config["num_attention_heads"]
        width = config["hidden_size"] // heads * config.get("num_key_value_heads", heads)
        return Shape(
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
    """Bytes on each device, by what they are for, and ``host`` in the memory of its processor."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    host: int
    reference: int = 0

    @property
    def device(self) -> int:
        """All that has to fit on the device."""
        return sum(getattr(self, each.name) for each in fields(self) if each.name != "host")


@dataclass(frozen=True)
class SamplerMemory:
    """What vLLM takes of each device while it samples: ``share`` of the ``gpu``'s bytes, None where no GPU is known.

    Its part of the weights, so many bytes, is within it. While weights are trained it gives all of it back.
    """

    share: float
    gpu: int | None
    weights: int

    @property
    def bytes(self) -> int:
        """All that it takes; at least that where no GPU is known."""
        return self.weights if self.gpu is None else int(self.share * self.gpu)


def estimate(shape: Shape, config: Settings, *, processes: int, bfloat16: bool, longest: int) -> Memory:
    """What a step needs on each of ``processes`` devices, with sequences of ``longest`` tokens."""
    trained = shape.adapters(config.lora_rank) if config.lora_rank else shape.parameters
    frozen = shape.parameters if config.lora_rank else 0
    number = 2 if bfloat16 else 4
    sharded = config.sharding != "none"
    part = processes if config.sharding.startswith("zero3") else 1
    shared = processes if sharded else 1
    kept = number if sharded else 4
    frozen_bytes = frozen * number
    if config.quantize == "4bit":  # the embedding and the head stay
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
        weights += number * min(1_000_000_000, shape.parameters)  # what is brought together at a time
    tokens = config.batch_size * longest
    layer = tokens * (13 * shape.hidden + 4 * shape.mlp + 2 * shape.kv_width) * number
    if config.gradient_checkpointing:
        activations = shape.layers * tokens * shape.hidden * number + layer
    else:
        activations = shape.layers * layer
    rows = shape.vocabulary
    logits = 3 * 4 * min(LOGITS_AT_ONCE, tokens * rows) + (4 * rows * shape.hidden if not config.lora_rank else 0)
    return Memory(weights, gradients, optimizer, activations, logits, host)
