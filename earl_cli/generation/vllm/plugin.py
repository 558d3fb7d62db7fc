"""The entry point `vllm.general_plugins`, loaded in each of vLLM's processes: registers a model and a transport.

Emu3's layers are Llama's, with the same weight names. vLLM itself isn't changed, and importing this module is cheap.
"""

from __future__ import annotations

from contextlib import suppress

from earl_cli.models.names import LANGUAGE_CLASS

LLAMA = "vllm.model_executor.models.llama:LlamaForCausalLM"
NCCL, MEMORY = "nccl", "earl_memory"
"""Transports of weights: vLLM's own between GPUs, and that of `weight_transfer` on a CPU."""


def register() -> None:
    """Register the model class for Emu3's language model, and the transport of weights. May be called repeatedly."""
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if LANGUAGE_CLASS not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(LANGUAGE_CLASS, LLAMA)
    with suppress(ValueError):  # already registered
        WeightTransferEngineFactory.register_engine(
            MEMORY, "earl_cli.generation.vllm.weight_transfer", "MemoryReceiver"
        )
