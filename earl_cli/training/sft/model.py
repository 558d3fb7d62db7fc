"""Emu3's language model for training: its forward gives the loss and keeps no logits; adapters, 4-bit weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM

from earl_cli.config.sft import SftConfig
from earl_cli.errors import DeviceError, MissingExtraError
from earl_cli.models import names
from earl_cli.models.bundle import Base, save_trained
from earl_cli.models.checkpoint import load_language
from earl_cli.models.device import DevicePlan, device_plan
from earl_cli.training.common.distributed import need_deepspeed, uses_bfloat16, uses_cpu, world_size
from earl_cli.training.common.memory import ModelShape, estimate
from earl_cli.training.sft.loss import IdRange, count_labels, summed_loss

ADAPTER = "adapter"


class LossHead(nn.Linear):
    """The output head, whose forward gives the loss.

    It is a module because sharded training (ZeRO-3) gathers the weight of a module while its forward runs.
    """

    ranges: tuple[IdRange, ...]

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """`summed_loss` of Float[B, L, D] and Int[B, L]."""
        return summed_loss(hidden, self.weight, labels, self.ranges)


class TrainedEmu3(Emu3ForCausalLM):
    """An `Emu3ForCausalLM`, with the same weights and names, whose forward gives the loss."""

    embedding_dropout = 0.0

    def set_dropout(self, share: float) -> None:
        """Set the dropout of attention weights, of the residual branches and of the embeddings.

        As in the code that Emu3 was published with; transformers' class has no dropout on the embeddings.
        """
        self.embedding_dropout = share
        for layer in self.model.layers:
            layer.self_attn.attention_dropout = share
            layer.dropout.p = share

    def set_loss_ranges(self, ranges: Sequence[IdRange]) -> None:
        """Replace the head by a `LossHead` that normalises over these ranges of the vocabulary."""
        self.lm_head.__class__ = LossHead
        self.lm_head.ranges = tuple(ranges)

    def forward(
        self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """``loss``: Σ −log p of the labelled tokens of Int[B, L], divided by ``num_items_in_batch`` or by their number.

        ``num_items_in_batch`` is the number of labelled tokens of the whole optimizer step.
        """
        given = {"input_ids": input_ids}
        if self.training and self.embedding_dropout:
            given = {"inputs_embeds": dropout(self.model.embed_tokens(input_ids), self.embedding_dropout)}
        hidden = self.model(**given, use_cache=False).last_hidden_state
        total = self.lm_head(hidden, labels)
        count = num_items_in_batch if num_items_in_batch is not None else max(1, count_labels(labels))
        return {"loss": total / count}


def plan_device(base: Base, config: SftConfig, longest: int) -> DevicePlan:
    """The device plan of a training, by calculation; no weight is read.

    Raises DeviceError if a step with sequences of ``longest`` tokens doesn't fit or the device lacks a feature,
    MissingExtraError if a package for adapters, 4-bit weights or sharding is missing.
    """
    if config.lora_rank is not None:
        need_peft()
    bfloat16 = uses_bfloat16(config)
    need_deepspeed(config.sharding)
    needed = estimate(
        ModelShape.of(base.parameters, base.config), config, processes=world_size(), bfloat16=bfloat16, longest=longest
    )
    attention = config.attention
    if attention == "auto" and uses_cpu(config):
        attention = "eager"  # torch's fused attention is up to four times slower here, backwards
    placement = device_plan(
        config.device,
        fixed_bytes=needed.device,
        dtype="bfloat16" if bfloat16 else "float32",
        attention=attention,
    )
    if config.quantize == "4bit":
        _need_four_bits(placement.device)
    return placement


def load_trainable(base: Base, config: SftConfig, longest: int) -> tuple[TrainedEmu3 | Any, DevicePlan]:
    """The language model to be trained, with low-rank adapters (arXiv 2106.09685) if configured, and its device plan.

    Raises what `plan_device` raises, before any weight is read.
    """
    placement = plan_device(base, config, longest)
    narrow = uses_bfloat16(config) and (config.sharding != "none" or config.lora_rank is not None)
    first = (
        torch.device("cpu") if config.sharding.startswith("zero3") or config.quantize == "4bit" else placement.device
    )
    language: Any = load_language(
        base.language.folder,
        device=first,
        dtype=torch.bfloat16 if narrow else torch.float32,
        attention=placement.attention,
        kind=TrainedEmu3,
    )
    language.set_dropout(config.dropout)
    language.train()
    if config.lora_rank is None:
        return language, placement
    if config.quantize == "4bit":
        _quantize(language, placement.device)
    adapted = with_adapters(language, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
    adapted.peft_config["default"].base_model_name_or_path = config.model
    return adapted, placement


def need_peft() -> None:
    """Raise MissingExtraError if the package for adapters isn't installed."""
    if find_spec("peft") is None:
        raise MissingExtraError("adapters need the package peft", hint='pip install "earl-cli[lora]"')


