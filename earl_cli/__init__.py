"""EARL: instruction-based image editing with an autoregressive model (arXiv 2508.01119)."""

from __future__ import annotations

UNKNOWN = "unknown"


def version() -> str:
    """The version in pyproject.toml, for instance "0.1.0"; `UNKNOWN` where only the files are there, not installed."""
    from importlib import metadata

    try:
        return metadata.version("earl-cli")
    except metadata.PackageNotFoundError:
        return UNKNOWN
