"""Configs: files in three formats, recipes, single values, and messages that name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from earl_cli.config.loader import load_config, recipes, resolve
from earl_cli.config.sft import SftConfig
from earl_cli.errors import UsageError

NEEDED = {"data": ["store"], "output": "out"}


def test_the_defaults_are_the_published_values(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(NEEDED))
    config = load_config(SftConfig, str(path))
    assert (config.epochs, config.batch_size, config.accumulation) == (10, 2, 8)
    assert (config.learning_rate, config.min_learning_rate, config.warmup_steps) == (1e-4, 1e-5, 30)
    assert (config.weight_decay, config.clip, config.betas, config.epsilon) == (0.1, 5.0, (0.9, 0.95), 1e-6)
    assert (config.checkpoint_every, config.keep, config.validation_rows) == (100, 50, 1000)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", '{"data": ["a"], "output": "o", "epochs": 3}'),
        ("run.yaml", "data: [a]\noutput: o\nepochs: 3\n"),
        ("run.jsonnet", 'local n = 2; {data: ["a"], output: "o", epochs: n + 1}'),
    ],
)
def test_three_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    config = load_config(SftConfig, str(tmp_path / name))
    assert (config.epochs, config.data) == (3, (Path("a"),))


def test_the_command_line_wins_over_the_file_and_sets_over_both(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**NEEDED, "model": "file", "seed": 1}))
    config = load_config(
        SftConfig, str(path), ["seed=3", "betas=[0.8, 0.9]"], {"model": "flag", "seed": 2, "data": None}
    )
    assert (config.model, config.seed, config.betas) == ("flag", 3, (0.8, 0.9))


def test_every_recipe_of_supervised_training_validates() -> None:
    assert "embedded/sft" in recipes()
    assert load_config(SftConfig, "embedded/sft", given=NEEDED).model is None
    for name in recipes():
        if "sft" in name and not name.startswith("rl/"):
            load_config(SftConfig, name, given={**NEEDED, "cot_keys": ["plan"]})


def test_the_published_recipe_holds_the_published_values() -> None:
    simple = load_config(SftConfig, "sft/simple", given=NEEDED)
    changed = {"max_length", "precision", "sharding", "processes"}
    published = load_config(SftConfig, None, given=NEEDED).model_dump(exclude=changed)
    assert simple.model_dump(exclude=changed) == published
    assert (simple.max_length, simple.precision, simple.sharding, simple.processes) == (3000, "bfloat16", "zero3", 4)
    assert load_config(SftConfig, "sft/simple-offload", given=NEEDED).sharding == "zero3-offload"
    with pytest.raises(UsageError, match="--cot-keys plan,objects"):
        load_config(SftConfig, "sft/thinking", given=NEEDED)


def test_every_value_knows_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**NEEDED, "epochs": 3, "seed": 1}))
    found = resolve(SftConfig, str(path), ["seed=3"], {"cot_keys": ["a"], "model": None})
    assert found.origins == {
        "data": str(path),
        "output": str(path),
        "epochs": str(path),
        "seed": "--set",
        "cot_keys": "--cot-keys",
    }


@pytest.mark.parametrize(
    ("values", "sets", "message"),
    [
        ({**NEEDED, "learning_rat": 1}, [], "did you mean 'learning_rate'"),
        ({**NEEDED, "epochs": 0}, [], "epochs: Input should be greater than 0"),
        ({**NEEDED, "batch_size": "many"}, [], "it is 'many'"),
        ({"output": "o"}, [], "data: Field required .*give --data"),
        ({**NEEDED, "coefficients": [1, 2]}, [], "2 coefficients for 1 data sets"),
        ({**NEEDED, "quantize": "4bit"}, [], "set lora_rank as well"),
        ({**NEEDED, "lora_rank": 4, "sharding": "zero3"}, [], "use sharding none or zero2"),
        (NEEDED, ["epochs"], "not of the form key=value"),
        ([1], [], "must be an object"),
    ],
)
def test_a_wrong_config_is_one_clear_error(tmp_path: Path, values: object, sets: list[str], message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=message):
        load_config(SftConfig, str(path), sets)


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.yaml", "a: [1"), ("a.jsonnet", "{a: }")])
def test_a_file_that_does_not_parse_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name}: the config can't be read"):
        load_config(SftConfig, str(tmp_path / name))


def test_a_missing_file_lists_the_recipes() -> None:
    with pytest.raises(UsageError, match="embedded/sft"):
        load_config(SftConfig, "nowhere.json")


def test_variables_of_the_environment_reach_jsonnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part.libsonnet").write_text("{output: std.extVar('APP__OWN') + '/out'}")
    path = tmp_path / "run.jsonnet"
    path.write_text("(import 'part.libsonnet') + {data: [std.extVar('APP__DATA_DIR') + '/a']}")
    monkeypatch.setenv("APP__DATA_DIR", "/data")
    monkeypatch.setenv("APP__OWN", 'it\'s "mine"')
    config = load_config(SftConfig, str(path))
    assert (config.data, config.output) == ((Path("/data/a"),), Path('it\'s "mine"/out'))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("APP__DATA_DIR", r"run.jsonnet: the environment variable APP__DATA_DIR is not set \(export APP__DATA_DIR=…\)"),
        ("APP__MINE", r"the environment variable APP__MINE is not set \(export APP__MINE=…\)"),
        ("APP_RUN_NAME", r"no variable APP_RUN_NAME .* begin with APP__ \(did you mean 'APP__RUN_NAME'\?\)"),
        ("HOME", r"no variable HOME .*call it APP__HOME"),
    ],
)
def test_a_variable_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    path = tmp_path / "run.jsonnet"
    path.write_text(f"{{data: ['a'], output: std.extVar('{name}')}}")
    monkeypatch.delenv(name, raising=False)
    if not name.startswith("APP__"):
        monkeypatch.setenv(name, "set")
    with pytest.raises(UsageError, match=message):
        load_config(SftConfig, str(path))
