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
from earl_cli.generation.editor import takes_vllm
from earl_cli.generation.engine import Engine
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.generation.vllm.environment import checked_arguments
from earl_cli.models.bundle import Base, save_trained
from earl_cli.models.checkpoint import load_language
from earl_cli.models.device import DevicePlan, choose_device, plan
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
from earl_cli.training.optimizer_backends import Learner
from earl_cli.training.rl.policy import Batch, Policy
from earl_cli.training.rl.rollouts import ScoredGroup, sequence_lengths
from earl_cli.training.sft.loss import separate_vocabularies, whole_vocabulary
from earl_cli.training.sft.model import merged_weights, need_peft, with_adapters

MODEL, STATE = "hf_model", "run.json"
GOAL: Goal = "highest"


# -- what a run works with ---------------------------------------------------------------------------------------------


class ReferenceModel(Protocol):
    """The model that the policy shouldn't move far from."""

    def logprobs(self, batch: Batch) -> Tensor:
        """As the policy's, Float32[N], without gradients."""

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Where it can be asked; it may be kept elsewhere."""


class RunCallbacks(Protocol):
    """Who is told how a run goes."""

    def phase(self, iteration: int, what: str) -> None:
        """The iteration, from 0, is at this point."""

    def sampling(self, iteration: int, done: int, expected: int) -> None:
        """So many tokens of an iteration are drawn."""

    def iteration(self, step: int, metrics: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        """``step`` iterations are done; the groups are those of all processes, on those that are logged, else none."""

    def validation(self, step: int, metrics: Mapping[str, float], groups: Sequence[ScoredGroup]) -> None:
        """After ``step`` iterations the policy does so well on prompts that it isn't trained on."""

    def is_best(self, validation: float) -> bool:
        """Whether no model so far had so good a validation: called in every process, and the same in all."""

    def checkpoint(self, iteration: int, validation: float | None) -> None:
        """The iteration is to be kept, with what validation found if it did: called in every process."""

    def waiting(self, iteration: int, problem: EarlError) -> None:
        """The judge is down; the run goes on when it is back. Called in every process, before the first wait."""


@dataclass(frozen=True, eq=False)
class RlRun:
    """What a run works with: ``prompts`` and ``validation`` are rows of ``rows`` and of ``held``.

    ``engine`` lends what samples from a language model as it is; between two loans its memory is free.
    """

    config: RlConfig
    layout: SequenceLayout
    rows: DatasetRows
    prompts: NDArray[np.int64]
    validation_data: DatasetRows | None
    validation_prompts: NDArray[np.int64]
    vision: Any
    learner: Learner
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
    """The data sets of a run, mixed and checked; ``positions`` is how many the model has.

    Raises InputError for data that can't be used, and UsageError for a picture beyond ``max_response_tokens``
    or for fewer rows than an iteration draws.
    """
    places = read_paths(config.train_paths_file) or config.data
    held_places = read_paths(config.val_paths_file) or config.validation
    rows = load_rows(places, layout)
    mixture = mix(rows.sizes, _coefficients(config.coefficients, places), config.random_seed)
    context = min(config.model_context_size, positions)
    picture = _largest_picture(rows)
    if picture > config.max_response_tokens:
        raise UsageError(
            f"a picture of these data takes {picture} tokens, {config.max_response_tokens} are allowed",
            where="max_response_tokens",
            hint=f"--set max_response_tokens={picture}",
        )
    fits = sequence_lengths(rows, config.mode)[mixture.rows] <= context
    if not fits.any():
        shortest = int(sequence_lengths(rows, config.mode).min())
        raise InputError(
            f"no prompt with its picture fits into {context} tokens: the shortest takes {shortest}",
            where=", ".join(map(str, places)),
            hint="raise model_context_size, or tokenize with a smaller --image-area",
        )
    prompts, there = config.prompts_per_iteration, int(fits.sum())
    if there < prompts:
        what = f"an iteration draws {prompts} prompts, but the data have only {there}"
        hint = f"at most {there * config.generations_per_sample} here"
        raise UsageError(what, where="episodes_per_iteration", hint=hint)
    held, validation, validation_skipped = None, np.zeros(0, dtype=np.int64), 0
    if held_places:
        held = load_rows(held_places, layout)
        chosen = sample_rows(held.sizes, config.validation_rows, config.random_seed).rows
        validation = chosen[sequence_lengths(held, config.mode)[chosen] <= context]
        validation_skipped = len(chosen) - len(validation)
        if not len(validation):
            raise InputError(
                f"no validation prompt with its picture fits into {context} tokens",
                where=", ".join(map(str, held_places)),
                hint="raise model_context_size, or tokenize with a smaller --image-area",
            )
    return RlData(rows, mixture, mixture.rows[fits], held, validation, int((~fits).sum()), validation_skipped)


