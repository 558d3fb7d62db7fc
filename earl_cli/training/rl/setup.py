"""What a run of reinforcement learning works with, built from its config, and its checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earl_cli.config.loader import read_paths
from earl_cli.config.rl import RlConfig
from earl_cli.data.batches import DatasetRows, Mixture, load_rows, mix, sample_rows
from earl_cli.errors import EarlError, InputError, UsageError
from earl_cli.files import atomic_write
from earl_cli.generation.editor import uses_vllm
from earl_cli.generation.engine import Engine
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.generation.vllm.environment import check_engine_arguments
from earl_cli.models.bundle import Base, save_trained
from earl_cli.models.checkpoint import load_language
from earl_cli.models.device import DevicePlan, choose_device, device_plan
from earl_cli.rewards.reward import Reward
from earl_cli.tokens.layout import Grid, SequenceLayout
from earl_cli.training.common.checkpoints import (
    CHECKPOINTS,
    MARK,
    Goal,
    latest,
    link_best,
    mark_complete,
    remove_incomplete,
    remove_old,
    write_validation,
    writing,
)
from earl_cli.training.common.distributed import all_gather, need_deepspeed, rank, uses_bfloat16, world_size
from earl_cli.training.common.memory import SamplerMemory, rl_memory
from earl_cli.training.common.stopping import StopSignal
from earl_cli.training.optimizer_backends import OptimizerBackend
from earl_cli.training.rl.policy import Batch, Policy
from earl_cli.training.rl.rollouts import ScoredGroup, sequence_lengths
from earl_cli.training.sft.loss import separate_vocabularies, whole_vocabulary
from earl_cli.training.sft.model import merged_weights, need_peft, with_adapters

MODEL, STATE = "hf_model", "run.json"
GOAL: Goal = "highest"


# -- what a run works with ---------------------------------------------------------------------------------------------


class ReferenceModel(Protocol):
    """The fixed model from which the KL divergence of the policy is measured."""

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities of the batch's tokens, Float32[N], without gradients."""

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Inside the context the model is on its device and can be called."""


class RunCallbacks(Protocol):
    """What the training loop calls to report progress and to save. Called on every rank."""

    def phase(self, iteration: int, what: str) -> None:
        """The phase ``what`` of an iteration, counted from 0, begins."""

    def sampling(self, iteration: int, done: int, expected: int) -> None:
        """``done`` of ``expected`` tokens of an iteration are sampled."""

    def iteration(self, step: int, metrics: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        """``step`` iterations are done. ``groups`` are those of all ranks if its rollouts are logged, else empty."""

    def validation(self, step: int, metrics: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        """The metrics and groups of a validation after ``step`` iterations."""

    def is_best(self, validation: float) -> bool:
        """Whether this is the best validation reward so far; the same on all ranks."""

    def checkpoint(self, iteration: int, validation: float | None) -> None:
        """Save a checkpoint of the iteration, with its validation reward if there is one."""

    def waiting(self, iteration: int, problem: EarlError) -> None:
        """The judge is down; called before the first retry."""


@dataclass(frozen=True, eq=False)
class RlRun:
    """What a run works with: ``prompts`` are rows of ``rows``, ``validation_prompts`` those of ``validation_data``.

    ``engine(language)`` is a context manager for an engine that samples with the present weights of a language model;
    outside the context its GPU memory is free.
    """

    config: RlConfig
    layout: SequenceLayout
    rows: DatasetRows
    prompts: NDArray[np.int64]
    validation_data: DatasetRows | None
    validation_prompts: NDArray[np.int64]
    vision: Any
    backend: OptimizerBackend
    reference: ReferenceModel | None
    reward: Reward
    engine: Callable[[Any], AbstractContextManager[Engine]]
    callbacks: RunCallbacks
    stop_signal: StopSignal = field(default_factory=StopSignal)
    sleep: Callable[[float], None] = field(default=time.sleep)


# -- data --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RlData:
    """The data sets to sample prompts from and to validate on: ``prompts`` and ``validation_prompts`` are their rows.

    ``skipped`` rows of the mixture and ``validation_skipped`` validation rows exceed the context and are left out.
    """

    rows: DatasetRows
    mixture: Mixture
    prompts: NDArray[np.int64]
    validation_data: DatasetRows | None
    validation_prompts: NDArray[np.int64]
    skipped: int
    validation_skipped: int


def load_data(config: RlConfig, layout: SequenceLayout, positions: int) -> RlData:
    """The data sets of a run, mixed and checked; ``positions`` is the number of positions of the model.

    Raises InputError for data that can't be used, and UsageError for images longer than ``max_response_tokens`` or for
    fewer rows than an iteration has prompts.
    """
    paths = read_paths(config.train_paths_file) or config.data
    validation_paths = read_paths(config.val_paths_file) or config.validation
    rows = load_rows(paths, layout)
    mixture = mix(rows.sizes, _coefficients(config.coefficients, paths), config.seed)
    context = min(config.max_length, positions)
    image = _largest_image(rows)
    if image > config.max_response_tokens:
        raise UsageError(
            f"an image of this data takes {image} tokens, more than the {config.max_response_tokens} allowed",
            where="max_response_tokens",
            hint=f"--set max_response_tokens={image}",
        )
    fits = sequence_lengths(rows, config.mode)[mixture.rows] <= context
    if not fits.any():
        shortest = int(sequence_lengths(rows, config.mode).min())
        raise InputError(
            f"no prompt with its image fits into {context} tokens: the shortest takes {shortest}",
            where=", ".join(map(str, paths)),
            hint="raise max_length, or tokenize with a smaller --image-area",
        )
    prompts, available = config.prompts_per_iteration, int(fits.sum())
    if available < prompts:
        what = f"an iteration samples {prompts} prompts, but the data has only {available}"
        hint = f"at most {available * config.generations_per_sample} here"
        raise UsageError(what, where="episodes_per_iteration", hint=hint)
    validation_data, validation, validation_skipped = None, np.zeros(0, dtype=np.int64), 0
    if validation_paths:
        validation_data = load_rows(validation_paths, layout)
        chosen = sample_rows(validation_data.sizes, config.validation_examples, config.seed).rows
        validation = chosen[sequence_lengths(validation_data, config.mode)[chosen] <= context]
        validation_skipped = len(chosen) - len(validation)
        if not len(validation):
            raise InputError(
                f"no validation prompt with its image fits into {context} tokens",
                where=", ".join(map(str, validation_paths)),
                hint="raise max_length, or tokenize with a smaller --image-area",
            )
    skipped = int((~fits).sum())
    return RlData(rows, mixture, mixture.rows[fits], validation_data, validation, skipped, validation_skipped)


def _coefficients(coefficients: tuple[float, ...] | None, paths: tuple[Path, ...]) -> tuple[float, ...] | None:
    if coefficients is not None and len(coefficients) != len(paths):
        raise UsageError(f"{len(coefficients)} coefficients for {len(paths)} data sets", where="coefficients")
    return coefficients


def _largest_image(rows: DatasetRows) -> int:
    """The tokens of the largest image of a completion, with those that open and end it."""
    sides = zip(*(rows.table.column(f"source_{side}").to_pylist() for side in ("height", "width")), strict=True)
    grids = [Grid(*each) for each in set(sides)]
    return max(len(rows.layout.opening(grid)) + grid.tokens + 1 for grid in grids)


# -- model -------------------------------------------------------------------------------------------------------------


def sampler_memory(config: RlConfig, base: Base) -> SamplerMemory | None:
    """The memory that vLLM takes of each GPU that trains; None with another engine, separate GPUs, or no GPU.

    Raises DeviceError if the configured GPU doesn't exist.
    """
    here = torch.cuda.is_available()
    if config.device == "cpu" or config.engine_place == "separate" or (config.engine == "auto" and not here):
        return None
    if not uses_vllm(config.engine, config.device, lambda: base.parameters):
        return None
    arguments = check_engine_arguments(config.engine_args)
    weights = base.parameters * (2 if uses_bfloat16(config) else 4)
    return SamplerMemory(
        share=float(arguments.get("gpu_memory_utilization", config.vllm_gpu_memory_utilization)),
        gpu=torch.cuda.get_device_properties(choose_device(config.device)).total_memory if here else None,
        weights=weights // int(arguments.get("tensor_parallel_size", 1)),
    )


def plan_device(base: Base, config: RlConfig, longest: int) -> DevicePlan:
    """The device plan of a run, by calculation; no weight is read.

    Raises DeviceError if a batch with sequences of ``longest`` tokens doesn't fit, MissingExtraError if a package for
    adapters or sharding is missing.
    """
    if config.lora_rank is not None:
        need_peft()
    bfloat16 = uses_bfloat16(config)
    need_deepspeed(config.sharding)
    return device_plan(
        config.device,
        fixed_bytes=rl_memory(config, base, world_size(), longest).device,
        dtype="bfloat16" if bfloat16 else "float32",
        attention=config.attention,
    )


def load_policy(base: Base, config: RlConfig, longest: int) -> tuple[Policy, FrozenReference | None, DevicePlan]:
    """The policy, the reference model if the loss needs a frozen copy, and their device plan.

    Raises what `plan_device` raises, before any weight is read.
    """
    placement = plan_device(base, config, longest)
    bfloat16 = uses_bfloat16(config)
    narrow = bfloat16 and (config.sharding != "none" or config.lora_rank is not None)
    parts = separate_vocabularies if config.separate_vocabularies else whole_vocabulary
    head = parts(base.layout.vocabulary), config.temperature

    def load(device: torch.device, dtype: torch.dtype) -> Any:
        return load_language(base.language.folder, device=device, dtype=dtype, attention=placement.attention)

    first = torch.device("cpu") if config.sharding.startswith("zero3") else placement.device
    language = load(first, torch.bfloat16 if narrow else torch.float32)
    if config.lora_rank is not None:
        language = with_adapters(language, config.lora_rank, config.lora_alpha, 0.0, config.seed)
    policy = Policy(language, *head, recompute=config.gradient_checkpointing)
    reference = None
    if config.kl_coeff > 0 and config.lora_rank is None:
        frozen = Policy(load(torch.device("cpu"), torch.bfloat16 if bfloat16 else torch.float32), *head)
        reference = FrozenReference(frozen.requires_grad_(False), placement.device)
    return policy, reference, placement


class FrozenReference:
    """A copy of the initial policy, kept in host memory and moved to the device to compute log-probabilities."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self.policy, self.device = policy, device

    def logprobs(self, batch: Batch) -> Tensor:
        """As the policy's, Float32[N]."""
        found: Tensor = self.policy(batch)[0]
        return found

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Inside the context the weights are on the device."""
        self.policy.to(self.device)
        try:
            yield
        finally:
            self.policy.to("cpu")


class AdapterFreeReference:
    """The policy without its adapters, which is the initial policy."""

    def __init__(self, backend: OptimizerBackend) -> None:
        self.backend = backend

    def logprobs(self, batch: Batch) -> Tensor:
        """As the policy's, Float32[N]."""
        return self.backend.forward(batch, entropies=False)[0]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Inside the context the adapters are disabled."""
        with self.backend.policy.language.disable_adapter():
            yield


@contextmanager
def make_engine(config: RlConfig, layout: SequenceLayout, data: RlData, language: Any) -> Iterator[Engine]:
    """A `TransformersEngine` on the policy's own weights, with the limits of the config."""
    yield TransformersEngine(
        language, layout, max_text_tokens=max_text_tokens(config, data), max_positions=config.max_length
    )


