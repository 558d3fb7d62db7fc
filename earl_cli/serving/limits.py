"""What one server takes on, and the two counters that hold it to that: requests a minute, and bytes at a time."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MINUTE = 60.0
ADDRESSES_REMEMBERED = 10_000


@dataclass(frozen=True)
class Limits:
    """``rate`` is edits a minute and address, 0 for no limit; ``upload`` and ``uploads`` are bytes, of one request and
    of all at once; the rest are numbers, and times in seconds.

    A client gets ``head_seconds`` for the head of a request (and for the pause before it), ``body_seconds`` for its
    body and for taking the answer, ``patience`` is how long an edit may take from its arrival.
    """

    max_queue: int = 32
    max_variants: int = 8
    max_pixels: int = 100_000_000
    rate: int = 60
    upload: int = 32 << 20
    uploads: int = 256 << 20
    connections: int = 64
    head_seconds: float = 20
    body_seconds: float = 60
    patience: float = 600


class Rate:
    """How often each address asked in the last minute. An IPv6 address counts as its network of /64."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Counts a request; or the seconds until one is allowed, and nothing is counted."""
        if not self.per_minute:
            return 0.0
        now, who = time.monotonic(), _network(address)
        with self._lock:
            asked = self._asked.setdefault(who, deque())
            self._asked.move_to_end(who)
            while len(self._asked) > ADDRESSES_REMEMBERED:
                self._asked.popitem(last=False)
            while asked and asked[0] <= now - MINUTE:
                asked.popleft()
            if len(asked) >= self.per_minute:
                return asked[0] + MINUTE - now
            asked.append(now)
            return 0.0


class Budget:
    """So many bytes for all requests together."""

    def __init__(self, total: int) -> None:
        self.left = total
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, size: int) -> Iterator[bool]:
        """Whether ``size`` bytes are to be had; if so, they are taken until the end of the block."""
        with self._lock:
            granted = size <= self.left
            self.left -= size if granted else 0
        try:
            yield granted
        finally:
            with self._lock:
                self.left += size if granted else 0


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    mapped = found.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
