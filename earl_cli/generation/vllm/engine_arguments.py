"""Arguments of vLLM that pass through earl: memory, parallelism, quantization and whatever else it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from earl_cli.bounded_json import loads
from earl_cli.errors import UsageError

OWN = (
    "model",
    "logits_processors",
    "logprobs_mode",
    "additional_config",
    "skip_tokenizer_init",
    "tokenizer",
    "weight_transfer_config",
)


def engine_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Arguments by name from ``name=value``, values as in JSON or else text. Raises UsageError for anything else."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"{pair!r} is no key=value", where="--engine-arg", hint="tensor_parallel_size=2")
        try:
            found[name.strip()] = loads(value)
        except ValueError:
            found[name.strip()] = value
    return checked_arguments(found)


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same with names as vLLM's Python interface has them. Raises UsageError for one that isn't open to choice."""
    found = {name.replace("-", "_"): value for name, value in arguments.items()}
    for name in found:
        if name in OWN:
            raise UsageError(f"{name} is set by earl itself", where="--engine-arg (in a config engine_args)")
    return found
