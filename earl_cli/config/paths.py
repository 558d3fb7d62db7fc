"""Which data sets a config means: named one by one, or listed in a file of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earl_cli.errors import InputError, UsageError

_KINDS = 'a JSON list of paths, a JSON object {"name": "path"}, or text with a path on every line'


def data_sets(
    named: Sequence[Path], listed: Path | Sequence[Path] | None, coefficients: Sequence[float] | None
) -> tuple[Path, ...]:
    """The data sets of a config's ``data`` and ``train_paths_file``, or ``validation`` and ``val_paths_file``.

    ``listed`` are data sets themselves, as in the published configs, or the file that lists them. Raises UsageError
    where there isn't a coefficient for each, InputError as `read_paths`.
    """
    more = read_paths(listed) if isinstance(listed, Path) else tuple(listed or ())
    found = (*named, *more)
    if coefficients is not None and len(coefficients) != len(found):
        what = f"{len(coefficients)} coefficients for {len(found)} data sets"
        raise UsageError(what, where="coefficients", hint="give one for each, or none: then all count the same")
    return found


def read_paths(file: Path) -> tuple[Path, ...]:
    """The data sets that a file lists, in its order; relative paths start at the file's folder.

    The file is a JSON list of paths, a JSON object of paths by name, or text with a path on every line, blank lines and
    lines that begin with # left out. A published ``tokenized_datalist.json``, {"prefix": …, "path_list": […]}, lists
    the pairs of one data set and stands for it. Raises InputError for a file that is none of these or lists nothing.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as failure:
        what = getattr(failure, "strerror", None) or "this is no text"
        raise InputError(
            f"the list of data sets can't be read: {what}", where=str(file), hint=f"give {_KINDS}"
        ) from None
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
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as failure:
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
