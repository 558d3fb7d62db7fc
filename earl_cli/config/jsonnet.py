"""The value of a Jsonnet file, evaluated in a process with limits on time and memory."""

from __future__ import annotations

import difflib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earl_cli.errors import UsageError
from earl_cli.files import loads

EXTERNAL = "APP__"
SECONDS, BYTES, LARGEST = 20, 1 << 30, 1 << 24  # of processor time, of memory, of the result
_PUBLISHED = (
    "APP__DATA_DIR",
    "APP__RL_100K_DIR",
    "APP__BASE_EXP_DIR",
    "APP__REWARD_FUNCTION_API_BASE",
    "APP__RUN_NAME",
)
_HOST = Path(__file__).with_name("jsonnet_host.py")


def variables() -> dict[str, str]:
    """The environment variables that reach a config: those whose names begin with `EXTERNAL`."""
    return {name: value for name, value in os.environ.items() if name.startswith(EXTERNAL)}


def evaluate(path: Path, aliases: Mapping[str, str], seconds: int = SECONDS) -> Any:
    """The value of the file. Keys of a recipe of the package that it imports can be overridden by their ``aliases``.

    Raises UsageError for missing variables, all of them at once, and ValueError.
    """
    limits = {"seconds": seconds, "bytes": BYTES}
    request = {"file": str(path), "variables": variables(), "aliases": dict(aliases), **limits}
    command = [sys.executable, "-P", str(_HOST)]
    try:
        done = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=3 * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes more than {3 * seconds} s to evaluate") from None
    if done.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        raise ValueError(f"it takes more than {seconds} s to evaluate")
    if done.returncode == -signal.SIGSEGV:
        raise ValueError("it is nested too deeply, or calls itself without end")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        memory = "memory" in last[0].lower()
        raise ValueError(f"it takes more than {BYTES >> 30} GiB to evaluate" if memory else last[0][:300])
    if len(done.stdout) > LARGEST:
        raise ValueError(f"what it evaluates to is larger than {LARGEST >> 20} MiB")
    answer = json.loads(done.stdout)
    if "missing" in answer:
        raise missing_variables([(name, _place(at, path)) for name, at in answer["missing"]], str(path))
    if "error" in answer:
        raise ValueError(answer["error"] + (f" ({_place(answer['place'], path)})" if answer["place"] else ""))
    return loads(answer["value"])


def missing_variables(missing: Sequence[tuple[str, str]], where: str) -> UsageError:
    """One error for all variables that a config uses and that aren't set, each with its places."""
    places: dict[str, list[str]] = {}
    for name, place in missing:
        places.setdefault(name, []).append(place)
    parts, hints = [], []
    unset = [name for name in places if name.startswith(EXTERNAL)]
    if unset:
        kind, verb = ("variables", "are") if len(unset) > 1 else ("variable", "is")
        parts.append(f"the environment {kind} {_with_places(unset, places)} {verb} not set")
        hints.append(f"export {' '.join(f'{name}=…' for name in unset)}")
    foreign = [name for name in places if name not in unset]
    if foreign:
        parts.append(f"no variable {_with_places(foreign, places)} reaches a config: their names begin with {EXTERNAL}")
    for name in foreign:
        near = difflib.get_close_matches(name, {*_PUBLISHED, *variables()}, 1)
        hints.append(f"did you mean {near[0]!r}?" if near else f"call it {EXTERNAL}{name}")
    return UsageError("; ".join(parts), where=where, hint="; ".join(hints))


def _with_places(names: Sequence[str], places: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name} ({'; '.join(dict.fromkeys(places[name]))})" for name in names)


def _place(at: str, path: Path) -> str:
    """A place FILE:LINE:COLUMN in words, without the name of the config file itself."""
    file, line, column = at.rsplit(":", 2)
    own = Path(file) == path
    return f"line {line}, column {column}" if own else f"{os.path.relpath(file, path.parent)}:{line}:{column}"
