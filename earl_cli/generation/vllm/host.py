"""The process that `ProcessEngine` starts: an engine that serves one connection, and exits when it is closed.

``python -m earl_cli.generation.vllm.host 7`` uses the inherited socket 7. The first message holds the engine's
arguments; every other one is a call: its name and arguments.
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
"""Seconds between two checks that the parent process is alive, and until a forced exit once it isn't."""

CallQueue = SimpleQueue[tuple[Any, ...] | None]


def host(connection: Connection) -> None:
    """Run calls until the connection is closed."""
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
        pass  # the parent process has exited
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
    """The completions; callbacks that are ``wanted`` are sent meanwhile, by name."""

    def sender(what: str) -> Any:
        return (lambda *news: connection.send((what, *news))) if what in wanted else None

    return engine.generate(requests, sampling, sender("progress"), sender("completion"))


def _receive_calls(connection: Connection, calls: CallQueue, parent: int) -> None:
    """Queue calls until the parent closes the connection or exits; then force this process to exit in time."""
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
    os._exit(0)  # everything is closed; a normal exit would collect garbage for seconds
