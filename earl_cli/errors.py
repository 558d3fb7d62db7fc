"""Errors for the person at the keyboard: what went wrong, where, and what to do about it. Each class has its exit code."""

from __future__ import annotations


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
    """A device that isn't there, doesn't work, or has too little memory."""

    exit_code = 5


class MissingExtraError(EarlError):
    """An optional package that this command needs; the hint says how to install it."""

    exit_code = 6


class PartialFailure(EarlError):
    """Some of the inputs failed and the others were done."""

    exit_code = 7


class OutputError(EarlError):
    """A result that can't be written: it exists already, or the disk is full."""

    exit_code = 8
