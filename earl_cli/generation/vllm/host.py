"""The process that `vllm_process` starts: an engine that answers one connection, and ends with it.

``python -m earl_cli.generation.vllm.host 7`` talks over the inherited socket 7. The first call holds the engine's
arguments; every other one names what is to be done.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import EarlError
from earl_cli.generation.engine import SamplingRequest
from earl_cli.generation.vllm.engine import VllmEngine

POLL_SECONDS, SHUTDOWN_SECONDS = 1.0, 10.0
"""Seconds between two looks at whether the asking process is there, and to end in once it isn't."""

CallQueue = SimpleQueue[tuple[Any, ...] | None]


def host(connection: Connection) -> None:
    """Answer until nobody asks any more."""
    calls: CallQueue = SimpleQueue()
    threading.Thread(target=_receive_calls, args=(connection, calls, os.getppid()), daemon=True).start()
    first = calls.get()
    if first is None:
        return
    try:
        engine = VllmEngine(**first[0])
    except EarlError as failure:
        connection.send(("failed", failure))
        return
    try:
        connection.send(("done", engine.workers))
        while (call := calls.get()) is not None:
            try:
                connection.send(("done", _run_call(engine, connection, *call)))
            except EarlError as failure:
                connection.send(("failed", failure))
    except ConnectionError:
        pass  # who asked is no more
    finally:
        engine.close()


def _run_call(engine: VllmEngine, connection: Connection, what: str, *given: Any) -> Any:
    if what == "generate":
        return _generate(engine, connection, *given)
    assert what == "transfer"
    return engine.transfer(*given)


def _generate(
    engine: VllmEngine,
    connection: Connection,
    requests: list[SamplingRequest],
    sampling: SamplingParams,
    wanted: list[str],
) -> Any:
    """The completions; what is ``wanted`` meanwhile is told by its name."""

    def sender(what: str) -> Any:
        return (lambda *news: connection.send((what, *news))) if what in wanted else None

    return engine.generate(requests, sampling, sender("progress"), sender("completion"))


def _receive_calls(connection: Connection, calls: CallQueue, parent: int) -> None:
    """Hand calls on until the asking process has hung up or is no more; then nothing may keep this one alive."""
    try:
        while os.getppid() == parent:
            if connection.poll(POLL_SECONDS):
                calls.put(connection.recv())
    except (EOFError, OSError):
        pass
    calls.put(None)
    time.sleep(SHUTDOWN_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    host(Connection(int(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # all is closed; the interpreter would look for garbage for seconds
