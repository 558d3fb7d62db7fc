"""What vLLM loads in each of its processes, by the entry point `vllm.general_plugins`: a model and a transport by name.

Emu3's layers are Llama's, weights under the same names. Nothing in vLLM is changed, and importing this costs nothing.
"""

from __future__ import annotations

from contextlib import suppress

from earl_cli.models.names import LANGUAGE_CLASS

LLAMA = "vllm.model_executor.models.llama:LlamaForCausalLM"
NCCL, MEMORY = "nccl", "earl_memory"
"""Transports of weights: vLLM's own between GPUs, and the one of `vllm_weights` for processors."""


def register() -> None:
    """Tell vLLM which of its models runs Emu3's language model, and how weights come. May be called again."""
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if LANGUAGE_CLASS not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(LANGUAGE_CLASS, LLAMA)
    with suppress(ValueError):  # it is registered already
        WeightTransferEngineFactory.register_engine(
            MEMORY, "earl_cli.generation.vllm.weight_transfer", "MemoryReceiver"
        )
