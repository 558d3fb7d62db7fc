"""Emu3's language model in a form that is trained: forward gives the loss, and no logits are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM

from earl_cli.config.sft import SftConfig
from earl_cli.errors import DeviceError, MissingExtraError
from earl_cli.models.bundle import Base
from earl_cli.models.device import DevicePlan, plan
from earl_cli.models.language import load_language
from earl_cli.training.distributed import world_size
from earl_cli.training.losses import Part, labelled, summed_loss
from earl_cli.training.memory import Shape, estimate
from earl_cli.training.precision import uses_bfloat16, uses_cpu


class LossHead(nn.Linear):
    """The output head, which gives the loss of the states before it.

    It is a module of its own because sharded training (ZeRO-3) brings a module's weight together while it runs.
    """

    parts: tuple[Part, ...]

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """`losses.summed_loss` of Float[B, L, D] and Int[B, L]."""
        return summed_loss(hidden, self.weight, labels, self.parts)


class TrainedEmu3(Emu3ForCausalLM):
    """An `Emu3ForCausalLM` with the same weights under the same names."""

    def lose_over(self, parts: Sequence[Part]) -> None:
        """Make the head give the loss over these parts of the vocabulary."""
        self.lm_head.__class__ = LossHead
        self.lm_head.parts = tuple(parts)

    def forward(
        self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """``loss``: −log p of the labelled tokens of Int[B, L], by default their mean, else their sum over that number.

        The number is that of the whole optimizer step, so that every token of it counts alike.
        """
        hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        total = self.lm_head(hidden, labels)
        count = num_items_in_batch if num_items_in_batch is not None else max(1, labelled(labels))
        return {"loss": total / count}


def load_trainee(base: Base, config: SftConfig, longest: int) -> tuple[TrainedEmu3 | Any, DevicePlan]:
    """The language model to be trained, or it with low-rank adapters (arXiv 2106.09685), and where it will run.

    The memory of a step with sequences of ``longest`` tokens is checked before any weight is read. Raises DeviceError
    if it isn't there, MissingExtraError if a package for adapters or for 4 bits is missing.
    """
    bfloat16 = uses_bfloat16(config)
    needed = estimate(
        Shape.of(base.parameters, base.config), config, processes=world_size(), bfloat16=bfloat16, longest=longest
    )
    sharded = config.sharding != "none"
    narrow = bfloat16 and (sharded or config.lora_rank is not None)
    dtype = torch.bfloat16 if narrow else torch.float32
    attention = config.attention
    if attention == "auto" and uses_cpu(config):
        attention = "eager"  # torch's fused attention is up to four times slower here, backwards
    place = plan(
        config.device,
        fixed_bytes=needed.device,
        dtype="bfloat16" if bfloat16 else "float32",
        attention=attention,
    )
    first = torch.device("cpu") if config.sharding.startswith("zero3") or config.quantize == "4bit" else place.device
    language = load_language(
        base.language.folder, device=first, dtype=dtype, attention=place.attention, kind=TrainedEmu3
    )
    language.train()
    if config.lora_rank is None:
        return language, place
    if config.quantize == "4bit":
        _quantize(language, place.device)
    return with_adapters(language, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed), place


def with_adapters(language: Any, rank: int, alpha: int, dropout: float, seed: int) -> Any:
    """A `PeftModel` whose base is frozen."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtraError("adapters need the package peft", hint='pip install "earl-cli[lora]"') from None
    torch.manual_seed(seed)  # the adapters' first weights are random
    adapters = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    return get_peft_model(language, adapters)


def _quantize(language: Any, device: torch.device) -> None:
    """Every linear layer of the blocks in 4-bit NormalFloat (arXiv 2305.14314), in place; embedding and head stay."""
    if device.type != "cuda":
        raise DeviceError("4-bit weights need an NVIDIA GPU", where=str(device), hint="--set quantize=none")
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise MissingExtraError("4-bit weights need bitsandbytes", hint='pip install "earl-cli[qlora]"') from None
    for block in language.model.layers:
        for module in list(block.modules()):
            for name, layer in module.named_children():
                if type(layer) is nn.Linear:
                    small = Linear4bit(
                        layer.in_features,
                        layer.out_features,
                        bias=False,
                        compute_dtype=layer.weight.dtype,
                        quant_type="nf4",
                    )
                    small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                    setattr(module, name, small.to(device))
    language.to(device)
    language.is_loaded_in_4bit = True


def merged(model: Any, base: Base) -> Any:
    """The language model with its adapters multiplied in, in full precision also where it was trained in 4 bits."""
    if getattr(model.get_base_model(), "is_loaded_in_4bit", False):
        from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

        whole = load_language(base.language.folder, dtype=torch.bfloat16, kind=TrainedEmu3)
        copy = PeftModel(whole, model.peft_config["default"])
        set_peft_model_state_dict(copy, get_peft_model_state_dict(model))
        model = copy
    return model.merge_and_unload()
