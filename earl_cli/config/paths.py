"""Which data sets a config means: named one by one, or listed in a file of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earl_cli.config.formats import parse_json, read_text
from earl_cli.errors import InputError, UsageError

_KINDS = 'a JSON list of paths, a JSON object {"name": "path"}, or text with a path on every line'


def read_paths(listed: Path | Sequence[Path] | None) -> tuple[Path, ...]:
    """The data sets of a config's ``train_paths_file`` or ``val_paths_file``: none, a few, or those that a file lists.

    Such a file is a JSON list of paths, a JSON object of paths by name, or text with a path on every line, blank lines
    and lines that begin with # left out; its order counts, and relative paths start at its folder. A published
    ``tokenized_datalist.json``, {"prefix": …, "path_list": […]}, lists the pairs of one data set and stands for it.
    Raises InputError for a file that is none of these or lists nothing.
    """
    return _in_file(listed) if isinstance(listed, Path) else tuple(listed or ())


def _in_file(file: Path) -> tuple[Path, ...]:
    try:
        text = read_text(file)
    except UsageError as failure:
        what = f"the list of data sets can't be read: {failure.what}"
        raise InputError(what, where=str(file), hint=f"give {_KINDS}") from None
    if text.strip() and (file.suffix.lower() == ".json" or text.lstrip()[0] in "[{"):
        names = _names(_json(text, file), file)
    else:
        lines = (line.strip() for line in text.splitlines())
        names = [line for line in lines if line and not line.startswith("#")]
    if names is None:
        return (file,)
    if not names:
        raise InputError("this file lists no data sets", where=str(file), hint=f"give {_KINDS}")
    return tuple(file.parent / Path(name).expanduser() for name in names)


def _json(text: str, file: Path) -> Any:
    try:
        return parse_json(text)
    except ValueError as failure:
        raise InputError(f"this is not JSON: {failure}", where=str(file), hint=f"give {_KINDS}") from None


def _names(content: Any, file: Path) -> list[str] | None:
    """The paths in a list or an object; None where the file is the list of one data set's own pairs."""
    if isinstance(content, dict) and "path_list" in content:
        return None
    names = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(names, list):
        raise InputError("this file lists no data sets", where=str(file), hint=f"give {_KINDS}")
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"entry {number} is no path: {json.dumps(name)[:60]}", where=str(file), hint=f"give {_KINDS}"
            )
    return names