def with_adapters(language: Any, rank: int, alpha: int, dropout: float, seed: int) -> Any:
    """A `PeftModel` with new adapters and a frozen base."""
    need_peft()
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)  # the initial weights of adapters are random
    adapters = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    return get_peft_model(language, adapters)


def _need_four_bits(device: torch.device) -> None:
    if device.type != "cuda":
        raise DeviceError("4-bit weights need an NVIDIA GPU", where=str(device), hint="--set quantize=none")
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("4-bit weights need bitsandbytes", hint='pip install "earl-cli[qlora]"')


def _quantize(language: Any, device: torch.device) -> None:
    """Convert the linear layers of the blocks to 4-bit NormalFloat (arXiv 2305.14314) in place."""
    from bitsandbytes.nn import Linear4bit, Params4bit

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


def save_model(
    base: Base, model: Any, output: Path, layout: names.CheckpointFormat, state: Mapping[str, Tensor] | None
) -> None:
    """Write a model folder, and adapters also by themselves in the sub-folder `ADAPTER`.

    ``state`` are the gathered weights of a sharded ``model``; None: those of ``model`` itself. The written weights have
    the adapters merged, also if these were trained on 4-bit weights. ``model`` isn't changed.
    """
    if not hasattr(model, "get_base_model"):
        save_trained(base, model, output, layout, state=state)
        return
    model.save_pretrained(str(output / ADAPTER), save_embedding_layers=False)  # else peft asks the Hub
    if getattr(model.get_base_model(), "is_loaded_in_4bit", False):
        save_trained(base, _merged_in_bfloat16(model, base), output, layout)
        return
    with merged_weights(model) as weights:
        save_trained(base, model.get_base_model(), output, layout, state=weights)


def _merged_in_bfloat16(model: Any, base: Base) -> Any:
    """The language model as before quantization, in bfloat16, with the adapters merged."""
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    whole = load_language(base.language.folder, dtype=torch.bfloat16, kind=TrainedEmu3)
    copy = PeftModel(whole, model.peft_config["default"])
    set_peft_model_state_dict(copy, get_peft_model_state_dict(model))
    return copy.merge_and_unload()


@contextmanager
def merged_weights(model: Any) -> Iterator[dict[str, Tensor]]:
    """Inside the context: the weights with adapters merged, under the names of a model without adapters."""
    with merged_model(model) as language:
        yield {
            name.replace(".base_layer", ""): weight
            for name, weight in language.state_dict().items()
            if ".lora_" not in name
        }


@contextmanager
def merged_model(model: Any) -> Iterator[Any]:
    """Inside the context: the language model in eval mode, with adapters merged; afterwards weights are restored."""
    trained = model.training
    model.eval()
    if not hasattr(model, "get_base_model"):
        yield model
    else:
        base = model.get_base_model()
        kept = {name: weight.detach().clone() for name, weight in base.named_parameters() if not weight.requires_grad}
        model.merge_adapter()
        try:
            yield base
        finally:
            model.unmerge_adapter()
            with torch.no_grad():
                for name, weight in base.named_parameters():
                    if name in kept:
                        weight.copy_(kept[name])  # unmerging subtracts, and that rounds
    model.train(trained)