def max_text_tokens(config: RlConfig, data: RlData) -> int:
    """The most tokens of text before an image, so that the largest one fits within ``max_response_tokens``."""
    return config.max_response_tokens - _largest_image(data.rows)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def resume(config: RlConfig, backend: OptimizerBackend) -> int:
    """Load the latest checkpoint into the backend; returns the iteration to start with.

    Raises UsageError as `check_resumable`.
    """
    check_resumable(config)
    folder = config.folder / CHECKPOINTS
    found = latest(folder)
    all_gather(None)  # all ranks have looked before rank 0 removes anything
    if rank() == 0:
        remove_incomplete(folder)
        _remove_old(config, folder)
        link_best(config.folder, GOAL, MODEL)
    if found is None:
        return 0
    backend.load(found)
    return int(_state(found)["iteration"]) + 1


def check_resumable(config: RlConfig) -> None:
    """Raise UsageError if the run in the folder was started with other sharding, world size or adapters."""
    found = latest(config.folder / CHECKPOINTS)
    if found is None or _state(found)["way"] == _way(config):
        return
    words = ", ".join(f"{name} {value}" for name, value in _state(found)["way"].items())
    raise UsageError(
        f"this run was started with {words}",
        where=str(found),
        hint="use the same settings, or choose another --output",
    )


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def _way(config: RlConfig) -> dict[str, Any]:
    """The settings that must be the same to resume from a checkpoint."""
    sharded = config.sharding != "none"
    return {
        "sharding": config.sharding.removesuffix("-offload"),
        "processes": world_size() if sharded else "any",
        "lora_rank": config.lora_rank,
    }


