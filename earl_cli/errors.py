"""Errors with a message for the user: what went wrong, where, what to do; each class has its exit code."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any


class EarlError(Exception):
    """A failure that a user can understand; the command line prints it without a traceback.

    ``what`` is one sentence, ``where`` names the file, row, key or flag, ``hint`` says what to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all fields whatever the arguments of the class, so that an error crosses processes unchanged."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[EarlError], args: tuple[Any, ...]) -> EarlError:
    error = kind.__new__(kind)
    error.args = args
    return error


class UsageError(EarlError):
    """A flag, argument or config value that can't be used."""

    exit_code = 2


class InputError(EarlError):
    """An image, table row or text that can't be read or isn't what it should be."""

    exit_code = 3


class ModelError(EarlError):
    """A model folder, Hub id or tokenizer that can't be loaded or doesn't fit."""

    exit_code = 4


class DeviceError(EarlError):
    """A device that is missing, broken, or has too little memory."""

    exit_code = 5


class MissingExtraError(EarlError):
    """An optional package that this command needs; the hint says how to install it."""

    exit_code = 6


class PartialFailureError(EarlError):
    """Some of the inputs failed and the others were done."""

    exit_code = 7


class OutputError(EarlError):
    """A result that can't be written: it exists already, or the disk is full."""

    exit_code = 8


_DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full", "make room, or choose another place"),
    errno.EDQUOT: ("the disk quota is used up", "make room, or choose another place"),
    errno.EFBIG: ("the file gets too large for this disk", "choose another place"),
    errno.EROFS: ("this disk can only be read", "choose another place"),
}
_PATH_ERRORS = {
    errno.ENOENT: "there is no such file or folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "this is a folder, not a file",
    errno.ENAMETOOLONG: "this name is too long for the disk",
    errno.ELOOP: "this link leads to itself",
}


def first_line(failure: Exception) -> str:
    """The first line of an exception's message, or its class name if the message is empty."""
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]


def explain(failure: Exception) -> EarlError:
    """``failure`` as an EarlError: itself if it is one, else an explanation of known kinds of failures."""
    if isinstance(failure, EarlError):
        return failure
    error = _explanation(failure)
    error.__cause__ = failure
    return error


def _explanation(failure: Exception) -> EarlError:
    if isinstance(failure, OSError) and failure.errno in _DISK_ERRORS:
        what, hint = _DISK_ERRORS[failure.errno]
        return OutputError(what, where=failure.filename, hint=hint)
    if isinstance(failure, PermissionError) and failure.filename is not None:
        return _refused(os.fsdecode(failure.filename))
    if isinstance(failure, OSError) and failure.filename is not None:
        what = _PATH_ERRORS.get(failure.errno or 0) or failure.strerror or str(failure)
        return EarlError(what, where=str(failure.filename)[:200])
    if isinstance(failure, MemoryError) or type(failure).__name__ == "OutOfMemoryError":
        return DeviceError(
            "not enough memory",
            hint="reduce variants, image size or batch size, or choose another device",
        )
    if isinstance(failure, ModuleNotFoundError) and failure.name and not failure.name.startswith("earl_cli"):
        package = failure.name.partition(".")[0]
        hint = f"install earl-cli again, which brings it, or: pip install {package}"
        return MissingExtraError(f"the package {package} isn't installed", hint=hint)
    text = str(failure).strip().splitlines()
    what = f"unexpected {type(failure).__name__}" + (f": {text[0]}" if text else "")
    return EarlError(what, hint="run again with --debug for the traceback")


def _refused(path: str) -> EarlError:
    """The error of a denied permission: to read a file, to write, or to search the folder."""
    folder = str(Path(path).parent)
    if not os.access(folder, os.X_OK):
        return InputError("no permission to look into this folder", where=folder)
    if os.access(path, os.F_OK) and not os.access(path, os.R_OK):
        return InputError("no permission to read this", where=path)
    return OutputError("no permission to write here", where=path, hint="choose another place")
