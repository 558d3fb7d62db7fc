"""Optimizer steps on gradients of several batches: on one rank or several, data parallel or sharded by DeepSpeed.

The loss of a step is a sum over all ranks: each rank contributes its part, divided by the number of tokens of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from earl_cli.config.rl import RlConfig
from earl_cli.training.common.distributed import deepspeed_config, rank, uses_bfloat16, uses_cpu, world_size
from earl_cli.training.rl.policy import Batch, Policy

STATE = "optimizer.pt"


class OptimizerBackend(Protocol):
    """A policy and its optimizer; if ``independent``, ranks may run different numbers of batches."""

    policy: Policy
    independent: bool

    def forward(self, batch: Batch, entropies: bool) -> tuple[Tensor, Tensor | None]:
        """The policy's forward pass, in the precision of the training."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this rank's part of the loss, a scalar."""

    def step(self, learning_rate: float) -> float:
        """Update the weights and clear the gradients; returns the norm of the gradient before clipping.

        If the norm is not finite, the weights can't be used any more.
        """

    @contextmanager
    def full_model(self) -> Iterator[Any]:
        """Inside the context: the language model with all of its weights on this rank, to sample from and to save."""

    def save(self, checkpoint: Path) -> None:
        """Write the state of the optimizer and the weights in the precision of the training."""

    def load(self, checkpoint: Path) -> None:
        """The inverse of `save`."""


def make_backend(policy: Policy, config: RlConfig, device: torch.device) -> OptimizerBackend:
    """The optimizer backend for this config's sharding."""
    if config.sharding == "none":
        return DataParallelBackend(policy, config, device)
    return DeepSpeedBackend(policy, config)


class DataParallelBackend:
    """Data parallel: every rank holds all weights; gradients are summed over the ranks before the step."""

    independent = True

    def __init__(self, policy: Policy, config: RlConfig, device: torch.device) -> None:
        self.policy, self.clip, self.device = policy, config.max_grad_norm, device
        self.autocast = uses_bfloat16(config)
        self.trained = [weight for weight in policy.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )

    def forward(self, batch: Batch, entropies: bool) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext():
            found: tuple[Tensor, Tensor | None] = self.policy(batch, entropies)
        return found

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        for weight in self.trained:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if world_size() > 1:
            for weight in self.trained:
                torch.distributed.all_reduce(weight.grad)
        norm = float(clip_grad_norm_(self.trained, self.clip))
        if math.isfinite(norm):
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @contextmanager
    def full_model(self) -> Iterator[Any]:
        yield self.policy.base

    def save(self, checkpoint: Path) -> None:
        if rank() == 0:
            (checkpoint / "optimizer").mkdir(parents=True, exist_ok=True)
            weights = [weight.detach() for weight in self.trained]
            torch.save({"optimizer": self.optimizer.state_dict(), "weights": weights}, checkpoint / "optimizer" / STATE)

    def load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint / "optimizer" / STATE, map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for weight, saved in zip(self.trained, state["weights"], strict=True):
                weight.copy_(saved)


class DeepSpeedBackend:
    """DeepSpeed: optimizer and gradients (ZeRO-2), and weights too (ZeRO-3), are sharded over the ranks."""

    independent = False

    def __init__(self, policy: Policy, config: RlConfig) -> None:
        import deepspeed

        settings = deepspeed_config(config.sharding, bfloat16=uses_bfloat16(config), cpu=uses_cpu(config))
        assert settings is not None
        adam = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
        adam |= {"weight_decay": config.weight_decay, "torch_adam": not settings["zero_force_ds_cpu_optimizer"]}
        zero = {name: value for name, value in settings["zero_optimization"].items() if value != "auto"}
        settings |= {
            "optimizer": {"type": "AdamW", "params": adam},
            "zero_optimization": {**zero, "overlap_comm": False},
            "gradient_clipping": config.max_grad_norm,
            "train_micro_batch_size_per_gpu": 1,
            "train_batch_size": world_size(),
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,  # `step` says when
        }
        self.policy = policy
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        self.engine, *_ = deepspeed.initialize(model=policy, model_parameters=trained, config=settings)
        self.partitioned = config.sharding.startswith("zero3")

    def forward(self, batch: Batch, entropies: bool) -> tuple[Tensor, Tensor | None]:
        found: tuple[Tensor, Tensor | None] = self.engine(batch, entropies)
        return found

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * world_size())  # DeepSpeed takes the mean over the ranks

    def step(self, learning_rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    @contextmanager
    def full_model(self) -> Iterator[Any]:
        if not self.partitioned:
            yield self.policy.base
            return
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        with unwrap_model_for_generation(self.engine):  # else each layer would release its weights after it ran
            yield self.policy.base

    def save(self, checkpoint: Path) -> None:
        self.engine.save_checkpoint(str(checkpoint), tag="deepspeed", exclude_frozen_parameters=self.policy.adapted)

    def load(self, checkpoint: Path) -> None:
        self.engine.load_checkpoint(
            str(checkpoint), tag="deepspeed", load_module_strict=not self.policy.adapted, load_lr_scheduler_states=False
        )
