"""The version of the installed package, read from its metadata only when somebody asks."""

from __future__ import annotations


def version() -> str:
    """The version in pyproject.toml, for instance "0.1.0"."""
    from importlib import metadata

    return metadata.version("earl-cli")
