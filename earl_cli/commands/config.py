"""``earl config keys``: what can be set in the configs of ``earl sft`` and ``earl rl``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from earl_cli.console import console
from earl_cli.errors import UsageError

if TYPE_CHECKING:
    from earl_cli.config.keys import ConfigKey


def config(ctx: typer.Context) -> None:
    """Show the config keys of the trainings."""
    print(ctx.get_help())


def config_keys(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="sft|rl|KEY",
            help="The command whose keys are listed, by default both; and the keys to show in full.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the config keys of earl sft and earl rl: type, default, published value: earl config keys rl seed"""
    from earl_cli.config.keys import keys_of
    from earl_cli.config.loader import training_configs

    kinds = training_configs()
    names = list(words or [])
    if names and names[0] in kinds:
        kinds = {names[0]: kinds[names.pop(0)]}
    found = {command: _chosen(keys_of(kind), names) for command, kind in kinds.items()}
    for name in names:
        if not any(name in (key.name, *key.aliases) for keys in found.values() for key in keys):
            raise _unknown(name, kinds)
    for command, keys in found.items():
        title = f"earl {command}"
        if not names:
            console.table(["key", "type", "default", "published", "what"], [_row(key) for key in keys], title=title)
        for key in keys if names else ():
            console.table([title, key.name], _facts(key))
    console.document({command: [asdict(key) for key in keys] for command, keys in found.items() if keys})


def _chosen(keys: list[ConfigKey], names: list[str]) -> list[ConfigKey]:
    return [key for key in keys if not names or {key.name, *key.aliases} & set(names)]


def _row(key: ConfigKey) -> list[str]:
    return [key.name, key.type, key.default_text, key.published_text, key.sentence]


def _facts(key: ConfigKey) -> list[list[str]]:
    rows = [["what", key.sentence], ["type", key.type], ["default", key.default_text]]
    named = f"{key.published_name}: " if key.published_name else ""
    rows += [["published", named + key.published_text]] if key.has_published else []
    return [*rows, *([["other names", ", ".join(key.aliases)]] if key.aliases else [])]


def _unknown(name: str, commands: Collection[str]) -> UsageError:
    """The error for a key that none of these commands has, with the nearest one of theirs, else of the other one."""
    from earl_cli.config.keys import nearest_key
    from earl_cli.config.loader import training_configs

    near = {command: nearest_key(kind, name) for command, kind in training_configs().items()}
    own = next((near[command] for command in commands if near[command]), None)
    other = next((f"earl {command} has the key {key!r}" for command, key in near.items() if key), None)
    hint = f"did you mean {own!r}?" if own else other or "earl config keys lists what there is"
    whose = " nor ".join(f"earl {command}" for command in commands)
    what = f"neither {whose} has the key {name!r}" if len(commands) > 1 else f"{whose} has no key {name!r}"
    return UsageError(what, hint=hint)
