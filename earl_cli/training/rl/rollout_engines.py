"""Sampling rollouts with vLLM: one engine a rank, one over several ranks, or one in a process on GPUs of its own.

Before it samples, an engine is given the policy's weights; beside a training it gives its GPU memory back afterwards.
An engine of its own belongs to rank 0: the other ranks send it their prompts and receive their completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from earl_cli.config.rl import RlConfig
from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import DeviceError, UsageError
from earl_cli.generation.engine import Completion, Engine, OnCompletion, OnProgress, SamplingRequest
from earl_cli.generation.vllm.engine import VllmEngine
from earl_cli.generation.vllm.process import ProcessEngine
from earl_cli.models.bundle import Base
from earl_cli.models.device import choose_device
from earl_cli.training.common.distributed import all_gather, on_rank_zero, rank, uses_bfloat16, world_size
from earl_cli.training.optimizer_backends import Learner
from earl_cli.training.rl.setup import RlData, max_text_tokens
from earl_cli.training.sft.model import merged_weights


class ColocatedSampler:
    """Lends the engine, as `RlRun.engine` does. Raises what `VllmEngine` raises, at the first loan."""

    def __init__(self, config: RlConfig, base: Base, data: RlData, learner: Learner, device: torch.device) -> None:
        self.config, self.base, self.data, self.learner, self.device = config, base, data, learner, device
        self.engine: VllmEngine | None = None

    @contextmanager
    def __call__(self, language: Any) -> Iterator[Engine]:  # noqa: ARG002 - adapters are merged from the learner's
        """The engine with the policy's weights as they are."""
        engine = self.engine = self.engine or self._start()
        with merged_weights(self.learner.policy.language) as weights:
            engine.update_weights(weights.items())
        shared = int(self.config.engine_args.get("tensor_parallel_size", 1))
        yield TensorParallelEngine(engine, shared) if shared > 1 and world_size() > 1 else engine
        engine.sleep()

    def close(self) -> None:
        """End the engine."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _start(self) -> VllmEngine:
        config = self.config
        arguments: dict[str, Any] = {}
        if self.device.type == "cuda":
            arguments["gpu_memory_utilization"] = config.vllm_gpu_memory_utilization
        if world_size() > 1:
            shared = int(config.engine_args.get("tensor_parallel_size", 1))
            if world_size() % shared:
                what = f"{world_size()} processes can't form engines of {shared} each"
                raise UsageError(what, where="engine_args", hint="tensor_parallel_size must divide the processes")
            arguments["distributed_executor_backend"] = "external_launcher"
        options = engine_options(config, self.base, self.data, self.device)
        return VllmEngine(**options, engine_args={**arguments, **config.engine_args}, sleeping=True)


def engine_options(config: RlConfig, base: Base, data: RlData, device: torch.device) -> dict[str, Any]:
    """What an engine for this run is told, wherever it is: arguments of `VllmEngine`."""
    return {
        "folder": base.language.folder,
        "layout": base.layout,
        "device": device,
        "dtype": torch.bfloat16 if uses_bfloat16(config) else torch.float32,
        "max_text_tokens": max_text_tokens(config, data),
        "max_positions": config.model_context_size,
    }


class TensorParallelEngine:
    """One engine in ``size`` neighbouring processes: each asks for its own completions, all of them draw all of these.

    To be called in every process of the run at the same time.
    """

    def __init__(self, engine: VllmEngine, size: int) -> None:
        self.engine, self.size = engine, size

    def generate(
        self,
        requests: Sequence[SamplingRequest],
        sampling: SamplingParams,
        on_progress: OnProgress | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """As `Engine.generate`."""
        every = all_gather(list(requests))
        first = rank() // self.size * self.size
        ours = [request for part in every[first : first + self.size] for request in part]
        begin = sum(len(part) for part in every[first : rank()])

        def own(request: int, index: int, completion: Completion) -> None:
            if on_completion is not None and begin <= request < begin + len(requests):
                on_completion(request - begin, index, completion)

        return self.engine.generate(ours, sampling, on_progress, own)[begin : begin + len(requests)]


class SeparateSampler:
    """Lends the engine, as `RlRun.engine` does. Raises what `ProcessEngine` raises, at the first loan."""

    def __init__(self, config: RlConfig, base: Base, data: RlData, learner: Learner, device: torch.device) -> None:
        self.config, self.base, self.data, self.learner, self.device = config, base, data, learner, device
        self.engine: ProcessEngine | None = None

    @contextmanager
    def __call__(self, language: Any) -> Iterator[Engine]:  # noqa: ARG002 - adapters are merged from the learner's
        """The engine with the policy's weights as they are."""
        with merged_weights(self.learner.policy.language) as weights:
            on_rank_zero(lambda: self._started().update_weights(weights.items()))
        yield GatheringEngine(self.engine) if self.engine is None or world_size() > 1 else self.engine

    def close(self) -> None:
        """End the engine."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _started(self) -> ProcessEngine:
        if self.engine is None:
            config = self.config
            parts = {"tensor_parallel_size": len(config.engine_gpus)} if config.engine_gpus else {}
            options = engine_options(config, self.base, self.data, self.device)
            self.engine = ProcessEngine(**options, gpus=config.engine_gpus, engine_args={**parts, **config.engine_args})
        return self.engine


class GatheringEngine:
    """The first process's engine in all of them: it draws for everybody, and each gets its own.

    To be called in every process of the run at the same time. Progress is told in the first alone, completions when all
    are there. What the engine raises is raised in every process.
    """

    def __init__(self, engine: ProcessEngine | None) -> None:
        self.engine = engine

    def generate(
        self,
        requests: Sequence[SamplingRequest],
        sampling: SamplingParams,
        on_progress: OnProgress | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """As `Engine.generate`."""
        every = all_gather(list(requests))

        def drawn() -> list[list[Completion]]:
            assert self.engine is not None
            return self.engine.generate([request for part in every for request in part], sampling, on_progress)

        begin = sum(len(part) for part in every[: rank()])
        own = on_rank_zero(drawn)[begin : begin + len(requests)]
        if on_completion is not None:
            for request, group in enumerate(own):
                for index, completion in enumerate(group):
                    on_completion(request, index, completion)
        return own


def check_engine_gpus(config: RlConfig) -> None:
    """Raises UsageError or DeviceError for GPUs of the engine that aren't there, or that this process trains on."""
    device, gpus = choose_device(config.device), config.engine_gpus
    where = "engine_gpus"
    if device.type != "cuda":
        if gpus:
            raise UsageError(f"the training is on {device}, the engine can't be on GPUs", where=where, hint="[]")
        return
    if not gpus:
        hint = "such as --set engine_gpus=[1]"
        raise UsageError("a separate engine needs GPUs that nothing is trained on", where=where, hint=hint)
    there = torch.cuda.device_count()
    if max(gpus) >= there:
        raise DeviceError(f"there are only {there} CUDA devices, numbered from 0", where=where)
    if device.index in gpus:
        raise UsageError(f"{device} is trained on", where=where, hint="name GPUs that no process trains on")
