"""What whole commands are run on: a disk that is too small."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("killing")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of its own with so many bytes, and more at a later call."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: int) -> Path:
        how = ",".join([*(["remount"] if place.is_mount() else []), f"size={size}"])
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            done = False
        if not done:
            pytest.skip("mounting a disk of its own is not allowed here")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)
