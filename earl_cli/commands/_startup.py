"""How a command that needs a model starts: its imports and its model come without a search for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Imports and loading make millions of objects that stay; looking for garbage among them takes a quarter longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