def _coefficients(coefficients: tuple[float, ...] | None, places: tuple[Path, ...]) -> tuple[float, ...] | None:
    if coefficients is not None and len(coefficients) != len(places):
        raise UsageError(f"{len(coefficients)} coefficients for {len(places)} data sets", where="coefficients")
    return coefficients


def _largest_picture(rows: DatasetRows) -> int:
    """The tokens of the largest picture to be drawn, with what opens and what ends it."""
    sides = zip(*(rows.table.column(f"source_{side}").to_pylist() for side in ("height", "width")), strict=True)
    grids = [Grid(*each) for each in set(sides)]
    return max(len(rows.layout.opening(grid)) + grid.tokens + 1 for grid in grids)


# -- model -------------------------------------------------------------------------------------------------------------


def sampler_memory(config: RlConfig, base: Base) -> SamplerMemory | None:
    """What vLLM takes of each GPU that trains; None where it takes none: another engine, or GPUs of its own, or no GPU.

    Raises DeviceError if the GPU that is meant isn't among those that are there.
    """
    here = torch.cuda.is_available()
    if config.device == "cpu" or config.engine_place == "separate" or (config.engine == "auto" and not here):
        return None
    if not takes_vllm(config.engine, config.device, lambda: base.parameters):
        return None
    arguments = checked_arguments(config.engine_args)
    weights = base.parameters * (2 if uses_bfloat16(config) else 4)
    return SamplerMemory(
        share=float(arguments.get("gpu_memory_utilization", config.vllm_gpu_memory_utilization)),
        gpu=torch.cuda.get_device_properties(choose_device(config.device)).total_memory if here else None,
        weights=weights // int(arguments.get("tensor_parallel_size", 1)),
    )


def plan_device(base: Base, config: RlConfig, longest: int) -> DevicePlan:
    """Where a run will train, by calculation: no weight is read.

    Raises DeviceError if a batch with sequences of ``longest`` tokens doesn't fit, MissingExtraError if a package for
    adapters or sharding is missing.
    """
    if config.lora_rank is not None:
        need_peft()
    bfloat16 = uses_bfloat16(config)
    need_deepspeed(config.sharding)
    return plan(
        config.device,
        fixed_bytes=rl_memory(config, base, world_size(), longest).device,
        dtype="bfloat16" if bfloat16 else "float32",
        attention=config.attention,
    )


def load_policy(base: Base, config: RlConfig, longest: int) -> tuple[Policy, FrozenReference | None, DevicePlan]:
    """The policy, its frozen copy if the loss asks for one, and where they run.

    What `plan_device` raises is raised before any weight is read.
    """
    place = plan_device(base, config, longest)
    bfloat16 = uses_bfloat16(config)
    narrow = bfloat16 and (config.sharding != "none" or config.lora_rank is not None)
    parts = separate_vocabularies if config.separate_language_and_vision_vocabs else whole_vocabulary
    head = parts(base.layout.vocabulary), config.temperature

    def load(device: torch.device, dtype: torch.dtype) -> Any:
        return load_language(base.language.folder, device=device, dtype=dtype, attention=place.attention)

    first = torch.device("cpu") if config.sharding.startswith("zero3") else place.device
    language = load(first, torch.bfloat16 if narrow else torch.float32)
    if config.lora_rank is not None:
        language = with_adapters(language, config.lora_rank, config.lora_alpha, 0.0, config.random_seed)
    policy = Policy(language, *head, recompute=config.gradient_checkpointing)
    reference = None
    if config.kl_coeff > 0 and config.lora_rank is None:
        frozen = Policy(load(torch.device("cpu"), torch.bfloat16 if bfloat16 else torch.float32), *head)
        reference = FrozenReference(frozen.requires_grad_(False), place.device)
    return policy, reference, place


class FrozenReference:
    """A copy of the policy as it was at the start, kept in the host's memory and brought to the device to score."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self.policy, self.device = policy, device

    def logprobs(self, batch: Batch) -> Tensor:
        """As the policy's, Float32[N]."""
        found: Tensor = self.policy(batch)[0]
        return found

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """On the device."""
        self.policy.to(self.device)
        try:
            yield
        finally:
            self.policy.to("cpu")


