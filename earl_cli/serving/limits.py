"""What one server accepts, and the counters that hold it to that: requests a minute, requests and bytes at once.

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
    """``rate`` is edits a minute and address, 0 for no limit, ``wrong_keys`` the same of wrong keys; ``upload`` and
    ``uploads`` are bytes, of one request and of all at once; ``requests`` are those for edits at once, of which one
    address has at most its ``share``; the rest are numbers, and times in seconds.

    A client gets ``head_seconds`` for the head of a request (and for the pause before it), ``body_seconds`` for its
    body and for taking the answer, ``patience`` is how long an edit may take from its arrival.
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
    patience: float = 600


class Rate:
    """How often each address asked in the last minute."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, address: str) -> float:
        """Counts a request; or the seconds until one is allowed, and nothing is counted."""
        return self._wait(address, 1)

    def wait(self, address: str) -> float:
        """The seconds until a request is allowed."""
        return self._wait(address, 0)

    def _wait(self, address: str, more: int) -> float:
        if not self.per_minute:
            return 0.0
        now, who = time.monotonic(), network(address)
        with self._lock:
            asked = self._asked.setdefault(who, deque())
            self._asked.move_to_end(who)
            while len(self._asked) > ADDRESSES_REMEMBERED:
                self._asked.popitem(last=False)
            while asked and asked[0] <= now - MINUTE:
                asked.popleft()
            if len(asked) >= self.per_minute:
                return asked[0] + MINUTE - now
            asked.extend([now] * more)
            return 0.0


class ConcurrencyLimit:
    """So many requests at once, of which one address has at most its share."""

    def __init__(self, total: int, share: int) -> None:
        self._left, self._share = total, share
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, address: str) -> Iterator[bool]:
        """Whether there is a place for this address; if so, it is taken until the end of the block."""
        who = network(address)
        with self._lock:
            granted = self._left > 0 and self._held[who] < self._share
            self._add(who, granted)
        try:
            yield granted
        finally:
            with self._lock:
                self._add(who, -granted)

    def _add(self, who: str, count: int) -> None:
        self._left -= count
        self._held[who] += count
        self._held += Counter()  # forgets those that hold none


class ByteBudget:
    """So many bytes for all requests together."""

    def __init__(self, total: int) -> None:
        self.left = total
        self._lock = threading.Lock()

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], bool]]:
        """What takes so many more bytes until the end of the block, if they are to be had, and says whether."""
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
    """What counts as one address: an IPv6 address is its network of /64, which one subscriber has all of."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    mapped = found.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))


def give_back_memory() -> None:
    """All that is free in every arena; takes milliseconds. Nothing where the C library has no such call."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], int]:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim: Callable[[int], int] = getattr(library, "malloc_trim", lambda _: 0)
    return trim
