"""Suggestions for unknown commands and options."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path

from earl_cli.errors import UsageError

MEANT = {"train": "sft", "help": "--help", "version": "--version"}


def unknown_command(words: str, commands: Collection[str]) -> UsageError:
    """The error for an unknown command, with the nearest one as hint."""
    near = MEANT.get(words.lower()) or nearest(words, commands)
    if near:
        hint = f"did you mean 'earl {near}'?"
    elif _exists(words):
        hint = f'earl edit {words} "make it snowy" edits a photo; earl --help lists the commands'
    else:
        hint = "earl --help lists the commands"
    return UsageError(f"there is no command {words[:80]!r}", hint=hint)


def meant_below(command: str, word: str, commands: Collection[str]) -> bool:
    """Whether the word after a command is no existing file but a misspelled sub-command."""
    below = [name for name in commands if name.startswith(f"{command} ")]
    return not _exists(word) and nearest(word, below) is not None


def nearest(words: str, commands: Collection[str]) -> str | None:
    """The command with the most similar name, or similar last word; None if none is similar."""
    names = {word: name for name in commands for word in (name.rpartition(" ")[2], name)}
    near = difflib.get_close_matches(words.lower(), names, 1, cutoff=0.7)
    return names[near[0]] if near else None


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long for a name, for instance
        return False


def unknown_option(option: str, command: str, known: Iterable[str]) -> UsageError:
    """The error for an unknown option of ``command`` ("earl", "earl edit"), with the nearest one as hint."""
    options = sorted(known)
    name = option.lower().replace("_", "-")
    initial = [each for each in options if len(option) == 2 and each.startswith(f"-{name}")]
    near = initial or difflib.get_close_matches(name, options, 1, cutoff=0.7)
    if name in options:
        hint = f"did you mean {name}?"
    elif key := _nearest_key(command, name.strip("-"), cutoff=1 if near else 0.8):
        hint = f"{key} is a key of the config: --set {key}=VALUE"
    elif near:
        hint = f"did you mean {near[0]}?"
    elif command == "earl":
        hint = "options of a command come after its name, as in: earl edit photo.jpg ... --seed 3"
    else:
        hint = f"{command} --help lists what there is"
    return UsageError(f"{command} has no option {option}", hint=hint)


def _nearest_key(command: str, name: str, cutoff: float) -> str | None:
    """The config key of a training command that is spelled most like an option."""
    from earl_cli.config.keys import nearest_key
    from earl_cli.config.loader import training_configs

    kind = training_configs().get(command.removeprefix("earl "))
    return nearest_key(kind, name, cutoff) if kind else None
