"""Tokenized data in the published format, as the published code writes them, for tests of several rooms."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIST = "list/tokenized_datalist.json"


def fields(number: int, height: int = 3, width: int = 4, **changes: Any) -> dict[str, Any]:
    """A pair as the published code saves it."""
    rng = np.random.default_rng(number)
    return {
        "edit_id": f"{number}.pth",
        "original_image": rng.integers(0, 32768, (height, width)),
        "edited_image": rng.integers(0, 32768, (height, width)),
        "CoT": {"reasoning": f"because {number}"},
        "instruction": f"make it {number}",
    } | changes


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def publish(base: Path, files: Mapping[str, bytes], prefix: str = "/cluster/of/somebody/feature") -> Path:
    """A published folder of these files, in this order; the prefix is as useless as in downloaded data."""
    for name, content in files.items():
        path = base / "feature" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (base / "list").mkdir(parents=True, exist_ok=True)
    (base / LIST).write_text(json.dumps({"prefix": prefix, "path_list": list(files)}))
    return base


def numbers(*which: int) -> dict[str, bytes]:
    return {f"{number}.pth": saved(fields(number)) for number in which}


def pack(base: Path, archive: Path, top: str = "") -> Path:
    """The published folder in an archive, below ``top``; the files stand in the reverse order of their names."""
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as tar:
        for path in sorted(base.rglob("*"), reverse=True):
            tar.add(path, f"{top}{path.relative_to(base)}", recursive=False)
    return archive


def rezip(content: bytes, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with another pickle in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("/data.pkl") else old.read(name))
    return stream.getvalue()
