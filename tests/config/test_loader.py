"""Configs: files in four formats, recipes, single values, and messages that name the key."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from earl_cli.config.jsonnet import evaluate
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
    assert (config.weight_decay, config.max_grad_norm, config.betas, config.epsilon) == (0.1, 5.0, (0.9, 0.95), 1e-6)
    assert (config.checkpoint_every, config.validation_examples) == (100, 1000)
    assert (config.keep_checkpoints, config.dropout, config.loss_mean, config.too_long) == (
        2,
        0,
        "tokens",
        "keep",
    )  # ours


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", '{"data": ["a"], "output": "o", "epochs": 3}'),
        ("run.yaml", "data: [a]\noutput: o\nepochs: 3\n"),
        ("run.YAML", "data: [a]\r\noutput: o\r\nepochs: 3\r\n"),
        ("run.toml", 'data = ["a"]\noutput = "o"\nepochs = 3\n'),
        ("run.jsonnet", 'local n = 2; {data: ["a"], output: "o", epochs: n + 1}'),
        ("RUN.JSONNET", '{data: ["a"],\r\n\toutput: "o", epochs: 3}'),
        ("run.json", 'data = ["a"]\noutput = "o"\nepochs = 3\n'),
        ("run.yaml", 'data = ["a"]\noutput = "o"\nepochs = 3\n'),
        ("run.conf", '{"data": ["a"], "output": "o", "epochs": 3}'),
        ("run", 'data = ["a"]\noutput = "o"\nepochs = 3\n'),
        ("run.txt", "data: [a]\noutput: o\nepochs: 3e0\n"),
    ],
)
def test_every_format_says_the_same_by_name_and_by_content(tmp_path: Path, name: str, text: str) -> None:
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
    changed = {"max_length", "precision", "sharding", "processes", "dropout"}
    published = load_config(SftConfig, None, given=NEEDED).model_dump(exclude=changed)
    assert simple.model_dump(exclude=changed) == published
    assert (simple.max_length, simple.precision, simple.sharding, simple.processes) == (3000, "bfloat16", "zero3", 4)
    assert simple.dropout == 0.1
    assert load_config(SftConfig, "sft/thinking", ['cot_keys=["plan"]'], given=NEEDED).dropout == 0.1
    assert load_config(SftConfig, "sft/lora", given=NEEDED).dropout == 0
    assert load_config(SftConfig, "sft/simple-offload", given=NEEDED).sharding == "zero3-offload"
    with pytest.raises(UsageError, match="--cot-keys plan,objects"):
        load_config(SftConfig, "sft/thinking", given=NEEDED)


def test_every_value_knows_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**NEEDED, "epochs": 3, "seed": 1}))
    given = {"cot_keys": ["a"], "model": None, "max_length": 9}
    found = resolve(SftConfig, str(path), ["seed=3"], given, {"max_length": "--longest"})
    assert found.origins == {
        "data": str(path),
        "output": str(path),
        "epochs": str(path),
        "seed": "--set",
        "cot_keys": "--cot-keys",
        "max_length": "--longest",
    }


@pytest.mark.parametrize(
    ("values", "sets", "message"),
    [
        ({**NEEDED, "learning_rat": 1}, [], "did you mean 'learning_rate'"),
        ({**NEEDED, "epochs": 0}, [], "epochs: Input should be greater than 0"),
        ({**NEEDED, "batch_size": "many"}, [], "it is 'many'"),
        ({"output": "o"}, [], "data: a value is needed .*give --data"),
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", '{"data": ["é"], "output": "o"}'),
        ("run.yaml", "data: [é]\noutput: o\n"),
        ("run.toml", 'data = ["é"]\noutput = "o"\n'),
        ("run.jsonnet", "{data: ['é'], output: 'o'}"),
    ],
)
def test_a_text_is_read_in_the_encoding_it_has(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert load_config(SftConfig, str(tmp_path / name)).data == (Path("é"),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", r"Expecting property name.* \(line 1, column 2\)"),
        ("a.json", '{"seed": 1,\n "seed": 2}', r"the key 'seed' is given twice \(line 1 and 2\)"),
        ("a.json", '{"seed": ' + "1" * 5000 + "}", "a number has 5000 digits: 1{20}…$"),
        ("a.json", "[" * 5_000 + "]" * 5_000, "nested too deeply"),
        ("a.json", '{"a":' * 101 + "1" + "}" * 101, "nested too deeply"),
        ("a.yaml", "a: [1", r"line 1, column 6"),
        ("a.yaml", "a: 1\n\tb: 2", r"a tab where YAML wants spaces \(line 2, column 1\)"),
        ("a.yaml", "seed: 1\nseed: 2", r"the key 'seed' is given twice \(line 2, column 1\)"),
        ("a.yaml", "data: [a]\n1: 2", r"the key 1 is not text: put it in quotes \(line 2, column 1\)"),
        ("a.yaml", "data: [" + "a, " * 400_000 + "]", "1,200,008 characters, and 1,048,576 are the most"),
        ("a.yaml", "on: 2", "the key on is not text"),
        ("a.yaml", "? [a]\n: 2", "the key in brackets is not text"),
        ("a.yaml", "seed: " + "1" * 5000, r"a number has 5000 digits \(line 1, column 7\)"),
        ("a.yaml", "data: &a [*a]", r"an alias refers to a value that contains it \(line 1, column 7\)"),
        ("a.yaml", "data: !!python/name:os.system x", r"could not determine a constructor .*line 1, column 7"),
        ("a.yaml", "a: 1\n---\nb: 2", r"found another document \(line 2, column 1\)"),
        ("a.yaml", "[" * 5_000, "nested too deeply"),
        ("a.toml", "data = [1\nx = 2", r"\(line 2, column 1\)"),
        ("a.toml", "seed = 1\nseed = 2", r"the key 'seed' is given twice \(line 2\)"),
        ("a.toml", f"{'a.' * 50_000}b = 1", "it is nested too deeply"),
        ("a.toml", f"[{'a . ' * 50_000}b]", "it is nested too deeply"),
        ("a.jsonnet", "{\n a: }", r"syntax error.* \(line 2, column 5\)"),
        ("a.jsonnet", "{a: 1,\n a: 2}", r"duplicate field name: a \(line 2, column 5\)"),
        ("a.jsonnet", "import 'nowhere.libsonnet'", r"nowhere.libsonnet can't be read: No such file"),
        ("a.jsonnet", "local f(n) = f(n + 1); f(0)", "stack overflow"),
        ("a.jsonnet", "[" * 1500 + "]" * 1500, "it is nested too deeply"),
        ("a.jsonnet", "[" * 200_000, "nested too deeply, or calls itself without end"),
        (
            "a.jsonnet",
            "local f(s, n) = if n == 0 then s else f(s + s, n - 1); f('aaaa', 60)",
            "more than 1 GiB to evaluate",
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_what_and_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_config(SftConfig, str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: the config can't be read: ")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("piece", ["9", "a", "a ", "a.", "a . ", '"a".', "-", " ", "\t", "[", "'"])
def test_no_text_takes_longer_to_read_than_its_length(tmp_path: Path, piece: str) -> None:
    (tmp_path / "a.toml").write_text(f"a = {piece * (1_000_000 // len(piece))}")
    began = time.process_time()
    with pytest.raises(UsageError):
        load_config(SftConfig, str(tmp_path / "a.toml"))
    assert time.process_time() - began < 10


def test_aliases_that_expand_to_a_bomb_are_refused(tmp_path: Path) -> None:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x]"] + [
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 9)
    ]
    (tmp_path / "bomb.yaml").write_text("\n".join(bomb))
    with pytest.raises(UsageError, match="aliases expand to more than 100,000 values"):
        load_config(SftConfig, str(tmp_path / "bomb.yaml"))
    (tmp_path / "plain.yaml").write_text("data: &d [store]\nvalidation: *d\noutput: o\n")
    assert load_config(SftConfig, str(tmp_path / "plain.yaml")).validation == (Path("store"),)


def test_jsonnet_that_never_ends_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonnet"
    path.write_text("std.foldl(function(a, b) a + b, std.range(1, 1000000000), 0)")
    with pytest.raises(ValueError, match=r"more than \d s to evaluate"):
        evaluate(path, {}, seconds=1)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.yaml", b"", "this is empty"),
        ("blank.json", b" \r\n", "this is empty"),
        ("comment.yaml", b"# nothing\n", "this is empty"),
        ("empty.jsonnet", b"", "this is empty"),
        ("photo.jsonnet", bytes(range(256)), "not a text file"),
        ("list.yaml", b"- a\n- b\n", "this is a list"),
        ("list.json", b"[1]", "this is a list"),
        ("list.jsonnet", b"[1]", "this is a list"),
        ("text", b"make it snowy", "this is a single value"),
        ("photo.jpg", bytes(range(256)), "not a text file"),
        ("latin.yaml", b"data: [a]\noutput: caf\xe9\n", "line 2 is not in UTF-8 .*save it as text in UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=f"{name}: .*{message}"):
        load_config(SftConfig, str(tmp_path / name))


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a folder, not a file"):
        load_config(SftConfig, str(tmp_path))


def test_a_date_in_yaml_and_toml_is_text(tmp_path: Path) -> None:
    for name, text in (("a.yaml", "data: [2024-01-02]\noutput: o"), ("a.toml", "data = [2024-01-02]\noutput = 'o'")):
        (tmp_path / name).write_text(text)
        assert load_config(SftConfig, str(tmp_path / name)).data == (Path("2024-01-02"),)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(UsageError, match=r"seed: .*integer") as caught:
        load_config(SftConfig, None, ["seed=" + "1" * 5000], {"data": ["a"], "output": "o"})
    assert len(str(caught.value)) < 300
    with pytest.raises(UsageError, match="data") as caught:
        load_config(SftConfig, None, ["data=" + '{"a":' * 5000 + "1" + "}" * 5000], {"output": "o"})
    assert len(str(caught.value)) < 300
    for value in ("Infinity", "NaN", "1e999"):
        with pytest.raises(UsageError, match="learning_rate"):
            load_config(SftConfig, None, [f"learning_rate={value}"], {"data": ["a"], "output": "o"})


def test_a_folder_of_a_recipes_name_hides_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "embedded/sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_config(SftConfig, "embedded/sft", given=NEEDED).max_steps == 2400


def test_a_config_for_another_command_is_refused() -> None:
    with pytest.raises(UsageError, match="all keys there are of earl rl"):
        load_config(SftConfig, "embedded/rl", given=NEEDED)


def test_a_recipe_is_guessed() -> None:
    for name in ("embeded/sft", "Embedded/SFT", "embedded/sft.jsonnet"):
        with pytest.raises(UsageError, match="did you mean 'embedded/sft'"):
            load_config(SftConfig, name)


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
    ("name", "text"),
    [
        ("a.yaml", 'data: ["${APP__DATA_DIR}/a"]\noutput: ${APP__OUT}'),
        ("a.toml", 'data = ["${APP__DATA_DIR}/a"]\noutput = "${APP__OUT}"'),
        ("a.json", '{"data": ["${APP__DATA_DIR}/a"],\n"output": "${APP__OUT}"}'),
    ],
)
def test_variables_reach_the_other_formats_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.delenv("APP__DATA_DIR", raising=False)
    monkeypatch.delenv("APP__OUT", raising=False)
    with pytest.raises(UsageError) as caught:
        load_config(SftConfig, str(tmp_path / name))
    assert caught.value.what == (
        "the environment variables APP__DATA_DIR (data[0], line 1), APP__OUT (output, line 2) are not set"
    )
    assert caught.value.hint == "export APP__DATA_DIR=… APP__OUT=…"
    monkeypatch.setenv("APP__DATA_DIR", "/data")
    monkeypatch.setenv("APP__OUT", "${APP__DATA_DIR}")
    config = load_config(SftConfig, str(tmp_path / name))
    assert (config.data, config.output) == ((Path("/data/a"),), Path("${APP__DATA_DIR}"))


def test_all_variables_that_jsonnet_misses_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APP__DATA_DIR", "APP__OWN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "part.libsonnet").write_text("{output: std.extVar('APP__OWN') + '/out'}")
    path = tmp_path / "run.jsonnet"
    path.write_text("(import 'part.libsonnet') + {data: [\nstd.extVar('APP__DATA_DIR') + std.extVar('DATA')]}")
    with pytest.raises(UsageError) as caught:
        load_config(SftConfig, str(path))
    assert caught.value.what == (
        "the environment variables APP__DATA_DIR (line 2, column 1), APP__OWN (part.libsonnet:1:10) are not set; "
        "no variable DATA (line 2, column 31) reaches a config: their names begin with APP__"
    )
    assert caught.value.hint == "export APP__DATA_DIR=… APP__OWN=…; call it APP__DATA"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "APP__DATA_DIR",
            r"run.jsonnet: the .* variable APP__DATA_DIR \(line 1, column 23\) is not set \(export APP__DATA_DIR=…\)",
        ),
        ("APP__MINE", r"the environment variable APP__MINE \(line 1.*\) is not set \(export APP__MINE=…\)"),
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
