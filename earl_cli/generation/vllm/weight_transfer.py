"""Weights from training to an engine in another process, by vLLM's weight transfer.

Between GPUs the transport is NCCL. vLLM has none for CPUs, so this module has one, which is registered under a name of
its own: the trainer writes all weights into memory that both processes map, and the engine's workers load them from it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from earl_cli.generation.vllm.plugin import MEMORY, NCCL

LOCALHOST = "127.0.0.1"


class StateDictSource(WeightSource):
    """The weights of the next transfer by name, sent from ``device`` in ``dtype``."""

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self.weights, self.device, self.dtype = weights, device, dtype

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, self.dtype, tuple(weight.shape)) for name, weight in self.weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.detach().to(self.device, self.dtype)) for name, weight in self.weights.items())


def create_sender(
    backend: str, client: VLLMWeightSyncClient, source: StateDictSource, workers: int
) -> TrainerWeightTransferEngine:
    """A sender of ``source``; ``client`` calls the engine, which has ``workers`` processes.

    With NCCL this process's current GPU is rank 0 of the group, and the workers' GPUs are the others.
    """
    if backend == MEMORY:
        return MemorySender.trainer_init(MemorySenderInit(rank=0), client=client, source=source)
    assert backend == NCCL
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
    from vllm.utils.network_utils import get_open_port

    group = NCCLTrainerInitInfo(LOCALHOST, get_open_port(), 1 + workers, rank=0)
    return NCCLTrainerWeightTransferEngine.trainer_init(group, client=client, source=source)


# -- shared memory -----------------------------------------------------------------------------------------------------


@dataclass
class MemoryInit(WeightTransferInitInfo):
    """Path of the shared memory, and number and dtype of its elements."""

    path: str
    size: int
    dtype: str


@dataclass
class MemoryUpdate(WeightTransferUpdateInfo):
    """Names and shapes of the weights in the memory, in order."""

    names: list[str]
    shapes: list[tuple[int, ...]]


class MemoryReceiver(WeightTransferEngine[MemoryInit, MemoryUpdate]):
    """In each of the engine's workers: loads weights from the memory, as vLLM's own transports do."""

    init_info_cls = MemoryInit
    update_info_cls = MemoryUpdate

    def init_transfer_engine(self, init_info: MemoryInit) -> None:
        self.memory: Tensor | None = _map_memory(init_info)

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As vLLM's, without the synchronisation of a GPU, which fails where there is none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: MemoryUpdate) -> None:
        assert self.memory is not None
        self.model.load_weights(zip(update_info.names, _split_memory(self.memory, update_info.shapes), strict=True))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self.memory = None


@dataclass
class MemorySenderInit(TrainerInitInfo):
    """No settings."""

    backend: ClassVar[str] = MEMORY


class MemorySender(TrainerWeightTransferEngine[MemorySenderInit]):
    """In the trainer: writes the weights into anonymous memory, and calls the engine to load them."""

    init_info_cls = MemorySenderInit
    memory: Tensor

    @classmethod
    def trainer_init(
        cls, init_info: MemorySenderInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        assert source is not None
        sender = cls(client=client, source=source, is_sender=init_info.is_sender)
        metadata = source.metadata()
        dtype, size = metadata[0].dtype, sum(math.prod(each.shape) for each in metadata)
        file = os.memfd_create("earl-weights")
        try:
            os.ftruncate(file, size * dtype.itemsize)
            place = MemoryInit(f"/proc/{os.getpid()}/fd/{file}", size, str(dtype).removeprefix("torch."))
            sender.memory = _map_memory(place)
            client.init_weight_transfer_engine(asdict(place))
        finally:
            os.close(file)
        return sender

    def send_weights(self) -> None:
        assert self.source is not None
        metadata = self.source.metadata()
        update = MemoryUpdate([each.name for each in metadata], [each.shape for each in metadata])
        for (_, weight), place in zip(self.source, _split_memory(self.memory, update.shapes), strict=True):
            place.copy_(weight)
        self.client.start_weight_update()
        self.client.update_weights(asdict(update))
        self.client.finish_weight_update()


def _map_memory(place: MemoryInit) -> Tensor:
    return torch.from_file(place.path, shared=True, size=place.size, dtype=getattr(torch, place.dtype))


def _split_memory(memory: Tensor, shapes: Sequence[tuple[int, ...]]) -> Iterator[Tensor]:
    parts = torch.split(memory, [math.prod(shape) for shape in shapes])
    return (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
