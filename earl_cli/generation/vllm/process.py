"""The engine vllm in a separate process, on GPUs of its own; weights are sent by vLLM's weight transfer.

A pair of sockets connects the processes; no other process can open it. Every call has a timeout, a dead process is an
error within a second, and the engine's process exits when this one exits, for whatever reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import EarlError
from earl_cli.generation.engine import Completion, OnCompletion, OnProgress, SamplingRequest
from earl_cli.generation.vllm.engine import Timeouts
from earl_cli.generation.vllm.environment import check_device, log_file, require_vllm, set_environment
from earl_cli.generation.vllm.plugin import MEMORY, NCCL
from earl_cli.generation.vllm.watchdog import EngineError, EngineThread
from earl_cli.tokens.layout import SequenceLayout

if TYPE_CHECKING:
    from earl_cli.generation.vllm.weight_transfer import StateDictSource

STDERR = 2
HOST_MODULE = "earl_cli.generation.vllm.host"
LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


class ProcessEngine:
    """`VllmEngine` in another process; ``options`` are the rest of its arguments.

    Only ``gpus`` are visible to it, numbered as in this process. Raises what `VllmEngine` raises, and EngineError if
    the process exits by itself.
    """

    def __init__(
        self,
        folder: Path,
        layout: SequenceLayout,
        *,
        device: torch.device,
        dtype: torch.dtype,
        gpus: Sequence[int] = (),
        timeouts: Timeouts | None = None,
        **options: Any,
    ) -> None:
        require_vllm()
        check_device(torch.device(device.type))
        set_environment(device, eager=False)
        log = log_file()
        self.device, self.dtype, self.timeouts = device, dtype, timeouts or Timeouts()
        self._transport = NCCL if device.type == "cuda" else MEMORY
        self._source: StateDictSource | None = None
        self._sender: Any = None
        self._failure: str | None = None
        self._connection, theirs = Pipe()
        with nullcontext(STDERR) if log is None else log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", HOST_MODULE, str(theirs.fileno())],
                env=process_environment(gpus),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        theirs.close()
        self._thread = EngineThread("the vLLM engine", log, self._exit_reason)
        settings = {
            "folder": folder,
            "layout": layout,
            "device": torch.device(device.type),
            "dtype": dtype,
            "timeouts": self.timeouts,
            "transport": self._transport,
            **options,
        }
        try:
            self.workers = self._call("the start", self.timeouts.start, lambda: self._request(settings))
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        requests: Sequence[SamplingRequest],
        sampling: SamplingParams,
        on_progress: OnProgress | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """As `VllmEngine.generate`. After an exception from outside, such as Ctrl-C, the engine must be closed."""
        callbacks = {"progress": on_progress, "completion": on_completion}
        wanted = [name for name, callback in callbacks.items() if callback is not None]
        call = ("generate", list(requests), sampling, wanted)
        try:
            self._call("sending requests", self.timeouts.other, lambda: self._send_call(call))
            while (reply := self._call("a sampling step", self.timeouts.step, self._receive))[0] != "done":
                callback = callbacks[reply[0]]
                assert callback is not None
                callback(*reply[1:])
        except EarlError:
            raise
        except BaseException:
            self._thread.dead = True  # the rest of the reply is never read
            raise
        found: list[list[Completion]] = reply[1]
        return found

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights by ``weights``, under the model's own names, and clear the caches."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # these weights were computed in another thread
        given = dict(weights)
        self._call("an update of the weights", self.timeouts.update, lambda: self._send_weights(given))

    def close(self) -> None:
        """End the engine's process, dead or alive."""
        if self._thread.dead:
            self._process.kill()
        self._thread.close(self.timeouts.shutdown, self._connection.close)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self.timeouts.shutdown)
        self._process.kill()
        self._process.wait()

    # -- messages: everything from `_request` on runs in the engine thread, or in one that it waits for ----------------

    def _call(self, what: str, seconds: float, function: Any) -> Any:
        return self._thread.call(what, seconds, function)

    def _exit_reason(self) -> str | None:
        code = self._process.poll()
        return self._failure if code is None else f"its process ended with {code}"

    def _request(self, *call: Any) -> Any:
        self._send_call(call)
        return self._receive()[1]

    def _send_call(self, call: tuple[Any, ...]) -> None:
        try:
            self._connection.send(call)
        except OSError as lost:
            raise self._connection_lost() from lost

    def _receive(self) -> Any:
        try:
            reply = self._connection.recv()
        except (EOFError, OSError) as lost:
            raise self._connection_lost() from lost
        if reply[0] != "failed":
            return reply
        failure: EarlError = reply[1]
        if not isinstance(failure, EngineError):
            raise failure
        self._failure = failure.what  # for a transfer that is still waiting for the engine
        raise self._thread.error(failure.what)

    def _connection_lost(self) -> ConnectionError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self.timeouts.shutdown)
        return ConnectionError(self._exit_reason() or "its process closed the connection")

    def _send_weights(self, weights: Mapping[str, Tensor]) -> None:
        from earl_cli.generation.vllm.weight_transfer import StateDictSource, create_sender

        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            if self._source is None:
                self._source = StateDictSource(weights, self.device, self.dtype)
                self._sender = create_sender(self._transport, _Client(self._request), self._source, self.workers)
            self._source.weights = weights
            self._sender.send_weights()
            self._source.weights = {}


class _Client:
    """The calls of a sender to the engine, in vLLM's protocol."""

    def __init__(self, ask: Any) -> None:
        self._request = ask

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._request("transfer", "init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._request("transfer", "start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._request("transfer", "update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._request("transfer", "finish_weight_update", weight_version)


def process_environment(gpus: Sequence[int]) -> dict[str, str]:
    """The environment of the engine's process: this one's without torchrun's variables, and with only ``gpus``."""
    found = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    if gpus:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else None
        found["CUDA_VISIBLE_DEVICES"] = ",".join(names[gpu] if names else str(gpu) for gpu in gpus)
    found["PYTHONPATH"] = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    return found
