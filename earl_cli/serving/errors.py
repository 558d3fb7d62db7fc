"""Errors of requests in the OpenAI protocol's form; nothing else about a failure leaves the server."""

from __future__ import annotations

import traceback
from typing import Any

from earl_cli.console import console
from earl_cli.errors import DeviceError, InputError, ModelError, OutputError, UsageError, explain
from earl_cli.generation.vllm.watchdog import EngineError

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class HttpError(Exception):
    """An HTTP status with a message: ``param`` is the field at fault, ``retry_after`` in seconds,
    ``allow`` the methods that are allowed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.allow = retry_after, allow

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the status."""
        found = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after + 0.5)))}
        if self.allow is not None:
            found["Allow"] = self.allow
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found

    @property
    def document(self) -> dict[str, Any]:
        """The error as the protocol's JSON."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = KINDS.get(self.status, usual)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(failure: BaseException) -> HttpError:
    """The error that a client gets for ``failure``: the message if it is about the input, else only that it failed."""
    if isinstance(failure, HttpError):
        return failure
    if isinstance(failure, MemoryError | DeviceError) or type(failure).__name__ == "OutOfMemoryError":
        return HttpError(503, "not enough memory for this edit; fewer variants or a smaller image need less")
    if isinstance(failure, EngineError):
        return HttpError(503, "the engine behind this server has stopped working", code="unavailable")
    if isinstance(failure, InputError | UsageError | OutputError):
        hint = f" ({failure.hint})" if failure.hint else ""
        return HttpError(400, f"{failure.what}{hint}", param=failure.where)
    if isinstance(failure, ModelError):
        return HttpError(500, failure.what)
    return HttpError(500, "an unexpected failure; see the server's own output")


def report(failure: BaseException) -> None:
    """A line on the server's stderr; with --debug also the traceback."""
    if console.debug:
        traceback.print_exception(failure)
    console.warn(str(explain(failure)) if isinstance(failure, Exception) else type(failure).__name__)
