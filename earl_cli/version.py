"""The version of the installed package, read from its metadata only when somebody asks."""

from __future__ import annotations

UNKNOWN = "unknown"


def version() -> str:
    """The version in pyproject.toml, for instance "0.1.0"; `UNKNOWN` where only the files are there, not installed."""
    from importlib import metadata

    try:
        return metadata.version("earl-cli")
    except metadata.PackageNotFoundError:
        return UNKNOWN
