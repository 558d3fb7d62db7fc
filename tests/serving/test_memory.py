"""What a large image took is there again for others once its edit is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from serving_servers import eventually, running, saved

from earl_cli.serving.limits import ServerLimits

MIB = 1 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and other C libraries keep less")
def test_a_large_image_leaves_no_memory_behind() -> None:
    large = saved(Image.new("RGB", (6000, 4000), "teal"), "JPEG")  # 96 MB in Pillow, before and after
    with running(limits=ServerLimits(rate=0)) as server:
        server.post()
        before = resident()
        assert server.post(image=large, output_format="jpeg").status_code == 200
        assert eventually(lambda: resident() - before < 60 * MIB)