class AdapterFreeReference:
    """The policy without its adapters, which is what it was at the start."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def logprobs(self, batch: Batch) -> Tensor:
        """As the policy's, Float32[N]."""
        return self.learner.forward(batch, entropies=False)[0]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """With the adapters switched off."""
        with self.learner.policy.language.disable_adapter():
            yield


@contextmanager
def make_engine(config: RlConfig, layout: SequenceLayout, data: RlData, language: Any) -> Iterator[Engine]:
    """The engine that samples from the policy where it is, within the limits of the config."""
    yield TransformersEngine(
        language, layout, max_text_tokens=max_text_tokens(config, data), max_positions=config.model_context_size
    )


def max_text_tokens(config: RlConfig, data: RlData) -> int:
    """Tokens of text before a picture that leave room for the largest one within ``max_response_tokens``."""
    return config.max_response_tokens - _largest_picture(data.rows)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def resume(config: RlConfig, learner: Learner) -> int:
    """Bring the learner to where the newest checkpoint is; the iteration to begin with.

    Raises UsageError if the run was begun in a way in which today's can't go on.
    """
    check_resumable(config)
    folder = config.folder / CHECKPOINTS
    found = latest(folder)
    all_gather(None)  # every process has looked before the first one tidies up
    if rank() == 0:
        remove_incomplete(folder)
        _remove_old(config, folder)
        link_best(config.folder, GOAL, MODEL)
    if found is None:
        return 0
    learner.load(found)
    return int(_begun(found)["iteration"]) + 1


def check_resumable(config: RlConfig) -> None:
    """Raise UsageError if the run in the folder was begun in a way in which today's can't go on."""
    found = latest(config.folder / CHECKPOINTS)
    if found is None or _begun(found)["way"] == _way(config):
        return
    words = ", ".join(f"{name} {value}" for name, value in _begun(found)["way"].items())
    raise UsageError(
        f"this run was begun with {words}",
        where=str(found),
        hint="go on in the same way, or choose another --output",
    )


def _begun(checkpoint: Path) -> dict[str, Any]:
    begun: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return begun


def _way(config: RlConfig) -> dict[str, Any]:
    """What a checkpoint's state depends on."""
    sharded = config.sharding != "none"
    return {
        "sharding": config.sharding.removesuffix("-offload"),
        "processes": world_size() if sharded else "any",
        "lora_rank": config.lora_rank,
    }


def save_checkpoint(
    config: RlConfig, base: Base, learner: Learner, iteration: int, validation: float | None = None
) -> Path:
    """Write the checkpoint after ``iteration``, unless it is there, and let older ones go. Called in every process.

    ``validation`` is the reward of its model on the validation rows, if that is known.
    """
    folder = config.folder / CHECKPOINTS
    checkpoint = folder / f"ckpt_{iteration:06d}"
    there = any(all_gather((checkpoint / MARK).is_file()))
    with writing(f"the checkpoint of iteration {iteration}", folder):
        if not there:
            save_model(config, base, learner, checkpoint / MODEL)
            learner.save(checkpoint)
            all_gather(None)  # every process has written its part
        if rank() == 0:
            if validation is not None:
                write_validation(checkpoint, validation)
            if not there:
                begun = {"iteration": iteration, "way": _way(config)}
                with atomic_write(checkpoint / STATE) as aside:
                    aside.write_text(json.dumps(begun), encoding="utf-8")
                mark_complete(checkpoint)
    if rank() == 0:
        link_best(config.folder, GOAL, MODEL)
        _remove_old(config, folder)
    return checkpoint


def save_model(config: RlConfig, base: Base, learner: Learner, output: Path) -> None:
    """Write the policy as a model of its own, adapters multiplied in. Called in every process."""
    with learner.full_model() as language:
        if rank() > 0:
            return
        if not learner.policy.adapted:
            save_trained(base, language, output, config.save_layout)
            return
        with merged_weights(learner.policy.language) as state:
            save_trained(base, learner.policy.base, output, config.save_layout, state=state)


def _remove_old(config: RlConfig, folder: Path) -> None:
    every = config.keep_checkpoints_every_n_iterations
    remove_old(folder, config.keep, GOAL, lambda iteration: (iteration + 1) % every == 0)
