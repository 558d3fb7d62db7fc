"""What vLLM loads in each of its processes, by the entry point `vllm.general_plugins`: Emu3's language model by name.

Emu3's layers are Llama's, weights under the same names. Nothing in vLLM is changed, and importing this costs nothing.
"""

from __future__ import annotations

from earl_cli.models.names import LANGUAGE_CLASS

LLAMA = "vllm.model_executor.models.llama:LlamaForCausalLM"


def register() -> None:
    """Tell vLLM which of its models runs Emu3's language model. May be called again."""
    from vllm import ModelRegistry

    if LANGUAGE_CLASS not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(LANGUAGE_CLASS, LLAMA)
