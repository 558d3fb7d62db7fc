"""Sampling rollouts with vLLM: an engine for each rank, one for several ranks, or one in a process with its own GPUs.

An engine receives the policy's weights before it samples. On the GPUs of the training it frees its memory afterwards. A
separate engine belongs to rank 0: the other ranks send it their prompts and receive their completions.
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
from earl_cli.training.optimizer_backends import OptimizerBackend
from earl_cli.training.rl.setup import RlData, max_text_tokens
from earl_cli.training.sft.model import merged_weights


class ColocatedSampler:
    """`RlRun.engine` with vLLM on the GPUs of the training. The first call raises what `VllmEngine` raises."""

    def __init__(
        self, config: RlConfig, base: Base, data: RlData, backend: OptimizerBackend, device: torch.device
    ) -> None:
        self.config, self.base, self.data, self.backend, self.device = config, base, data, backend, device
        self.engine: VllmEngine | None = None

    @contextmanager
    def __call__(self, language: Any) -> Iterator[Engine]:  # noqa: ARG002 - adapters are merged from the backend's
        """Inside the context: the engine with the present weights of the policy."""
        engine = self.engine = self.engine or self._start()
        with merged_weights(self.backend.policy.language) as weights:
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
                what = f"{world_size()} processes can't be divided into engines of {shared}"
                hint = "the number of processes must be a multiple of tensor_parallel_size"
                raise UsageError(what, where="engine_args", hint=hint)
            arguments["distributed_executor_backend"] = "external_launcher"
        options = engine_options(config, self.base, self.data, self.device)
        return VllmEngine(**options, engine_args={**arguments, **config.engine_args}, sleeping=True)


def engine_options(config: RlConfig, base: Base, data: RlData, device: torch.device) -> dict[str, Any]:
    """The arguments of `VllmEngine` for this run, except those of its GPUs."""
    return {
        "folder": base.language.folder,
        "layout": base.layout,
        "device": device,
        "dtype": torch.bfloat16 if uses_bfloat16(config) else torch.float32,
        "max_text_tokens": max_text_tokens(config, data),
        "max_positions": config.max_length,
    }


class TensorParallelEngine:
    """One tensor-parallel engine on ``size`` consecutive ranks: they sample all of their requests together.

    Must be called on every rank at the same time; each rank gets its own completions.
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
        gathered = all_gather(list(requests))
        first = rank() // self.size * self.size
        ours = [request for part in gathered[first : first + self.size] for request in part]
        begin = sum(len(part) for part in gathered[first : rank()])

        def own(request: int, index: int, completion: Completion) -> None:
            if on_completion is not None and begin <= request < begin + len(requests):
                on_completion(request - begin, index, completion)

        return self.engine.generate(ours, sampling, on_progress, own)[begin : begin + len(requests)]


class SeparateSampler:
    """`RlRun.engine` with vLLM on its own GPUs. The first call raises what `ProcessEngine` raises."""

    def __init__(
        self, config: RlConfig, base: Base, data: RlData, backend: OptimizerBackend, device: torch.device
    ) -> None:
        self.config, self.base, self.data, self.backend, self.device = config, base, data, backend, device
        self.engine: ProcessEngine | None = None

    @contextmanager
    def __call__(self, language: Any) -> Iterator[Engine]:  # noqa: ARG002 - adapters are merged from the backend's
        """Inside the context: the engine with the present weights of the policy."""
        with merged_weights(self.backend.policy.language) as weights:
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
    """The engine of rank 0 for all ranks: it samples the requests of all, and each rank gets its own completions.

    Must be called on every rank at the same time. Only rank 0 reports progress; completions are reported when all are
    sampled. What the engine raises is raised on every rank.
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
        gathered = all_gather(list(requests))

        def sample_all() -> list[list[Completion]]:
            assert self.engine is not None
            return self.engine.generate([request for part in gathered for request in part], sampling, on_progress)

        begin = sum(len(part) for part in gathered[: rank()])
        own = on_rank_zero(sample_all)[begin : begin + len(requests)]
        if on_completion is not None:
            for request, group in enumerate(own):
                for index, completion in enumerate(group):
                    on_completion(request, index, completion)
        return own


def check_engine_gpus(config: RlConfig) -> None:
    """Raise UsageError or DeviceError if GPUs of the engine don't exist or if this process trains on one of them."""
    device, gpus = choose_device(config.device), config.engine_gpus
    where = "engine_gpus"
    if device.type != "cuda":
        if gpus:
            raise UsageError(f"the training runs on {device}, so the engine can't have GPUs", where=where, hint="[]")
        return
    if not gpus:
        hint = "such as --set engine_gpus=[1]"
        raise UsageError("a separate engine needs GPUs that no process trains on", where=where, hint=hint)
    count = torch.cuda.device_count()
    if max(gpus) >= count:
        raise DeviceError(f"there are only {count} CUDA devices, numbered from 0", where=where)
    if device.index in gpus:
        raise UsageError(f"a process trains on {device}", where=where, hint="name GPUs that no process trains on")