def save_checkpoint(
    config: RlConfig, base: Base, backend: OptimizerBackend, iteration: int, validation: float | None = None
) -> Path:
    """Write the checkpoint of ``iteration``, unless it exists, and remove older ones. Called on every rank.

    ``validation`` is its validation reward, if known.
    """
    folder = config.folder / CHECKPOINTS
    checkpoint = folder / f"ckpt_{iteration:06d}"
    exists = any(all_gather((checkpoint / MARK).is_file()))
    with writing(f"the checkpoint of iteration {iteration}", folder):
        if not exists:
            save_model(config, base, backend, checkpoint / MODEL)
            backend.save(checkpoint)
            all_gather(None)  # every rank has written its part
        if rank() == 0:
            if validation is not None:
                write_validation(checkpoint, validation)
            if not exists:
                state = {"iteration": iteration, "way": _way(config)}
                with atomic_write(checkpoint / STATE) as aside:
                    aside.write_text(json.dumps(state), encoding="utf-8")
                mark_complete(checkpoint)
    if rank() == 0:
        link_best(config.folder, GOAL, MODEL)
        _remove_old(config, folder)
    return checkpoint


def save_model(config: RlConfig, base: Base, backend: OptimizerBackend, output: Path) -> None:
    """Write the policy as a model folder, with adapters merged. Called on every rank."""
    with backend.full_model() as language:
        if rank() > 0:
            return
        if not backend.policy.adapted:
            save_trained(base, language, output, config.save_format)
            return
        with merged_weights(backend.policy.language) as weights:
            save_trained(base, backend.policy.base, output, config.save_format, state=weights)


def _remove_old(config: RlConfig, folder: Path) -> None:
    every = config.keep_model_every
    remove_old(folder, config.keep_checkpoints, GOAL, lambda iteration: (iteration + 1) % every == 0)
