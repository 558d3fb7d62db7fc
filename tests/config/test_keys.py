"""Keys of the training configs: one name each, aliases that load, and what the reference says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from earl_cli.config import loader
from earl_cli.config.jsonnet import evaluate
from earl_cli.config.keys import aliases_of, keys_of
from earl_cli.config.loader import load_config, read_config, resolve, training_configs
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.errors import UsageError

NEEDED: dict[str, Any] = {"data": ["store"], "output": "out"}
OLD = Path(__file__).with_name("old_configs")
ALIASES: dict[type[BaseModel], dict[str, tuple[str, Any]]] = {
    SftConfig: {
        "num_train_epochs": ("epochs", 3),
        "per_device_train_batch_size": ("batch_size", 3),
        "gradient_accumulation_steps": ("accumulation", 3),
        "min_lr": ("min_learning_rate", 1e-6),
        "clip": ("max_grad_norm", 2.0),
        "adam_epsilon": ("epsilon", 1e-7),
        "attention_dropout": ("dropout", 0.1),
        "attn_implementation": ("attention", "sdpa"),
        "eval_steps": ("validate_every", 7),
        "validation_rows": ("validation_examples", 7),
        "gallery_rows": ("gallery_examples", 7),
        "save_steps": ("checkpoint_every", 7),
        "save_total_limit": ("keep_checkpoints", 7),
        "keep": ("keep_checkpoints", 7),
        "save_layout": ("save_format", "original"),
    },
    RlConfig: {
        "model_path": ("model", "base"),
        "model_context_size": ("max_length", 128),
        "per_device_batch_size": ("batch_size", 2),
        "random_seed": ("seed", 7),
        "separate_language_and_vision_vocabs": ("separate_vocabularies", False),
        "save_checkpoints_every_n_iterations": ("checkpoint_every", 7),
        "keep_checkpoints_every_n_iterations": ("keep_model_every", 7),
        "clip": ("max_grad_norm", 2.0),
        "judge_at_once": ("judge_concurrency", 3),
        "judge_patience": ("judge_outage_timeout", 60.0),
        "local_credit": ("per_token_advantage", 0.5),
        "validation_rows": ("validation_examples", 7),
        "gallery_rows": ("gallery_examples", 7),
        "keep": ("keep_checkpoints", 7),
        "save_layout": ("save_format", "original"),
    },
}
CASES = [(kind, old, new, value) for kind, table in ALIASES.items() for old, (new, value) in table.items()]


def test_the_table_has_every_alias() -> None:
    for kind, table in ALIASES.items():
        assert aliases_of(kind) == {old: new for old, (new, _) in table.items()}


@pytest.mark.parametrize(("kind", "old", "new", "value"), CASES)
def test_an_alias_is_the_key(tmp_path: Path, kind: type[BaseModel], old: str, new: str, value: Any) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**NEEDED, old: value}))
    found = resolve(kind, str(path))
    assert getattr(found.config, new) == value != kind.model_fields[new].default
    assert found.origins[new] == str(path)
    path.write_text(json.dumps({**NEEDED, new: kind.model_fields[new].default}))
    found = resolve(kind, str(path), [f"{old}={json.dumps(value)}"])
    assert getattr(found.config, new) == value
    assert found.origins[new] == "--set"
    assert getattr(kind(**NEEDED, **{old: value}), new) == value


@pytest.mark.parametrize(("kind", "old", "new", "value"), CASES)
def test_two_names_of_a_key_at_once_are_refused(
    tmp_path: Path, kind: type[BaseModel], old: str, new: str, value: Any
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**NEEDED, old: value, new: value}))
    message = f"{old} and {new} are two names of one key: leave one out"
    with pytest.raises(UsageError, match=message) as found:
        load_config(kind, str(path))
    assert found.value.where == str(path)
    with pytest.raises(UsageError, match=message) as found:
        load_config(kind, None, [f"{old}={json.dumps(value)}", f"{new}={json.dumps(value)}"], NEEDED)
    assert found.value.where == "--set"
    with pytest.raises(ValidationError, match=message):
        kind(**NEEDED, **{old: value, new: value})


@pytest.mark.parametrize("command", ["sft", "rl"])
def test_a_config_that_an_older_version_showed_loads(command: str) -> None:
    kind = training_configs()[command]
    config = load_config(kind, str(OLD / f"{command}.json"))
    old = json.loads((OLD / f"{command}.json").read_text())
    present = {aliases_of(kind).get(name, name): value for name, value in old.items()}
    shown = config.model_dump(mode="json")
    assert {name: shown[name] for name in present} == present
    assert len(present) == len(old) > 40


@pytest.mark.parametrize(("kind", "recipe"), [(SftConfig, "sft/lora"), (RlConfig, "rl/sft_s__rl_sc")])
def test_a_jsonnet_file_overrides_a_recipe_by_its_aliases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseModel], recipe: str
) -> None:
    for name in ("DATA_DIR", "BASE_EXP_DIR", "REWARD_FUNCTION_API_BASE", "RUN_NAME"):
        monkeypatch.setenv(f"APP__{name}", "x")
    file = Path(loader.__file__).parents[1] / "recipes" / f"{recipe}.jsonnet"
    changes = [{old: value} for old, (_, value) in ALIASES[kind].items()]
    path = tmp_path / "run.jsonnet"
    path.write_text(f"local r = import '{file}'; [r] + [r + change for change in {json.dumps(changes)}]")
    own, *changed = evaluate(path, aliases_of(kind))
    assert own == read_config(recipe, {})
    checked = 0
    for values, (new, value) in zip(changed, ALIASES[kind].values(), strict=True):
        if new in own:
            assert values == own | {new: value} != own
            checked += 1
    assert checked > 7
    path.write_text(f"(import '{file}') + {{ clip: super.clip * 2 }}")
    assert load_config(kind, str(path), given=NEEDED).max_grad_norm == 2 * own["max_grad_norm"]  # type: ignore[attr-defined]


def test_a_misspelled_alias_leads_to_todays_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'seed'"):
        load_config(RlConfig, None, ["random_sed=3"], NEEDED)
    with pytest.raises(UsageError, match="did you mean 'seed'"):
        load_config(SftConfig, None, ["random_seed=3"], NEEDED)
    with pytest.raises(UsageError, match="did you mean 'max_grad_norm'"):
        load_config(SftConfig, None, ["max-grad-norm=3"], NEEDED)


@pytest.mark.parametrize("kind", list(ALIASES))
def test_every_key_is_described(kind: type[BaseModel]) -> None:
    for key in keys_of(kind):
        assert key.sentence.endswith("."), key.name
        assert len(key.sentence) < 130, key.name
        assert key.type


def test_types_and_limits_are_in_words() -> None:
    found = {key.name: key for key in keys_of(RlConfig)}
    assert found["kl_coeff"].type == "number ≥ 0"
    assert found["top_p"].type == "number above 0 and at most 1"
    assert found["betas"].type == "2 × number ≥ 0, < 1"
    assert found["train_paths_file"].type == "path or list of path or null"
    assert found["engine"].type == "one of auto, transformers, vllm"
    assert found["reward"].type == "text or object of number or null"
    assert [found[name].default_text for name in ("engine_args", "reward", "engine")] == ["{}", "null", "auto"]
    assert next(key for key in keys_of(SftConfig) if key.name == "data").default_text == "required"
    assert found["seed"].published_name == "random_seed"
    assert found["max_length"].published_text == "3000 (4096 in the recipes sft_s and sft_think_s)"
    assert (found["clip_low"].published_text, found["clip_low"].published_name) == ("-", None)


def test_published_values_are_those_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RL_100K_DIR", "BASE_EXP_DIR", "REWARD_FUNCTION_API_BASE", "RUN_NAME", "DATA_DIR"):
        monkeypatch.setenv(f"APP__{name}", "x")
    run = json.loads(load_config(RlConfig, "rl/sft_sc__rl_sc").model_dump_json())
    simple = json.loads(load_config(SftConfig, "sft/simple", given=NEEDED).model_dump_json())
    ours = {  # what the recipes say otherwise, and why
        "model", "coefficients", "tokenizer_path", "run_name", "base_exp_dir", "reward_function_api_base",  # by the run
        "push_to_hub_repo_id",  # nothing is sent
        "judge_declaration", "train_forced_tokens",  # ours by default; the docs name the published ones
        "loss_mean", "keep_checkpoints",  # commented in the recipe
        "engine", "attention",  # chosen by what is installed
    }  # fmt: skip
    for kind, recipe in ((RlConfig, run), (SftConfig, simple)):
        compared = 0
        for key in keys_of(kind):
            if key.has_published and key.name not in ours:
                assert recipe[key.name] == json.loads(json.dumps(key.published)), key.name
                compared += 1
        assert compared > 20
