"""EARL: instruction-based image editing with an autoregressive model (arXiv 2508.01119).

The names in ``__all__`` are the public API (docs/API.md); every module is internal. They are imported when they are
used first, so that ``import earl_cli`` itself loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from earl_cli.errors import (
        DeviceError,
        EarlError,
        InputError,
        MissingExtraError,
        ModelError,
        OutputError,
        UsageError,
    )
    from earl_cli.generation.edited_image import EditedImage
    from earl_cli.generation.editor import Editor, load_editor
    from earl_cli.rewards.reward import Edit, JudgeDownError, Reward, Score, reward

    __version__: str

__all__ = [
    "DeviceError",
    "EarlError",
    "Edit",
    "EditedImage",
    "Editor",
    "InputError",
    "JudgeDownError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Reward",
    "Score",
    "UsageError",
    "__version__",
    "load_editor",
    "reward",
]

UNKNOWN = "unknown"
_MODULES = {
    "EditedImage": "generation.edited_image",
    **dict.fromkeys(("Editor", "load_editor"), "generation.editor"),
    **dict.fromkeys(("Edit", "JudgeDownError", "Reward", "Score", "reward"), "rewards.reward"),
}
"""Where a public name is that isn't in `earl_cli.errors`."""


def version() -> str:
    """The version in pyproject.toml, for instance "0.1.0"; `UNKNOWN` where only the files are there, not installed."""
    from importlib import metadata

    try:
        return metadata.version("earl-cli")
    except metadata.PackageNotFoundError:
        return UNKNOWN


if not TYPE_CHECKING:  # a type checker knows the names from above, and what isn't among them is an error

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "__version__":
            return version()
        return getattr(import_module(f"earl_cli.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
