"""What one server accepts, and the counters that enforce it: requests a minute, requests and bytes at once.

glibc keeps freed memory in an arena a thread; `give_back_memory` returns it to the system after large images.
"""

from __future__ import annotations

import ctypes
import ipaddress
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

MINUTE = 60.0
ADDRESSES_REMEMBERED = 10_000


@dataclass(frozen=True)
class ServerLimits:
    """``rate`` is edits a minute and address, 0 for no limit, ``wrong_keys`` the same for wrong keys; ``upload`` and
    ``uploads`` are bytes, of one request and of all at once; ``requests`` are those for edits at once, of which one
    address has at most its ``share``; the rest are numbers, and times in seconds.

    A client gets ``head_seconds`` for the head of a request (and for the pause before it), ``body_seconds`` for its
    body and for receiving the response; ``timeout`` is that of an edit, from its arrival.
    """

    max_queue: int = 32
    max_variants: int = 8
    max_pixels: int = 50_000_000
    rate: int = 60
    wrong_keys: int = 10
    upload: int = 32 << 20
    uploads: int = 256 << 20
    requests: int = 64
    share: int = 48
    connections: int = 80
    head_seconds: float = 20
    body_seconds: float = 60
    timeout: float = 600


class Rate:
    """Requests of each address in the last minute."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, address: str) -> float:
        """Counts a request, and gives 0; at the limit the seconds until one is allowed, without counting it."""
        return self._wait(address, 1)

    def wait(self, address: str) -> float:
        """The seconds until a request is allowed."""
        return self._wait(address, 0)

    def _wait(self, address: str, more: int) -> float:
        if not self.per_minute:
            return 0.0
        now, client = time.monotonic(), network(address)
        with self._lock:
            times = self._times.setdefault(client, deque())
            self._times.move_to_end(client)
            while len(self._times) > ADDRESSES_REMEMBERED:
                self._times.popitem(last=False)
            while times and times[0] <= now - MINUTE:
                times.popleft()
            if len(times) >= self.per_minute:
                return times[0] + MINUTE - now
            times.extend([now] * more)
            return 0.0


class ConcurrencyLimit:
    """So many requests at once, of which one address has at most its share."""

    def __init__(self, total: int, share: int) -> None:
        self._left, self._share = total, share
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, address: str) -> Iterator[bool]:
        """Whether the request is within the limit; if so, it counts until the end of the block."""
        client = network(address)
        with self._lock:
            granted = self._left > 0 and self._held[client] < self._share
            self._add(client, granted)
        try:
            yield granted
        finally:
            with self._lock:
                self._add(client, -granted)

    def _add(self, client: str, count: int) -> None:
        self._left -= count
        self._held[client] += count
        self._held += Counter()  # forgets those that hold none


class ByteBudget:
    """So many bytes for all requests together."""

    def __init__(self, total: int) -> None:
        self.left = total
        self._lock = threading.Lock()

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], bool]]:
        """A function that takes so many more bytes until the end of the block, and returns whether they were left."""
        held = 0

        def take(size: int) -> bool:
            nonlocal held
            with self._lock:
                granted = size <= self.left
                held += size if granted else 0
                self.left -= size if granted else 0
            return granted

        try:
            yield take
        finally:
            with self._lock:
                self.left += held


def network(address: str) -> str:
    """The unit that limits count: an IPv4 address, or the /64 network of an IPv6 address, as subscribers get those."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    mapped = found.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))


def give_back_memory() -> None:
    """Returns the free memory of every arena in milliseconds; nothing where the C library has no such call."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], int]:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim: Callable[[int], int] = getattr(library, "malloc_trim", lambda _: 0)
    return trim
