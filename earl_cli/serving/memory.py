"""Memory that large pictures took goes back to the system: glibc keeps it, in an arena for each thread.

After the first large block is freed, glibc takes blocks of that size from its arenas, and trims only their ends.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back_memory() -> None:
    """All that is free in every arena; takes milliseconds. Nothing where the C library has no such call."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], int]:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim: Callable[[int], int] = getattr(library, "malloc_trim", lambda _: 0)
    return trim
