"""docs/REFERENCE.md is what the program says of itself, and says it of everything."""

from __future__ import annotations

import reference

from earl_cli import app
from earl_cli.config.keys import keys_of
from earl_cli.config.loader import training_configs


def test_the_page_is_what_the_program_says() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "make reference writes it again"


def test_every_option_and_argument_is_explained() -> None:
    for name in app.COMMANDS:
        for param in app.command_of(name).params:
            assert param.help, f"earl {name} {param.opts}"
            assert len(param.help) < 200, f"earl {name} {param.opts}"


def test_the_page_has_every_option_key_and_field() -> None:
    text = reference.page()
    for name in app.COMMANDS:
        section = text.split(f"### earl {name}\n")[1].split("\n### ")[0]
        for param in app.command_of(name).params:
            if param.param_type_name == "option":
                assert all(f"`{option}`" in section for option in (*param.opts, *param.secondary_opts))
    for command, kind in training_configs().items():
        section = text.split(f"### Keys of earl {command}\n")[1].split("\n### ")[0]
        for key in keys_of(kind):
            assert f"| `{key.name}`" in section
            assert all(f"`{alias}`" in section for alias in key.aliases)
    assert "| `edited` | `Pixels \\| None` | required |" in text
