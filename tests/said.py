"""What a run of the command says: its exit code and its two streams, and the one message of a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


def complaint(said: Said, code: int) -> str:
    """The one message of a failure, and its hint."""
    assert said.code == code, said.err
    messages = [line for line in said.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.split(":")[0] for line in messages] in (["error"], ["error", "hint"]), said.err
    return "\n".join(messages)


def same_refusal(command: Callable[..., Said], *args: object, code: int, **values: object) -> str:
    """The message with which both the command and its ``--dry-run`` refuse, in the same words."""
    said = [complaint(command(*args, *more, **values), code) for more in ((), ("--dry-run",))]
    first, second = (text[text.index("error: ") :] for text in said)
    assert first == second
    return first
