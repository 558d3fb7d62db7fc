"""``earl config keys``: what can be set, for people and for programs, and what to do about a key that isn't there."""

from __future__ import annotations

import json

import pytest

from earl_cli.app import run
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig


def test_all_keys_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "keys", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for command, kind in (("sft", SftConfig), ("rl", RlConfig)):
        assert [key["name"] for key in found[command]] == list(kind.model_fields)
    seed = next(key for key in found["rl"] if key["name"] == "seed")
    assert seed["type"] == "integer ≥ 0"
    assert (seed["default"], seed["published"], seed["published_name"], seed["required"]) == (
        42,
        42,
        "random_seed",
        False,
    )
    assert next(key for key in found["sft"] if key["name"] == "data")["required"]


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "keys", "rl"]) == 0
    title, heads, *lines = capsys.readouterr().out.splitlines()
    assert (title, heads.split()) == ("earl rl", ["key", "type", "default", "published", "what"])
    assert [line.split()[0] for line in lines] == list(RlConfig.model_fields)
    words = "kl_coeff number ≥ 0 0.0003 0.0003 Weight of the KL divergence from the reference model."
    assert words.split() in [line.split() for line in lines]


def test_one_key_by_any_of_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for name in ("seed", "random_seed"):
        assert run(["config", "keys", "rl", name]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    lines = [line.split(maxsplit=1) for line in shown[0].splitlines()]
    assert ["default", "42"] in lines
    assert ["published", "random_seed: 42"] in lines
    assert run(["config", "keys", "seed", "dropout", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {command: [key["name"] for key in keys] for command, keys in found.items()} == {
        "sft": ["dropout", "seed"],
        "rl": ["seed"],
    }


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["rl", "learning_rat"], "earl rl has no key 'learning_rat'", "did you mean 'learning_rate'?"),
        (["learning-rat"], "neither earl sft nor earl rl has the key 'learning-rat'", "did you mean 'learning_rate'?"),
        (["sft", "kl_coeff"], "earl sft has no key 'kl_coeff'", "earl rl has the key 'kl_coeff'"),
        (["sft", "xyzzy"], "earl sft has no key 'xyzzy'", "earl config keys lists what there is"),
        (["rl", "seed", "sft"], "earl rl has no key 'sft'", "earl config keys lists what there is"),
    ],
)
def test_a_key_that_is_not_there(words: list[str], what: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "keys", *words]) == 2
    assert capsys.readouterr().err == f"error: {what}\nhint: {hint}\n"
