"""What a command left: its exit code and its two streams, and the one message of a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CommandResult:
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


def error_message(result: CommandResult, code: int) -> str:
    """The one message of a failure, and its hint."""
    assert result.code == code, result.err
    messages = [line for line in result.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.split(":")[0] for line in messages] in (["error"], ["error", "hint"]), result.err
    return "\n".join(messages)


def same_refusal(command: Callable[..., CommandResult], *args: object, code: int, **values: object) -> str:
    """The message with which both the command and its ``--dry-run`` refuse, in the same words."""
    messages = [error_message(command(*args, *more, **values), code) for more in ((), ("--dry-run",))]
    first, second = (text[text.index("error: ") :] for text in messages)
    assert first == second
    return first
