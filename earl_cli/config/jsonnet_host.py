"""The process that evaluates a Jsonnet file, run as a script: endless recursion or a huge string ends no other.

It reads one JSON object from stdin: file, variables, aliases of keys, and the limits seconds and bytes. It writes one
to stdout: ``value`` (JSON in a string), or ``missing`` (names and places of variables that aren't set), or ``error``
and its ``place``.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

MOST_MISSING = 50
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
_UNDEFINED = re.compile(r"external variable is not defined: (\S+)(?:\n\s+(\S.*?:\d+:\d+))?")
_READING = re.compile(r"^import_callback error: \w+: ")
_PLACE = re.compile(r"\n\s+(\S.*?:\d+:\d+)")


def main() -> None:
    """Evaluate the file that stdin names."""
    request = json.load(sys.stdin)
    for limit, amount in (("RLIMIT_AS", request["bytes"]), ("RLIMIT_CPU", request["seconds"]), ("RLIMIT_CORE", 0)):
        with suppress(ValueError, OSError):  # macOS has no limit of addresses
            resource.setrlimit(getattr(resource, limit), (amount, amount))
    json.dump(evaluate(request["file"], request["variables"], request["aliases"]), sys.stdout)


def evaluate(file: str, variables: dict[str, str], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The result; missing variables are replaced by "", so that all of them are found."""
    import rjsonnet

    missing: list[tuple[str, str]] = []
    while True:
        try:
            value = rjsonnet.evaluate_file(file, ext_vars=variables, import_callback=partial(_read, aliases))
        except RuntimeError as error:
            undefined = _UNDEFINED.match(str(error))
            if undefined and len(missing) < MOST_MISSING:
                missing.append((undefined[1], undefined[2] or f"{file}:1:1"))
                variables = {**variables, undefined[1]: ""}
                continue
            if not missing:
                place = _PLACE.search(str(error))
                what = _READING.sub("", str(error).splitlines()[0])
                return {"error": what[:300], "place": place[1] if place else None}
        return {"missing": missing} if missing else {"value": value}


def _read(aliases: Mapping[str, str], folder: str, name: str) -> tuple[str, str]:
    """The path and the text of the file or of an import, in UTF-8, UTF-16 or UTF-32, with or without a mark."""
    path = Path(folder, name)
    try:
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except OSError as error:
        raise RuntimeError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RuntimeError(f"{path} is no text in UTF-8") from None
    return str(path), _with_aliases(text, aliases) if path.resolve().is_relative_to(RECIPES) else text


def _with_aliases(recipe: str, aliases: Mapping[str, str]) -> str:
    """The recipe with a hidden field for each alias of its keys, so that overriding the alias overrides the key.

    The key takes its value from its first alias, that from the second, and so on; the last has the recipe's value.
    """
    fields = []
    for key in dict.fromkeys(aliases.values()):
        chain = [key, *(alias for alias, meant in aliases.items() if meant == key)]
        values = [*(f'self["{alias}"]' for alias in chain[1:]), f'recipe["{key}"]']
        for name, value in zip(chain, values, strict=True):
            sign = ":" if name == key else "::"
            fields.append(f'[if std.objectHas(recipe, "{key}") then "{name}"]{sign} {value}')
    return f"local recipe = ({recipe}\n); recipe + {{{', '.join(fields)}}}"


if __name__ == "__main__":
    main()
